"""Makes the tracer provider of a process from the standard `OTEL_*` variables."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import Link, Span, StatusCode, Tracer, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry import flushing, otlp
from telemetry.facts import FactsOnSpans, note
from telemetry.losses import CountingProcessor, Losses
from telemetry.variables import DEFAULT_QUEUE, pairs

__all__ = [
    "EXPORT_MS",
    "described",
    "failing",
    "linked",
    "outliving",
    "own_trace",
    "provider_of",
    "service_name",
    "trace_id",
    "traceparent",
    "tracing",
    "word_of",
]

VERSION = version("precall")
W3C = TraceContextTextMapPropagator()
# How long sending the last spans may take, if nothing else is set.
EXPORT_MS = 30_000


@contextmanager
def tracing(
    service: str, environ: Mapping[str, str], *, losses: Losses | None = None
) -> Iterator[TracerProvider]:
    """Yields the process's tracer provider, and sends the remaining spans when the block ends.

    Sending takes OTEL_BSP_EXPORT_TIMEOUT at most; spans that a silent collector has not taken then are lost.

    `OTEL_TRACES_EXPORTER` is `otlp`, `console` or `none`; unset, spans go to the endpoint that
    `OTEL_EXPORTER_OTLP_ENDPOINT` names, and nowhere if it names none: then none is sampled. The SDK itself
    reads the sampler, batch, header, time-out and resource variables. A collector that is down or slow delays
    nothing: spans wait in a bounded queue and are dropped when it is full. It is reached directly: a proxy
    that `HTTP_PROXY` names is for the internet, and would see every span. Dropped spans are counted in
    `losses`.

    `environ` must hold no unusable values: see `telemetry.variables`.
    """
    last = otlp.LastTry()
    exporter = _exporter(environ, last)
    provider = provider_of(described(service, environ), ALWAYS_OFF if exporter is None else None)
    if exporter is not None:
        most = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE", DEFAULT_QUEUE))
        provider.add_span_processor(CountingProcessor(exporter, losses or Losses(), most=most, last=last))
    try:
        yield provider
    finally:
        # The SDK itself would wait for each batch in turn, half a minute together.
        flushing.run_within(int(environ.get("OTEL_BSP_EXPORT_TIMEOUT", EXPORT_MS)) / 1_000, provider.shutdown)


def described(service: str, environ: Mapping[str, str]) -> Resource:
    """The resource that the spans and metrics of this process belong to."""
    told = dict(pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    defaults = {"service.namespace": "precall", "service.version": VERSION}
    # Attributes that are passed win over those that the SDK reads from the environment.
    own = {name: told.get(name) or value for name, value in defaults.items()}
    return Resource.create({"service.name": service_name(service, environ), **own})


def service_name(process: str, environ: Mapping[str, str]) -> str:
    """What spans, metrics and log lines call the process: what the operator says, else its own name."""
    told = dict(pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    return environ.get("OTEL_SERVICE_NAME") or told.get("service.name") or process


def provider_of(resource: Resource, sampler: Sampler | None = None) -> TracerProvider:
    """A tracer provider that adds the facts about the current work to spans. It exports nothing yet."""
    # Its owner shuts it down, in order; an exit handler of the interpreter would not.
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(FactsOnSpans())
    return provider


def trace_id(span: Span) -> str:
    """The id of the trace that the span belongs to: 32 hex digits."""
    return format_trace_id(span.get_span_context().trace_id)


def traceparent() -> str:
    """The current span, stored for a link to it later, with the flag that says whether it is sampled."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return carrier.get("traceparent", "")


def linked(*traceparents: str) -> list[Link]:
    """Links to spans that were stored, each once."""
    contexts = [
        get_current_span(W3C.extract({"traceparent": kept}, Context())).get_span_context()
        for kept in dict.fromkeys(traceparents)
    ]
    return [Link(context) for context in contexts if context.is_valid]


@contextmanager
def outliving(tracer: Tracer, name: str) -> Iterator[None]:
    """A block of work that may go on after the request that began it was answered.

    If the request is over, the work gets a trace of its own, which links to the request's and tells its
    outcome.
    """
    origin = get_current_span()
    context = origin.get_span_context()
    if origin.is_recording() or not context.is_valid or not context.trace_flags.sampled:
        yield
        return
    with own_trace(tracer, name, [Link(context)]):
        yield


@contextmanager
def own_trace(tracer: Tracer, name: str, links: Sequence[Link]) -> Iterator[None]:
    """A block of work with a trace of its own, whose span tells the outcome.

    That is success, unless the block raises or notes another one.
    """
    with (
        tracer.start_as_current_span(
            name, context=Context(), links=links, record_exception=False, set_status_on_exception=False
        ) as span,
        failing(span),
    ):
        note(outcome="success")
        try:
            yield
        except Exception as failure:
            note(outcome="error", reason=word_of(failure))
            raise
        except asyncio.CancelledError:
            note(outcome="abandoned")
            raise


@contextmanager
def failing(span: Span) -> Iterator[None]:
    """Fails the span if the block raises. The text of an exception can hold anything, so it is left out."""
    try:
        yield
    except (Exception, asyncio.CancelledError) as failure:
        span.set_attribute(ERROR_TYPE, word_of(failure))
        span.set_status(StatusCode.ERROR)
        raise


def word_of(failure: BaseException) -> str:
    """The reason that a failure of ours names, in capitals, or else its type."""
    if isinstance(failure, asyncio.CancelledError):
        return "cancelled"
    reason = getattr(failure, "reason", None)
    return reason if isinstance(reason, str) and reason.isupper() else type(failure).__qualname__


def _exporter(environ: Mapping[str, str], last: otlp.LastTry) -> SpanExporter | None:
    default = "otlp" if otlp.names_endpoint(environ, "TRACES") else "none"
    match environ.get("OTEL_TRACES_EXPORTER", default).lower():
        case "otlp":
            return _otlp(environ, last)
        case "console":
            return ConsoleSpanExporter()
        case _:
            return None


def _otlp(environ: Mapping[str, str], last: otlp.LastTry) -> SpanExporter:
    # Each exporter costs a quarter of a second to import; a process needs one at most.
    if otlp.is_over_grpc(environ, "TRACES"):
        from telemetry.spans_over_grpc import SpansOverGrpc

        return SpansOverGrpc(environ, last)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(session=otlp.session(last))
