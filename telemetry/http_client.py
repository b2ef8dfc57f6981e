"""One client span per HTTP request that we send, as an httpx transport.

Our trace context is not sent along: the other side has no use for it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self, cast

import httpx
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_FULL
from opentelemetry.semconv.metrics.http_metrics import HTTP_CLIENT_REQUEST_DURATION
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from telemetry.facts import keyed
from telemetry.metrics import NOWHERE, duration

__all__ = ["HttpClientTracing", "fail"]

# Enough for the description of a failure, if there is one.
EXPLAINED_BYTES = 4_096
PORTS = {"http": 80, "https": 443}
PEER = "elevenlabs"
# The header in which it names its own trace.
ITS_TRACE_ID = "x-trace-id"
FAIL = "fail"


def fail(response: httpx.Response, reason: str) -> None:
    """Fails the span of a request whose answer is of no use, whatever its status. Not for a closed answer."""
    if FAIL in response.extensions:
        response.extensions[FAIL](reason)


class HttpClientTracing(httpx.AsyncBaseTransport):
    """Wraps a transport to ElevenLabs. The span ends when the answer was read or given up.

    It fails on any status but 2xx, on an exception and by `fail`. The request extension `url_template`, such
    as `/v1/voices/{voice_id}`, names the span, `resend_count` says how often the request was sent before.
    ElevenLabs' own trace id becomes an attribute. `explain` returns the word for a failure in the beginning
    of its body. The time is measured.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        provider: TracerProvider,
        *,
        explain: Callable[[bytes], str | None] = lambda _: None,
        meters: MeterProvider = NOWHERE,
    ) -> None:
        self._transport = transport
        self._tracer = provider.get_tracer("precall.http_client")
        self._explain = explain
        self._seconds = duration(
            meters.get_meter("precall.http_client"), HTTP_CLIENT_REQUEST_DURATION, "Requests that were sent."
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        template = request.extensions.get("url_template")
        measured: dict[str, str | int] = {
            HTTP_REQUEST_METHOD: request.method,
            SERVER_ADDRESS: url.host,
            SERVER_PORT: url.port or PORTS.get(url.scheme, 0),
        }
        span = self._tracer.start_span(
            f"{request.method} {template}" if template else request.method,
            kind=SpanKind.CLIENT,
            attributes={
                **measured,
                URL_FULL: str(url.copy_with(username=None, password=None) if url.userinfo else url),
                "peer.service": PEER,
            },
        )
        if template:
            measured["url.template"] = template
            span.set_attribute("url.template", template)
        exchange = _Exchange(span, self._seconds, measured)
        if resent := request.extensions.get("resend_count"):
            span.set_attribute("http.request.resend_count", resent)
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException as failure:
            exchange.fail(failure)
            exchange.end()
            raise
        measured[HTTP_RESPONSE_STATUS_CODE] = response.status_code
        span.set_attribute(HTTP_RESPONSE_STATUS_CODE, response.status_code)
        if values := response.headers.get_list(ITS_TRACE_ID):
            # The other side chooses these, so only a bounded part is kept.
            span.set_attribute(f"http.response.header.{ITS_TRACE_ID}", [value[:128] for value in values[:4]])
        failed = not response.is_success  # nobody goes where a 3xx points
        if failed:
            exchange.fail(str(response.status_code))
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.extensions[FAIL] = exchange.fail
        response.stream = _Stream(stream, exchange, self._explain if failed else None)
        return response

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Exchange:
    """A request and its answer; `end` takes effect once."""

    def __init__(self, span: Span, seconds: Histogram, measured: dict[str, str | int]) -> None:
        self._span = span
        self._seconds = seconds
        self._measured = measured
        self._began = time.perf_counter()
        self._ended = False

    def fail(self, failure: BaseException | str) -> None:
        if isinstance(failure, BaseException):
            cancelled = isinstance(failure, asyncio.CancelledError)
            failure = "cancelled" if cancelled else type(failure).__qualname__
        self._measured[ERROR_TYPE] = failure
        self._span.set_attribute(ERROR_TYPE, failure)
        self._span.set_status(StatusCode.ERROR)

    def end(self, word: str | None = None) -> None:
        """Ends it; `word` is the other side's own word for a failure."""
        if self._ended:
            return
        self._ended = True
        if word is not None:
            self._span.set_attributes(keyed({"provider_code": word}))
        self._seconds.record(
            time.perf_counter() - self._began, self._measured, context=set_span_in_context(self._span)
        )
        self._span.end()


class _Stream(httpx.AsyncByteStream):
    def __init__(
        self,
        stream: httpx.AsyncByteStream,
        exchange: _Exchange,
        explain: Callable[[bytes], str | None] | None,
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._explain = explain
        self._begin = bytearray()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                if self._explain is not None and len(self._begin) < EXPLAINED_BYTES:
                    self._begin += chunk[:EXPLAINED_BYTES]
                yield chunk
        except (Exception, asyncio.CancelledError) as failure:
            self._exchange.fail(failure)
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._exchange.end(None if self._explain is None else self._explain(bytes(self._begin)))
