"""How long the parts of one request took, such as waiting for a turn, whichever task spends the time.

A part that several tasks spend at once counts once. Parts may overlap, so their sum is no duration.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Parts", "measured", "part"]


class Parts:
    """The parts of one request."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._under_way: dict[str, tuple[int, float]] = {}

    def begin(self, name: str) -> None:
        """Says that somebody is at it."""
        tasks, since = self._under_way.get(name, (0, time.monotonic()))
        self._under_way[name] = tasks + 1, since

    def end(self, name: str) -> None:
        """Says that somebody is at it no more."""
        tasks, since = self._under_way.pop(name)
        if tasks > 1:
            self._under_way[name] = tasks - 1, since
        else:
            self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - since

    @property
    def milliseconds(self) -> dict[str, int]:
        """The time of each so far, those included that still go on, as `queue_ms` and the like."""
        now, spent = time.monotonic(), dict(self._spent)
        for name, (_, since) in self._under_way.items():
            spent[name] = spent.get(name, 0.0) + now - since
        return {f"{name}_ms": round(seconds * 1000) for name, seconds in spent.items()}


_parts: ContextVar[Parts | None] = ContextVar("parts", default=None)


@contextmanager
def measured() -> Iterator[Parts]:
    """Measures parts within the block, and in the tasks that are begun there."""
    parts = Parts()
    token = _parts.set(parts)
    try:
        yield parts
    finally:
        _parts.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Counts the time of the block to that part of the request that it is done for, if there is one."""
    parts = _parts.get()
    if parts is None:
        yield
        return
    parts.begin(name)
    try:
        yield
    finally:
        parts.end(name)
