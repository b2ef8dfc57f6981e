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

    What no call waits for gets in only while no more than `for_others` are held, and waits for as long as
    calls do. `left` is passed to FreedMemory.
    """

    def __init__(self, size: int, *, for_others: int, left: Callable[[], None] = lambda: None) -> None:
        self._freed = FreedMemory(left)
        self._taken = 0
        self._calls = _Waiting(size)
        self._others = _Waiting(for_others)

    @property
    def taken(self) -> int:
        """How many bytes are held."""
        return self._taken

    async def wait(self, size: int, *, call: bool, seconds: float) -> Share:
        """A share of that size, once it is free; `call` says whether a call waits for it.

        Raises Overloaded if that takes longer than `seconds`.
        """
        mine = self._calls if call else self._others
        if self._calls.line or mine.line or not self._fits(size, mine.most):
            granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (size, granted)
            mine.line.append(entry)
            try:
                async with asyncio.timeout(seconds):
                    await granted
            except BaseException as end:
                if granted.done() and not granted.cancelled():
                    self.change(-size)
                else:
                    with contextlib.suppress(ValueError):
                        mine.line.remove(entry)
                    self.change(0)
                if isinstance(end, TimeoutError):
                    raise Overloaded(limit_bytes_at_once=str(mine.most)) from None
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
        for kind in (self._calls, self._others):
            while kind.line and self._fits(kind.line[0][0], kind.most):
                wanted, granted = kind.line.popleft()
                if not granted.done():
                    self._taken += wanted
                    granted.set_result(None)
            if kind.line:
                return

    def _fits(self, size: int, most: int) -> bool:
        return self._taken == 0 or self._taken + size <= most


class _Waiting:
    """Who waits, in the order in which they came; they get in while at most `most` bytes are taken."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.line: deque[tuple[int, asyncio.Future[None]]] = deque()
