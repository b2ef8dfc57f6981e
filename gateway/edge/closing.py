"""Closes the connection after an answer that was sent before the request's body was read.

If a socket is closed while it holds unread bytes, the kernel resets the connection, and the client may never
see the answer that was on its way. So what the client still sends is first read and thrown away for a moment.
"""

import asyncio
from functools import partial
from typing import Any

from gateway.edge.body import has_body
from gateway.edge.clock import Clock, end
from telemetry.http_server import Application, Message, Receive, Send

__all__ = ["LingeringClose"]

# Time for a sender that reads the answer only when it has sent everything. One that pauses has read it.
LINGER_SECONDS = 5.0
PAUSE_SECONDS = 1.0
# A sender of more, after an event that is too large, may see the connection reset instead of the answer.
LINGER_BYTES = 256 * 1_048_576


class LingeringClose:
    """Wraps an ASGI application, which does not notice."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        unread = True
        early = False
        lingering = False

        async def counted_receive() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                unread = False
            return message

        async def closing_send(message: Message) -> None:
            nonlocal early, lingering
            if message["type"] == "http.response.start" and unread:
                early = True
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            elif message["type"] == "http.response.body" and early and not message.get("more_body", False):
                # uvicorn closes at the last message, so this is not it yet. Content-Length tells
                # the client that the answer is complete.
                lingering = True
                message["more_body"] = True
            await send(message)

        await self._app(scope, counted_receive, closing_send)
        if lingering:
            await _drain(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    """Reads until the body ends, the client hangs up or pauses, or a limit is reached."""
    size = 0
    loop = asyncio.get_running_loop()
    ends = loop.time() + LINGER_SECONDS
    clock = Clock()
    try:
        async with asyncio.timeout(None) as reading:
            while size < LINGER_BYTES:
                clock.set(min(ends, loop.time() + PAUSE_SECONDS), partial(end, reading))
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
                size += len(message.get("body", b""))
    except TimeoutError:
        pass
    finally:
        clock.stop()
