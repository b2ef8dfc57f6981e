"""Sends metrics over OTLP/HTTP, and pauses for long if the collector, such as Jaeger, takes none."""

import time
from typing import Any

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from telemetry import otlp
from telemetry.losses import UnsentMetrics

__all__ = ["MetricsOverHttp"]

log = structlog.get_logger()

# The answers of a collector that takes no metrics, and how long it is then not asked again.
NO_PLACE = frozenset({404, 405})
REST_SECONDS = 3_600.0


class MetricsOverHttp(OTLPMetricExporter):
    """The SDK's own exporter, which would complain about such a collector once a minute."""

    def __init__(self) -> None:
        self._rests_until = 0.0
        self._last = otlp.LastTry()
        self._unsent = UnsentMetrics(self._last)
        session = otlp.session(self._last)
        session.hooks["response"].append(self._look)
        super().__init__(session=session)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        if time.monotonic() < self._rests_until:
            return MetricExportResult.SUCCESS
        self._last.why = otlp.NOT_TRIED
        result = super().export(metrics_data, timeout_millis, **kwargs)
        if time.monotonic() >= self._rests_until:
            self._unsent.look(result)
        return result

    def _look(self, response: Any, *_: Any, **__: Any) -> None:
        if response.status_code in NO_PLACE:
            self._rests_until = time.monotonic() + REST_SECONDS
            log.warning("the collector takes no metrics, see OTEL_METRICS_EXPORTER")
