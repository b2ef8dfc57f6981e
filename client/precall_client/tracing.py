"""A client span around a call, and its `traceparent` for the server, which continues the trace."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from opentelemetry.metrics import MeterProvider, get_meter
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

# Names of the RPC semantic conventions 1.44, which no package has as stable ones.
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
RPC_SYSTEM = "rpc.system.name"
RPC_SECONDS = "rpc.client.call.duration"
ERROR_TYPE = "error.type"
# As the conventions advise, with longer buckets for our longest calls.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 12.5, 15, 20, 30, 60)
SERVER_ADDRESS, SERVER_PORT = "server.address", "server.port"
W3C = TraceContextTextMapPropagator()


class Tracing:
    """Reports calls to `provider`, and their durations to `meters`; None is the process's own."""

    def __init__(self, provider: TracerProvider | None, meters: MeterProvider | None, target: str) -> None:
        self._server = _server(target)
        self._seconds = get_meter("precall.rpc", meter_provider=meters).create_histogram(
            RPC_SECONDS,
            unit="s",
            description="Calls that were answered.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._tracer = get_tracer("precall.rpc", tracer_provider=provider)

    @contextmanager
    def call(self, method: str) -> Iterator[list[tuple[str, str]]]:
        """Spans the block, and yields the metadata that the call has to carry.

        The span fails on every status but OK, and if the caller cancels the call or leaves a stream. It is
        not the current span in the block: where the block is within a generator, it would be that of whoever
        iterates, too.
        """
        span = self._tracer.start_span(
            method,
            kind=SpanKind.CLIENT,
            attributes={RPC_SYSTEM: "grpc", RPC_METHOD: method, **self._server},
        )
        began = time.perf_counter()
        code = grpc.StatusCode.UNKNOWN
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        try:
            yield [*carrier.items()]
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as failure:
            code = failure.code()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            _set_status(span, code)
            span.end()
            told = {RPC_SYSTEM: "grpc", RPC_METHOD: method, RPC_STATUS: code.name}
            if code is not grpc.StatusCode.OK:
                told[ERROR_TYPE] = code.name
            self._seconds.record(time.perf_counter() - began, told, set_span_in_context(span))


def _server(target: str) -> dict[str, str | int]:
    """The address and port of the server: `cloner:50051`, `dns:///cloner:50051`, `[::1]:50051`."""
    host, _, port = target.rpartition("/")[2].rpartition(":")
    if not host or not port.isdecimal():
        return {SERVER_ADDRESS: target}
    return {SERVER_ADDRESS: host.strip("[]"), SERVER_PORT: int(port)}


def _set_status(span: Span, code: grpc.StatusCode) -> None:
    span.set_attribute(RPC_STATUS, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute(ERROR_TYPE, code.name)
        span.set_status(StatusCode.ERROR)
