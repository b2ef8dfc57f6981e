"""Bounds the bytes of requests and samples that are in memory at once."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from cloner.refusals import Overloaded
from environment.memory import FreedMemory

__all__ = ["MemoryBudget", "Share"]


class Share:
    """A part of the budget, for as long as somebody holds it."""

    def __init__(self, budget: "MemoryBudget", size: int) -> None:
        self._budget = budget
        self._size = size

    def resize(self, size: int) -> None:
        """Changes the size of the share, once it is known how much is really held."""
        self._budget.change(size - self._size)
        self._size = size

    def give_back(self) -> None:
        """Ends the share. May be repeated."""
        self._budget.note_freed(self._size)
        self._size = 0


class MemoryBudget:
    """A budget of bytes. What does not fit waits until it does; when nothing is held, any size fits.

    `left` is passed to FreedMemory.
    """

    def __init__(self, size: int, *, left: Callable[[], None] = lambda: None) -> None:
        self._size = size
        self._freed = FreedMemory(left)
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """How many bytes are held."""
        return self._taken

    async def wait(self, size: int, *, seconds: float) -> Share:
        """A share of that size, once it is free. Raises Overloaded if that takes longer than `seconds`."""
        if self._waiting or not self._fits(size):
            granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (size, granted)
            self._waiting.append(entry)
            try:
                async with asyncio.timeout(seconds):
                    await granted
            except BaseException as end:
                if granted.done() and not granted.cancelled():
                    self.change(-size)
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(entry)
                    self.change(0)
                if isinstance(end, TimeoutError):
                    raise Overloaded(limit_bytes_at_once=str(self._size)) from None
                raise
        else:
            self._taken += size
        return Share(self, size)

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Counts bytes that a request holds beyond its own share. Never waits, never refuses."""
        self._taken += size
        try:
            yield
        finally:
            self.note_freed(size)

    def note_freed(self, size: int) -> None:
        """Gives that much back."""
        self.change(-size)
        self._freed.note_freed(size, held=self._taken)

    def change(self, size: int) -> None:
        """Takes `size` more bytes, or fewer if it is negative, and lets in those who fit now."""
        self._taken += size
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, granted = self._waiting.popleft()
            if not granted.done():
                self._taken += wanted
                granted.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._size
