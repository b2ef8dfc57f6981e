"""Sends a large request as a stream of one message, of which gRPC keeps nothing once it is sent."""

import asyncio
import contextlib
from typing import Any

import grpc

__all__ = ["uploaded"]


async def uploaded(call: "grpc.aio.StreamUnaryCall[bytes, Any]", request: list[bytes]) -> Any:
    """Writes the one request of the list, which is then empty, and returns the answer.

    Were the request an iterator's, gRPC would give the call up whenever it cannot be sent to its end: the
    caller would find itself cancelled where the server refused the call, or time ran out.
    """
    writing = asyncio.create_task(_write(call, request))

    def stop(_: object) -> None:
        writing.cancel()

    # That a message was not sent would take the place of the status, which says why.
    call.add_done_callback(stop)
    try:
        return await call
    finally:
        writing.cancel()
        await asyncio.wait((writing,))


async def _write(call: "grpc.aio.StreamUnaryCall[bytes, Any]", request: list[bytes]) -> None:
    # A call that has ended takes no more; its status is for whoever waits for the answer.
    with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        await call.write(request.pop())
        await call.done_writing()
