"""Makes the tracer provider of a process from the standard `OTEL_*` variables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, format_trace_id

from environment import EnvironmentInvalid

__all__ = ["trace_id", "tracing"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@contextmanager
def tracing(service: str, environ: Mapping[str, str]) -> Iterator[TracerProvider]:
    """Yields the process's tracer provider and sends what is left when the block ends.

    `OTEL_TRACES_EXPORTER` is `otlp`, `console` or `none`; unset, spans go to the endpoint that
    `OTEL_EXPORTER_OTLP_ENDPOINT` names, and nowhere if it names none. The SDK itself reads the
    sampler, batch, header, time-out and resource variables. A collector that is down or slow
    delays nothing: spans wait in a bounded queue and are dropped when it is full.

    Raises EnvironmentInvalid for an exporter or a protocol that is not known.
    """
    exporter = _exporter(environ)
    # Attributes passed here would win over the environment, so the name is only a default.
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    # Shut down below, in order, rather than by the interpreter at exit.
    provider = TracerProvider(
        resource=Resource.create() if named else Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider
    finally:
        provider.shutdown()


def trace_id(span: Span) -> str:
    """The id of the trace that the span belongs to: 32 hex digits."""
    return format_trace_id(span.get_span_context().trace_id)


def _exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    endpoint = any(environ.get(name) for name in ENDPOINTS)
    match environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none"):
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter()
        case "otlp":
            return _otlp(environ)
    raise EnvironmentInvalid("OTEL_TRACES_EXPORTER: expected otlp, console or none")


def _otlp(environ: Mapping[str, str]) -> SpanExporter:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    # Each exporter costs a quarter of a second to import; a process needs one at most.
    if protocol in (None, "", "http/protobuf"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    raise EnvironmentInvalid("OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf or grpc")
