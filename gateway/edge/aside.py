"""Reads large bodies in a thread, so that other answers go on meanwhile.

A body of some megabytes that only the loose reader of JSON can read takes it seconds.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Aside"]

# Reading less takes a few hundredths of a second at worst.
LARGE_BYTES = 65_536

T = TypeVar("T")


class Aside:
    """Reads one large body at a time: each thread more would take its share of time from all answers."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def read(self, size: int, read: Callable[[], T]) -> T:
        """What `read` returns, or raises, for a body of so many bytes."""
        if size <= LARGE_BYTES:
            return read()
        async with self._turn:
            return await asyncio.to_thread(read)
