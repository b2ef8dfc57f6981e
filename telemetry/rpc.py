"""Server spans for gRPC calls, of one answer or many, as an interceptor for `grpc.aio`."""

# Some classes of grpc are generic only in its type stubs.
from __future__ import annotations

import asyncio
import inspect
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.semconv.attributes.client_attributes import CLIENT_ADDRESS, CLIENT_PORT
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry.facts import KEYS
from telemetry.metrics import NOWHERE, duration
from telemetry.parts import SCOPE, traced_by
from telemetry.tracing import linked

__all__ = ["RpcServerTracing", "status_of"]

# Names of the RPC semantic conventions 1.44, which the Python package still keeps as incubating.
RPC_METHOD, RPC_STATUS = KEYS["method"], KEYS["code"]
RPC_SYSTEM = "rpc.system.name"
RPC_SECONDS = "rpc.server.call.duration"

# The codes that the conventions count as a server's failure, and CANCELLED: a client that hung up got no
# answer, so people who look for that call look for a failed span.
SERVER_FAILURES = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Services for tools, beside the server's own.
UNTRACED = frozenset(
    {
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
# Whether requests and responses are streams: what gRPC calls such a behavior, and what makes a handler of it.
KINDS: Mapping[tuple[bool, bool], tuple[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
W3C = TraceContextTextMapPropagator()
IDS = RandomIdGenerator()


class RpcServerTracing(grpc.aio.ServerInterceptor):
    """Makes a server span for each call, which continues the caller's trace and ends with the last answer.

    The request may be a message or a stream of one message.

    `trusted` tells by the metadata of a call whether it is a client's. A stranger's trace is linked instead,
    so that no stranger chooses our trace ids or our sampling; nobody's baggage is accepted. Calls of services
    for tools, such as health checks, get no span, and are not measured; what they log and answer still has a
    trace id, the client's if there is one. The name of a method that is not `known` is a stranger's text:
    it shows as `_OTHER`.
    """

    def __init__(
        self,
        provider: TracerProvider,
        *,
        meters: MeterProvider = NOWHERE,
        known: frozenset[str],
        trusted: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._known = known
        self._trusted = trusted
        self._seconds = duration(meters.get_meter("precall.rpc"), RPC_SECONDS, "Calls that were answered.")
        self._tracer = provider.get_tracer("precall.rpc")
        self._of_parts = provider.get_tracer(SCOPE)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        name = _text(handler_call_details.method).lstrip("/")
        if handler is None:
            return None
        kind, made = KINDS[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, kind)
        wrapped = self._named if name in UNTRACED else self._traced
        return made(
            wrapped(
                name,
                _piped(behavior) if handler.response_streaming else behavior,
                handler_call_details.invocation_metadata,
            ),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _named(self, _name: str, behavior: Any, metadata: Any) -> Any:
        """Gives a call a trace id without making a span."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            context_of_caller, _ = self._origin(metadata)
            callers = get_current_span(context_of_caller).get_span_context()
            named = SpanContext(
                callers.trace_id or IDS.generate_trace_id(), IDS.generate_span_id(), is_remote=False
            )
            with use_span(NonRecordingSpan(named)):
                return await behavior(request, context)

        return call

    def _traced(self, method: str, behavior: Any, metadata: Any) -> Any:
        name = method if method in self._known else "_OTHER"

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            origin, links = self._origin(metadata)
            with (
                traced_by(self._of_parts),
                self._tracer.start_as_current_span(
                    name,
                    context=origin,
                    kind=SpanKind.SERVER,
                    links=links,
                    attributes={RPC_SYSTEM: "grpc", RPC_METHOD: name},
                    record_exception=False,
                    set_status_on_exception=False,
                ) as span,
            ):
                if span.is_recording():
                    span.set_attributes(_client(context.peer()))
                code = grpc.StatusCode.UNKNOWN
                began = time.perf_counter()
                try:
                    response = await behavior(request, context)
                    code = status_of(context)
                except asyncio.CancelledError:
                    remaining = context.time_remaining()
                    passed = remaining is not None and remaining <= 0
                    code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
                    raise
                except grpc.aio.AbortError:
                    code = status_of(context)
                    raise
                finally:
                    failed = code in SERVER_FAILURES
                    _set_status(span, code, failed=failed)
                    self._seconds.record(
                        time.perf_counter() - began,
                        {
                            RPC_SYSTEM: "grpc",
                            RPC_METHOD: name,
                            RPC_STATUS: code.name,
                            **({ERROR_TYPE: code.name} if failed else {}),
                        },
                    )
                return response

        return call

    def _origin(self, metadata: Any) -> tuple[Context, list[Link]]:
        """The trace context that a call continues, an empty one if it is none's, and what it links to."""
        carrier = {key: value for key, value in metadata or () if key in W3C.fields}
        if self._trusted(metadata):
            return W3C.extract(carrier, context=Context()), []
        return Context(), linked(carrier.get("traceparent", ""))


def status_of(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """The status that was set on a call: OK if none was, UNKNOWN for a number that gRPC does not have."""
    code = context.code()  # 0 or None before one is set, an int or an enum after
    if not code:
        return grpc.StatusCode.OK
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)


def _client(peer: str) -> dict[str, str | int]:
    """The address of the client, if there is one: `ipv4:127.0.0.1:40404`, `ipv6:%5B::1%5D:40404`."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return {}
    return {CLIENT_ADDRESS: host.strip("[]"), CLIENT_PORT: int(port)}


def _piped(behavior: Any) -> Any:
    """Writes the answers of a behavior, which may be a generator or write by itself."""

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        answers = behavior(request, context)
        if not inspect.isasyncgen(answers):
            await answers
            return
        async for answer in answers:
            await context.write(answer)

    return call


def _set_status(span: Span, code: grpc.StatusCode, *, failed: bool) -> None:
    span.set_attribute(RPC_STATUS, code.name)
    if failed:
        span.set_attribute(ERROR_TYPE, code.name)
        span.set_status(StatusCode.ERROR)


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
