"""A client span around a call, and its `traceparent` for the server, which continues the trace."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Tracing"]

# Names of the RPC semantic conventions 1.40, which no package has as stable ones.
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
RPC_SYSTEM = "rpc.system.name"
ERROR_TYPE = "error.type"
W3C = TraceContextTextMapPropagator()


class Tracing:
    """Tells of calls to `provider`, or to the process's own where that is None."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = get_tracer("precall.rpc", tracer_provider=provider)

    @contextmanager
    def call(self, method: str) -> Iterator[list[tuple[str, str]]]:
        """Spans the block, and yields what the call's metadata have to carry of it.

        The span fails on every status but OK, also when the caller gives the call up.
        """
        with self._tracer.start_as_current_span(
            method,
            kind=SpanKind.CLIENT,
            attributes={RPC_SYSTEM: "grpc", RPC_METHOD: method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            W3C.inject(carrier, set_span_in_context(span))
            try:
                yield [*carrier.items()]
            except grpc.aio.AioRpcError as failure:
                _tell(span, failure.code())
                raise
            except asyncio.CancelledError:
                _tell(span, grpc.StatusCode.CANCELLED)
                raise
            except BaseException:
                _tell(span, grpc.StatusCode.UNKNOWN)
                raise
            _tell(span, grpc.StatusCode.OK)


def _tell(span: Span, code: grpc.StatusCode) -> None:
    span.set_attribute(RPC_STATUS, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute(ERROR_TYPE, code.name)
        span.set_status(StatusCode.ERROR)
