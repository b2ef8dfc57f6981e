"""Sends metrics over OTLP/gRPC."""

from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from telemetry import otlp
from telemetry.losses import UnsentMetrics

__all__ = ["MetricsOverGrpc"]


class MetricsOverGrpc(otlp.NotingGrpc, OTLPMetricExporter):
    """The SDK's own exporter, whose complaints are silenced; this says once a minute what counts."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.last = otlp.LastTry()
        self._unsent = UnsentMetrics(self.last)
        super().__init__(compression=otlp.compression(environ, "METRICS"), channel_options=otlp.DIRECTLY)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        self.last.why = otlp.NOT_TRIED
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self._unsent.look(result)
        return result
