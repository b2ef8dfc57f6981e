"""Work that goes on when whoever began it is answered, or gone."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from cloner.registry import RegistryUnavailable
from telemetry.logs import exception_place

__all__ = ["Background"]

log = structlog.get_logger()

T = TypeVar("T")


class Background:
    """Tasks that nobody needs to wait for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins work, and returns its task for whoever waits for it, and hears of its failure."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Those who wait get the exception. If nobody waits, asyncio must not log it as never retrieved.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def begin_alone(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins work whose failure nobody may hear of, so one that is a bug is logged.

        A registry that is out of reach is logged already.
        """
        task = self.begin(work)
        task.add_done_callback(_log_bug)
        return task

    async def wait(self, seconds: float) -> None:
        """Waits for what was begun, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what was begun, and cancels what is left after the grace."""
        await self.wait(grace_seconds)
        left = [*self._tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _log_bug(ended: asyncio.Task[Any]) -> None:
    failure = None if ended.cancelled() else ended.exception()
    if failure is not None and not isinstance(failure, RegistryUnavailable):
        log.error("bug", exception=exception_place(failure))
