"""Work at ElevenLabs that goes on when nobody waits for it any more, as long as it is in nobody's way."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from cloner.provider.turns import Urgency, with_urgency

__all__ = ["Awaited"]

T = TypeVar("T")


class Awaited(Generic[T]):
    """A task that calls wait for, each for as long as it may.

    If ElevenLabs does not answer, those who waited have left long before the time of the request is up. From
    `until` on, the work then keeps its turn only until a call wants one.
    """

    def __init__(self, work: Coroutine[Any, Any, T], *, until: float) -> None:
        self.until = until
        self._urgency = Urgency(call=True)
        self._waiting = 0
        with with_urgency(self._urgency):
            self._task = asyncio.create_task(work)
        # Whoever began it may have something else to wait for first.
        self._alone = asyncio.get_running_loop().call_at(until, self._leave)
        self._task.add_done_callback(self._done)

    @property
    def over(self) -> bool:
        """Whether the work has ended, or was given up."""
        return self._task.done()

    async def result(self, *, until: float) -> T | None:
        """What the work returns, or raises; None if that takes longer, or the work was given up."""
        if not self.over:
            await self._wait(until - asyncio.get_running_loop().time())
        return self._task.result() if self.over and not self._task.cancelled() else None

    def cancel(self) -> None:
        """Ends the work, if it is not done."""
        self._task.cancel()

    async def ended(self) -> None:
        """Waits for the end of the work, whatever comes of it."""
        await asyncio.wait({self._task})

    async def _wait(self, seconds: float) -> None:
        self._waiting += 1
        self._urgency.hurry()
        try:
            await asyncio.wait({self._task}, timeout=max(0.0, seconds))
        finally:
            self._waiting -= 1
            self._leave()

    def _leave(self) -> None:
        if not (self._waiting or self.over):
            self._urgency.leave(self._task.cancel)

    def _done(self, task: "asyncio.Task[T]") -> None:
        # The task refers to its urgency: if that referred to the task for longer, both would stay.
        self._urgency.leave(None)
        self._alone.cancel()
        # Those who wait get the exception. If nobody waits, asyncio must not log it as never retrieved.
        if not task.cancelled():
            task.exception()
