"""Bounds how much is asked of ElevenLabs at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cloner.failures import Busy

__all__ = ["Turns"]


class Turns:
    """Lets so many through at once, the others in the order in which they came."""

    def __init__(self, at_once: int, queue: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._room = queue

    @property
    def full(self) -> bool:
        """Whether the next one would have to wait."""
        return self._free.locked()

    @asynccontextmanager
    async def one(self, deadline: float) -> AsyncIterator[None]:
        """Waits for a turn until the deadline; raises Busy then, and at once when too many wait already."""
        if self._free.locked() and self._room <= 0:
            raise Busy
        self._room -= 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise Busy from None
        finally:
            self._room += 1
        try:
            yield
        finally:
            self._free.release()
