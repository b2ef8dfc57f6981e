"""How a server stops without losing a call: it sends GOAWAY before its last answers.

gRPC's server cancels each call that reaches it after it was stopped, and most clients take the call for
failed. A client that waits for an answer sends nothing, so answers are held back for a moment: GOAWAY then
stands before them on every connection, and what a client sends after them goes elsewhere.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cloner.rpc.contract import Context, Handler, streamed

__all__ = ["STILL_SECONDS", "Draining"]

# A client that waits for an answer sends nothing. After so long without a new call, all that were sent have
# arrived.
STILL_SECONDS = 0.05
# How long answers are held back at most: while calls keep coming, and while the machine is busy, because then
# clients on it may be slow as well. It counts as busy if a pause ends LATE_SECONDS too late.
HELD_SECONDS = 0.5
BUSY_SECONDS = 2.0
LATE_SECONDS = 0.01
# How long before its deadline an answer that is held back is sent.
HEADROOM_SECONDS = 0.05


class Draining(grpc.aio.ServerInterceptor):
    """Holds answers back between `hold` and `release`. It stands before all else that handles calls.

    Streams are left alone. A held answer occupies no place of its client and is outside its span. All calls
    that were sent are taken to have arrived when no new one came for `still_seconds`.
    """

    def __init__(self, *, still_seconds: float = STILL_SECONDS) -> None:
        self._still_seconds = still_seconds
        self._came = 0
        self._held_back = 0
        self._holding = False
        self._released = asyncio.Event()
        self._under_way = 0
        self._none_under_way = asyncio.Event()

    async def hold(self, *, seconds: float) -> None:
        """Holds answers back. Returns once no new call arrives, or after `seconds`.

        It also returns after half a second, or two on a busy machine.
        """
        self._holding = True
        loop = asyncio.get_running_loop()
        began, most = loop.time(), HELD_SECONDS
        while loop.time() - began < min(seconds, most):
            came, paused = self._came, loop.time()
            await asyncio.sleep(self._still_seconds)
            busy = self._held_back > 0 and loop.time() - paused > self._still_seconds + LATE_SECONDS
            if came == self._came and not busy:
                return
            most = BUSY_SECONDS if busy else HELD_SECONDS

    def release(self) -> None:
        """Lets all answers go."""
        self._released.set()

    async def finish(self, *, seconds: float) -> None:
        """Returns once no call with one answer is under way, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._under_way:
                    self._none_under_way.clear()
                    await self._none_under_way.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        self._came += 1
        handler = await continuation(handler_call_details)
        if handler is None or handler.response_streaming or not handler.request_streaming:
            return handler

        async def call(requests: Any, context: Context) -> Any:
            self._under_way += 1
            try:
                answer = await handler.stream_unary(requests, context)
                if self._holding:
                    await self._held(context)
                return answer
            finally:
                self._under_way -= 1
                if not self._under_way:
                    self._none_under_way.set()

        return streamed(call, handler)

    async def _held(self, context: Context) -> None:
        left = context.time_remaining()
        self._held_back += 1
        try:
            async with asyncio.timeout(None if left is None else max(0.0, left - HEADROOM_SECONDS)):
                await self._released.wait()
        except TimeoutError:
            pass
        finally:
            self._held_back -= 1
