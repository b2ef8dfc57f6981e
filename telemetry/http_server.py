"""One server span per HTTP request, as ASGI middleware.

A caller's `traceparent` is linked, never continued, and its baggage is dropped: nobody outside
chooses our trace ids or our sampling.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv.attributes.client_attributes import CLIENT_ADDRESS
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.network_attributes import NETWORK_PROTOCOL_VERSION
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.semconv.attributes.user_agent_attributes import USER_AGENT_ORIGINAL
from opentelemetry.semconv.metrics.http_metrics import HTTP_SERVER_REQUEST_DURATION
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, format_span_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry.facts import forget
from telemetry.metrics import NOWHERE, duration
from telemetry.parts import SCOPE, traced_by
from telemetry.tracing import trace_id

__all__ = ["Application", "HttpServerTracing", "Message", "Receive", "Send"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
W3C = TraceContextTextMapPropagator()
# Clients can write any text into this header.
LONGEST_AGENT = 128
UNPRINTABLE = re.compile(r"[^ -~]")


class HttpServerTracing:
    """Wraps an ASGI application: a span, and a `traceresponse` header on every answer.

    The span fails on a status from 500 up, on an exception and on a client that hangs up before its answer is
    sent. Its time is measured. Paths in `untraced` are not measured, and get span and header only for an
    answer from 400 up, which names its trace. Where tracing is off there is no header.
    `legible` returns the part that may be shown of a path that is no route by itself.
    """

    def __init__(
        self,
        app: Application,
        provider: TracerProvider,
        *,
        untraced: Collection[str],
        legible: Callable[[str], str | None] = lambda _: None,
        meters: MeterProvider = NOWHERE,
    ) -> None:
        self._app = app
        self._legible = legible
        self._seconds = duration(
            meters.get_meter("precall.http_server"),
            HTTP_SERVER_REQUEST_DURATION,
            "Requests that were answered.",
        )
        self._tracer = provider.get_tracer("precall.http_server")
        self._of_parts = provider.get_tracer(SCOPE)
        self._untraced = frozenset(untraced)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        quiet = scope["path"] in self._untraced
        # A pipelined request begins in the task of the request before it.
        forget()
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        with (
            traced_by(self._of_parts),
            self._tracer.start_as_current_span(
                method if method != "_OTHER" else "HTTP",
                context=Context(),
                kind=SpanKind.SERVER,
                links=_links(scope),
                attributes={
                    HTTP_REQUEST_METHOD: method,
                    URL_SCHEME: scope.get("scheme", "http"),
                    NETWORK_PROTOCOL_VERSION: scope.get("http_version", "1.1"),
                    **_addresses(scope),
                },
                record_exception=False,
                set_status_on_exception=False,
                # A span that is not ended is never seen.
                end_on_exit=False,
            ) as span,
        ):
            measured: dict[str, str | int] = {
                HTTP_REQUEST_METHOD: method,
                URL_SCHEME: scope.get("scheme", "http"),
            }
            request = _Request(span, measured, quiet=quiet)
            began = time.perf_counter()
            try:
                await self._traced(request, scope, receive, send)
            finally:
                if not quiet:
                    self._seconds.record(time.perf_counter() - began, request.measured)
                if request.is_exported:
                    span.end()

    async def _traced(self, request: "_Request", scope: Any, receive: Receive, send: Send) -> None:
        answered = False

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not answered:
                request.fail("client_disconnected")
            return message

        async def watched_send(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                request.begin_answer(message["status"])
                if request.is_exported and request.span.get_span_context().is_valid:
                    traceresponse = (b"traceresponse", _traceresponse(request.span))
                    message["headers"] = [*message.get("headers", ()), traceresponse]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                answered = True
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except asyncio.CancelledError:
            request.fail("cancelled")
            raise
        except Exception as bug:
            request.fail(type(bug).__qualname__)
            raise
        finally:
            self._place(request, scope)

    def _place(self, request: "_Request", scope: Any) -> None:
        """Notes the route of the request, which is known only once the router has handled it."""
        route = scope.get("path_template")
        if route:
            request.span.update_name(f"{scope['method']} {route}")
            request.note(HTTP_ROUTE, route)
        # What a route does not say itself is a stranger's text.
        if path := scope["path"] if route == scope["path"] else self._legible(scope["path"]):
            request.span.set_attribute(URL_PATH, path)


class _Request:
    """A request as its span and its measurement see it."""

    def __init__(self, span: Span, measured: dict[str, str | int], *, quiet: bool) -> None:
        self.span = span
        self.measured = measured
        self.is_exported = not quiet
        """Whether the trace is known outside. Of a quiet request only an answer from 400 up is."""

    def note(self, key: str, value: str | int) -> None:
        self.span.set_attribute(key, value)
        self.measured[key] = value

    def begin_answer(self, status: int) -> None:
        self.note(HTTP_RESPONSE_STATUS_CODE, status)
        self.is_exported = self.is_exported or status >= 400
        if status >= 500:
            self.fail(str(status))

    def fail(self, error: str) -> None:
        self.note(ERROR_TYPE, error)
        self.span.set_status(StatusCode.ERROR)


def _addresses(scope: Any) -> dict[str, str | int]:
    """The addresses of client and server, and the client's program."""
    attributes: dict[str, str | int] = {}
    if client := scope.get("client"):
        attributes[CLIENT_ADDRESS] = client[0]
    if server := scope.get("server"):
        attributes[SERVER_ADDRESS] = server[0]
        if server[1]:
            attributes[SERVER_PORT] = server[1]
    for name, value in scope["headers"]:
        if name == b"user-agent":
            attributes[USER_AGENT_ORIGINAL] = UNPRINTABLE.sub("?", value[:LONGEST_AGENT].decode("latin-1"))
            break
    return attributes


def _links(scope: Any) -> list[Link]:
    carrier = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name == b"traceparent"
    }
    theirs = get_current_span(W3C.extract(carrier, context=Context())).get_span_context()
    return [Link(theirs)] if theirs.is_valid else []


def _traceresponse(span: Span) -> bytes:
    context = span.get_span_context()
    return f"00-{trace_id(span)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}".encode()
