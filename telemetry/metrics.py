"""Makes the meter provider of a process from the standard `OTEL_*` variables.

`OTEL_METRICS_EXPORTER` is `otlp`, `prometheus`, `console` or `none`. Unset, metrics go where spans go:
to the endpoint that `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` names, and nowhere
if neither does. With `none` nothing is measured at all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread

from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
)
from opentelemetry.sdk.metrics import MeterProvider as RecordingProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider

from telemetry import flushing, otlp
from telemetry.losses import Losses
from telemetry.tracing import EXPORT_MS, described, tracing

__all__ = [
    "DURATIONS",
    "NOWHERE",
    "Providers",
    "duration",
    "observe",
    "observe_buffer",
    "observing",
    "parts_of_delivery",
]

# As the conventions for HTTP and RPC advise, with longer buckets for our budgets.
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 12.5, 15, 20, 30, 60)
TIMEOUTS = ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_METRIC_EXPORT_TIMEOUT")
NOWHERE: MeterProvider = NoOpMeterProvider()
"""Where metrics go if nobody wants them: nothing is measured."""

Providers = tuple[TracerProvider, MeterProvider]


@contextmanager
def observing(service: str, environ: Mapping[str, str]) -> Iterator[Providers]:
    """Yields the tracer and the meter provider of the process, and sends what is left when the block ends.

    Spans and metrics are sent at the same time then, so that a silent collector delays the end only once:
    by OTEL_BSP_EXPORT_TIMEOUT at most, and for metrics by OTEL_METRIC_EXPORT_TIMEOUT if that is less.
    `environ` must hold no unusable values: see `telemetry.variables`.
    """
    losses = Losses()
    meters, close = _metering(service, environ, losses)
    seconds = min(int(environ.get(name, EXPORT_MS)) for name in TIMEOUTS) / 1_000
    closing = Thread(target=flushing.run_within, args=(seconds, close), daemon=True)
    try:
        with tracing(service, environ, losses=losses) as tracers:
            try:
                yield tracers, meters
            finally:
                closing.start()
    finally:
        if closing.ident is not None:  # else tracing failed before anything could be sent
            closing.join()


def duration(
    meter: Meter, name: str, description: str, *, buckets: tuple[float, ...] = DURATIONS
) -> Histogram:
    """A histogram of seconds."""
    return meter.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=buckets
    )


def parts_of_delivery(meter: Meter) -> Callable[[Mapping[str, float]], None]:
    """Records the seconds of each part of a delivery, in whichever process they were spent."""
    histogram = duration(meter, "precall.delivery.part.duration", "What the time of a delivery is spent on.")

    def record(parts: Mapping[str, float]) -> None:
        for name, seconds in parts.items():
            histogram.record(seconds, {"precall.part": name})

    return record


def observe(
    meter: Meter,
    name: str,
    description: str,
    values: Callable[[], Mapping[str, float] | float | None],
    *,
    key: str = "",
    unit: str = "",
) -> None:
    """A gauge of what `values` says when metrics are collected: a number, or one for each value of `key`.

    `values` is called in a thread of its own, and must only look at what is in memory.
    """

    def look(_: CallbackOptions) -> list[Observation]:
        found = values()
        if found is None:
            return []
        if isinstance(found, Mapping):
            return [Observation(value, {key: name}) for name, value in found.items()]
        return [Observation(found)]

    meter.create_observable_gauge(name, [look], unit=unit, description=description)


def observe_buffer(meter: Meter, kind: str, used: Callable[[], int], limit: int) -> None:
    """Two gauges: how many bytes of a kind a process holds, and how many it may hold."""

    def observe_one(name: str, description: str, size: Callable[[], int]) -> None:
        observe(meter, name, description, lambda: {kind: size()}, key="precall.buffer", unit="By")

    observe_one("precall.buffer.used", "Bytes that are held.", used)
    observe_one("precall.buffer.limit", "Bytes that may be held.", lambda: limit)


def _metering(
    service: str, environ: Mapping[str, str], losses: Losses
) -> tuple[MeterProvider, Callable[[], None]]:
    """The meter provider, and what sends the rest of its metrics and closes it."""
    reader = None if environ.get("OTEL_SDK_DISABLED") == "true" else _reader(environ)
    if reader is None:
        return NOWHERE, lambda: None
    provider = RecordingProvider([reader], described(service, environ), shutdown_on_exit=False)
    provider.get_meter("precall.telemetry").create_observable_counter(
        "precall.telemetry.dropped",
        [lambda _: [Observation(losses.spans, {"precall.signal": "spans"})]],
        unit="{span}",
        description="Spans that were dropped, because too many waited or the collector did not take them.",
    )
    return provider, partial(_close, provider)


def _close(provider: RecordingProvider) -> None:
    # The failure is in the log. Raised here, it would only be logged again, with a traceback.
    with suppress(Exception):
        provider.shutdown(EXPORT_MS)


def _reader(environ: Mapping[str, str]) -> MetricReader | None:
    default = environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if otlp.names_endpoint(environ, "METRICS") else "none"
    )
    match environ.get("OTEL_METRICS_EXPORTER", default).lower():
        case "otlp":
            return PeriodicExportingMetricReader(_otlp(environ))
        case "console":
            return PeriodicExportingMetricReader(ConsoleMetricExporter())
        case "prometheus":
            # Imported only when it is asked for, because its library is not needed otherwise.
            from telemetry.prometheus import scraped

            return scraped(environ)
        case _:
            return None


def _otlp(environ: Mapping[str, str]) -> MetricExporter:
    # Each exporter costs a quarter of a second to import; a process needs one at most.
    if otlp.is_over_grpc(environ, "METRICS"):
        from telemetry.metrics_over_grpc import MetricsOverGrpc

        return MetricsOverGrpc(environ)
    from telemetry.metrics_over_http import MetricsOverHttp

    return MetricsOverHttp()
