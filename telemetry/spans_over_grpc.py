"""Sends spans over OTLP/gRPC."""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

from telemetry import otlp

__all__ = ["SpansOverGrpc"]


class SpansOverGrpc(otlp.NotingGrpc, OTLPSpanExporter):
    """The SDK's own exporter, which notes how each try ended."""

    def __init__(self, environ: Mapping[str, str], last: otlp.LastTry) -> None:
        self.last = last
        super().__init__(compression=otlp.compression(environ, "TRACES"), channel_options=otlp.DIRECTLY)
