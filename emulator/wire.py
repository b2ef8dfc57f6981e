"""The connection between client and provider: it records every request and makes the faults happen.

An ASGI application around another one. ASGI has no message to close a connection, so that is done through the
transport that `emulator.server` puts into the scope; to uvicorn it looks like a client that went away.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qs

import msgspec
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from emulator import form
from emulator.answer import Answer
from emulator.errors import ERRORS
from emulator.faults import CREATE, Fault, Faults
from emulator.journal import Received, Requests
from emulator.routes import Routes
from emulator.settings import Latency

CONTROL = "/emulator/"
REGION = "us-central1"
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Larger bodies are refused; the provider does not say where it draws the line."""
MAX_JSON_BYTES = 65_536
"""Larger bodies of JSON are not recorded."""

logger = logging.getLogger("emulator")


@dataclass(kw_only=True)
class Wire:
    """The outermost ASGI application."""

    app: ASGIApp
    routes: Routes
    requests: Requests
    faults: Faults
    latency: Latency
    clock: Callable[[], float]
    _running: set["asyncio.Task[None]"] = field(default_factory=set)
    _closing: bool = False

    async def __call__(self, any_scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope = cast("HTTPScope", any_scope)  # uvicorn is told to speak nothing else
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._running.add(task)
        try:
            if self._closing:
                await _hang_up(scope, receive)
            elif scope["path"].startswith(CONTROL):
                await self.app(scope, receive, send)
            else:
                await self._exchange(scope, receive, send)
        except asyncio.CancelledError:  # by `close` alone: uvicorn waits for tasks to end by themselves
            await _hang_up(scope, receive, at_once=True)
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with a stack trace
            logger.error("bug in the emulator: %s", type(error).__name__)
            await _hang_up(scope, receive, at_once=True)
        finally:
            self._running.discard(task)

    def open(self) -> None:
        """Serve from now on."""
        self._closing = False

    def close(self) -> None:
        """Hang up on every request under way, and on those still to come."""
        self._closing = True
        for task in self._running:
            task.cancel()
        self.faults.release()

    async def _exchange(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        body = await _read(receive)
        if body is None:
            return
        received = self._received(scope, body)
        fault = self.faults.take(received)
        self.requests.add(received)
        scope["state"]["received"] = received
        scope["state"]["fault"] = fault
        answer = await self._answer(scope, body, received, fault)
        if answer is not None:
            received.status = answer.status
        self.requests.move(received, "finished")
        logger.info(
            "%s %s %s in %d ms",
            received.method,
            received.route or "(no such path)",
            received.status or "dropped",
            (time.perf_counter() - start) * 1000,
        )
        if answer is not None:
            await _send(answer, send, cut=fault.truncate)
        if answer is None or fault.truncate:
            await _hang_up(scope, receive)

    def _received(self, scope: HTTPScope, body: bytes) -> Received:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        content_type = headers.get("content-type", "")
        if "xi-api-key" in headers:
            headers["xi-api-key"] = "***"
        return Received(
            method=scope["method"],
            path=scope["path"],
            route=self.routes.template(scope["path"]),
            query=parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
            headers=headers,
            trace_id=secrets.token_hex(16),
            at=self.clock(),
            form=form.parse(content_type, body),
            json=_json(content_type, body),
        )

    async def _answer(self, scope: HTTPScope, body: bytes, received: Received, fault: Fault) -> Answer | None:
        """What to answer, or None for nothing at all; `emulator.faults` describes the order."""
        await asyncio.sleep(fault.delay_seconds)
        if fault.hold == "before":
            await self._hold(received)
        if fault.drop == "before":
            return None
        answer = fault.answer(received.trace_id)
        if answer is None or fault.work_done:
            worked = await self._work(scope, body, received)
            answer = answer or worked
        if fault.hold == "after":
            await self._hold(received)
        if fault.drop == "after":
            return None
        if answer.status >= 400:
            answer.headers.update({"x-trace-id": received.trace_id, "x-region": REGION})
        return answer

    async def _hold(self, received: Received) -> None:
        self.requests.move(received, "held")
        await self.faults.hold()
        self.requests.move(received, "arrived")

    async def _work(self, scope: HTTPScope, body: bytes, received: Received) -> Answer:
        if len(body) > MAX_BODY_BYTES:
            return ERRORS["request_too_large"].answer(received.trace_id)
        if (received.method, received.route) != CREATE:
            await self.latency.spend()
        return await _ask(self.app, scope, body)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, cut soon after `MAX_BODY_BYTES`; None if the client went away before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        if len(body) <= MAX_BODY_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _json(content_type: str, body: bytes) -> Any:
    if not content_type.startswith("application/json") or len(body) > MAX_JSON_BYTES:
        return None
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


async def _ask(app: ASGIApp, scope: HTTPScope, body: bytes) -> Answer:
    """The application's whole answer."""
    status, headers, content = 0, dict[str, str](), bytearray()

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, content
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update((name.decode(), value.decode()) for name, value in message["headers"])
        elif message["type"] == "http.response.body":
            content += message["body"]

    await app(scope, receive, send)
    headers.pop("content-length", None)
    return Answer(status=status, headers=headers, body=bytes(content))


async def _send(answer: Answer, send: Send, *, cut: bool) -> None:
    headers = {**answer.headers, "content-length": str(len(answer.body))}
    if answer.status in (204, 304):
        del headers["content-length"]
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send(
        {
            "type": "http.response.body",
            "body": answer.body[: len(answer.body) // 2] if cut else answer.body,
            "more_body": cut,
        }
    )


async def _hang_up(scope: HTTPScope, receive: Receive, *, at_once: bool = False) -> None:
    """Close the connection and wait until uvicorn knows; unless at once, what was written is sent first."""
    transport: asyncio.Transport = scope["state"]["transport"]
    if at_once:
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass
