"""Limits how often the same event is logged."""

from collections.abc import Callable, Hashable

from cachetools import LRUCache

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
