"""Reads large bodies in a thread, so that other answers go on meanwhile.

A body of some megabytes that only the loose reader of JSON can read takes it seconds. Others then wait for
some tenths of a second at most, which is how long one step of it lasts.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from gateway.edge.problems import DeadlineTooShort

__all__ = ["Aside"]

# Reading less takes a few hundredths of a second at worst.
LARGE_BYTES = 65_536

T = TypeVar("T")


class Aside:
    """Reads one of a route's large bodies at a time: each thread more takes time from all answers."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def read(self, size: int, read: Callable[[], T], *, seconds: float | None = None) -> T:
        """What `read` returns, or raises, for a body of so many bytes.

        Raises DeadlineTooShort if that takes longer than so many seconds.
        """
        if size <= LARGE_BYTES:
            return read()
        try:
            async with asyncio.timeout(seconds):
                await self._turn.acquire()
                return await asyncio.shield(self._begun(read))
        except TimeoutError:
            raise DeadlineTooShort from None

    def _begun(self, read: Callable[[], T]) -> asyncio.Task[T]:
        """Reads in a thread. The turn lasts until that is done, for nothing can end it before."""
        # Whoever waits keeps no reference to the task: a failure would refer to it, and it to the failure.
        reading = asyncio.create_task(asyncio.to_thread(read))
        reading.add_done_callback(lambda _: self._turn.release())
        # If nobody waits any more, asyncio must not log its failure as never retrieved.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return reading
