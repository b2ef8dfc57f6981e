"""Limits how often the same event is logged."""

from collections.abc import Callable, Hashable

from cachetools import LRUCache

from cloner.provider.failures import ProviderFailure, Unauthorized

__all__ = ["Notices"]

KEPT = 10_000
AGAIN_SECONDS = 600.0


class Notices:
    """Remembers what was logged lately. `now` tells the time, in Unix seconds."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._told: LRUCache[tuple[Hashable, ...], float] = LRUCache(KEPT)

    def due(self, *what: Hashable) -> bool:
        """Whether this was not logged lately; then it counts as logged now."""
        now = self._now()
        if now < self._told.get(what, now):
            return False
        self._told[what] = now + AGAIN_SECONDS
        return True

    def facts(self, agent_id: str, failure: ProviderFailure, *, permission: str) -> dict[str, str]:
        """What to log of a failure at an agent, with the permission that a key may lack. Empty if not due."""
        if not self.due(agent_id, failure.reason):
            return {}
        needed = {"permission_needed": permission} if isinstance(failure, Unauthorized) else {}
        return {"agent_id": agent_id, "reason": failure.reason, **needed}
