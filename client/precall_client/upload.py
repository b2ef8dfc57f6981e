"""Sends a large request as a stream of one message, of which gRPC keeps nothing once it is sent."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

__all__ = ["uploaded"]

Call: TypeAlias = "grpc.aio.StreamUnaryCall[bytes, Any]"

# As the service config has it for smaller ones.
PAUSES = (0.1, 0.2, 0.4)
AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


async def uploaded(begin: Callable[[float], Call], request: list[bytes], seconds: float) -> Any:
    """Sends the one request of the list, which is then empty, and returns the answer.

    `begin` makes a call that lasts so many seconds, on a channel without retries: if the connection breaks
    before a large message was sent and no other exists, gRPC leaves the call waiting until its deadline. So
    retries are made here: up to four tries, as long as gRPC was not given the message.
    """
    now = asyncio.get_running_loop().time
    ends = now() + seconds
    for pause in PAUSES:
        try:
            return await _uploaded(begin(max(0.0, ends - now())), request)
        except grpc.aio.AioRpcError as failure:
            if not request or failure.code() not in AGAIN or now() + pause >= ends:
                raise
            await asyncio.sleep(pause)
            if now() >= ends:
                # A busy machine has slept for longer.
                raise
    return await _uploaded(begin(max(0.0, ends - now())), request)


async def _uploaded(call: Call, request: list[bytes]) -> Any:
    # If the request came from an iterator, gRPC would cancel the call whenever it cannot send all of it: the
    # caller would be cancelled even if the server refused the call, or time ran out.
    writing = asyncio.create_task(_write(call, request))

    def stop(_: object) -> None:
        writing.cancel()

    # Otherwise a failure of the writing would replace the status, which says why.
    call.add_done_callback(stop)
    try:
        return await call
    finally:
        writing.cancel()
        await asyncio.wait((writing,))


async def _write(call: Call, request: list[bytes]) -> None:
    # A call that has ended takes no more; its status is for whoever waits for the answer.
    with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        await call.wait_for_connection()
        await call.write(request.pop())
        await call.done_writing()
