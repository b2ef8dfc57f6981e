"""Makes the tracer provider of a process from the standard `OTEL_*` variables."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import cast

import grpc
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import Link, Span, Tracer, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry import parting
from telemetry.facts import FactsOnSpans

__all__ = ["described", "linked", "outliving", "provider_of", "trace_id", "traceparent", "tracing"]

VERSION = version("precall")
W3C = TraceContextTextMapPropagator()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORT_MS = 30_000
COMPRESSIONS = ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")


@contextmanager
def tracing(service: str, environ: Mapping[str, str]) -> Iterator[TracerProvider]:
    """Yields the process's tracer provider and sends what is left when the block ends.

    That takes OTEL_BSP_EXPORT_TIMEOUT at most; what a silent collector has not taken by then is lost.

    `OTEL_TRACES_EXPORTER` is `otlp`, `console` or `none`; unset, spans go to the endpoint that
    `OTEL_EXPORTER_OTLP_ENDPOINT` names, and nowhere if it names none: then none is sampled. The SDK
    itself reads the sampler, batch, header, time-out and resource variables. A collector that is down or slow
    delays nothing: spans wait in a bounded queue and are dropped when it is full. It is spoken to
    directly: a proxy that `HTTP_PROXY` names is for the internet, and would see every span.

    `environ` must be without what cannot be used: see `telemetry.variables`.
    """
    exporter = _exporter(environ)
    provider = provider_of(described(service, environ), ALWAYS_OFF if exporter is None else None)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider
    finally:
        # The SDK itself would wait for each batch in turn, half a minute together.
        parting.within(int(environ.get("OTEL_BSP_EXPORT_TIMEOUT", EXPORT_MS)) / 1_000, provider.shutdown)


def described(service: str, environ: Mapping[str, str]) -> Resource:
    """What the spans of this process are of."""
    # Attributes passed here would win over the environment, so these are only defaults.
    told = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    defaults = {"service.name": service, "service.namespace": "precall", "service.version": VERSION}
    if environ.get("OTEL_SERVICE_NAME"):
        del defaults["service.name"]
    return Resource.create({name: value for name, value in defaults.items() if f"{name}=" not in told})


def provider_of(resource: Resource, sampler: Sampler | None = None) -> TracerProvider:
    """A tracer provider whose spans say what is known of the work at hand. It exports nothing yet."""
    # Shut down by whoever has it, in order, rather than by the interpreter at exit.
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(FactsOnSpans())
    return provider


def trace_id(span: Span) -> str:
    """The id of the trace that the span belongs to: 32 hex digits."""
    return format_trace_id(span.get_span_context().trace_id)


def traceparent() -> str:
    """The current span, to be kept for a link to it later, with the flag that says whether it is sampled."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return carrier.get("traceparent", "")


def linked(*traceparents: str) -> list[Link]:
    """Links to spans that were kept, each once."""
    contexts = [
        get_current_span(W3C.extract({"traceparent": kept}, Context())).get_span_context()
        for kept in dict.fromkeys(traceparents)
    ]
    return [Link(context) for context in contexts if context.is_valid]


def outliving(tracer: Tracer, name: str) -> AbstractContextManager[object]:
    """A block of work that may come after the request that began it was answered.

    Where that is so, it has a trace of its own, which links to the request's.
    """
    origin = get_current_span()
    context = origin.get_span_context()
    if origin.is_recording() or not context.is_valid or not context.trace_flags.sampled:
        return nullcontext()
    return tracer.start_as_current_span(
        name, context=Context(), links=[Link(context)], record_exception=False, set_status_on_exception=False
    )


def _exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    endpoint = any(environ.get(name) for name in ENDPOINTS)
    match environ.get("OTEL_TRACES_EXPORTER", "otlp" if endpoint else "none").lower():
        case "otlp":
            return _otlp(environ)
        case "console":
            return ConsoleSpanExporter()
        case _:
            return None


def _otlp(environ: Mapping[str, str]) -> SpanExporter:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL"))
    # Each exporter costs a quarter of a second to import; a process needs one at most.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        compression = next((environ[name] for name in COMPRESSIONS if name in environ), "none")
        # The options' type in the SDK knows no numbers.
        return OverGrpc(
            compression=grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression,
            channel_options=cast("tuple[tuple[str, str]]", (("grpc.enable_http_proxy", 0),)),
        )
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    session = requests.Session()
    session.trust_env = False
    return OverHttp(session=session)
