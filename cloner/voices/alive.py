"""Signs of life of a process, by which others know that somebody works at its intents."""

import asyncio
import contextlib
from collections.abc import Callable, Sized
from contextvars import Context

from cloner.registry import Store, processes

__all__ = ["ALIVE_SECONDS", "STALE_SECONDS", "SignsOfLife"]

ALIVE_SECONDS = 2.0  # between two signs of life of a process that is at intents
STALE_SECONDS = 8.0  # a process without a sign of life for so long counts as dead


class SignsOfLife:
    """Gives signs of life of the process `owner` while anything is `under_way`.

    `now` tells the time, in Unix seconds.
    """

    def __init__(self, store: Store, under_way: Sized, *, owner: str, now: Callable[[], float]) -> None:
        self._store = store
        self._under_way = under_way
        self._owner = owner
        self._now = now
        self._heart: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Gives signs of life from now on, until nothing is under way any more."""
        if self._heart is None or self._heart.done():
            # The task serves every clone, so it is part of no request's trace.
            self._heart = asyncio.create_task(self._beat(), context=Context())

    async def stop(self) -> None:
        """Gives no more signs of life."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)

    async def _beat(self) -> None:
        while len(self._under_way) > 0:
            await asyncio.sleep(ALIVE_SECONDS)
            with contextlib.suppress(Exception):  # logged by whatever else needs the registry
                await self._store.write(processes.note_alive, self._owner, now=self._now())
