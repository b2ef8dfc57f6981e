"""How a server leaves without losing a call: the last answers follow the news that it goes.

gRPC's server cancels each call that reaches it after it was stopped, and most clients take that for the end
of the call. A client that waits for an answer sends nothing, so answers are held back for a moment: on every
connection the news (GOAWAY) stands before them, and whatever is sent after them goes elsewhere.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

__all__ = ["Leaving"]

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# What the type stubs say of handlers leaves out aio.
Handler: TypeAlias = Any

# Who waits for an answer sends nothing: after so long without a new call all that were sent are here.
STILL_SECONDS = 0.05
# An answer that is held back leaves so long before its deadline.
HEADROOM_SECONDS = 0.05


class Leaving(grpc.aio.ServerInterceptor):
    """Holds answers back between `hold` and `release`. It stands before all else that handles calls.

    Streams are left alone. What is held takes no place of anybody's, and is in no span.
    """

    def __init__(self) -> None:
        self._came = 0
        self._holding = False
        self._released = asyncio.Event()

    async def hold(self, *, seconds: float) -> None:
        """Holds answers back from now on. Returns once no new call comes, after `seconds` at the latest."""
        self._holding = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                came = None
                while came != self._came:
                    came = self._came
                    await asyncio.sleep(STILL_SECONDS)

    def release(self) -> None:
        """Lets all answers go."""
        self._released.set()

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
            answer = await handler.stream_unary(requests, context)
            if self._holding:
                await self._held(context)
            return answer

        return grpc.stream_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _held(self, context: Context) -> None:
        left = context.time_remaining()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if left is None else max(0.0, left - HEADROOM_SECONDS)):
                await self._released.wait()
