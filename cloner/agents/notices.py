"""Limits how often the same event is logged."""

from collections.abc import Callable, Hashable

import structlog
from cachetools import LRUCache

from cloner.provider.failures import ProviderFailure, Unauthorized

__all__ = ["Notices"]

log = structlog.get_logger()

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

    def warn(self, event: str, agent_id: str, failure: ProviderFailure, *, permission: str) -> None:
        """Logs that ElevenLabs failed for an agent, and the permission that the key may lack."""
        if self.due(agent_id, failure.reason):
            needed = {"permission_needed": permission} if isinstance(failure, Unauthorized) else {}
            log.warning(event, agent_id=agent_id, reason=failure.reason, **needed)
