import asyncio
import gzip

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from telemetry.tracing import service_name, tracing


@pytest.mark.parametrize(
    ("environ", "service"),
    [
        ({}, "gateway"),
        ({"OTEL_SERVICE_NAME": "theirs"}, "theirs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, "theirs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.service.name=x, service.name = theirs"}, "theirs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.service.name=x,my.service.version=9"}, "gateway"),
    ],
)
def test_service_name(monkeypatch, environ: dict[str, str], service: str) -> None:
    """The process names itself unless the operator names it."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    with tracing("gateway", environ) as provider:
        told = provider.resource.attributes
    assert (service, service) == (told["service.name"], service_name("gateway", environ))
    assert {"service.namespace", "service.version"} <= told.keys()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_no_proxy(monkeypatch, protocol: str) -> None:
    """A proxy that the environment names for the internet sees no span, and no header of a collector's."""
    connections = 0

    async def proxy(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    def trace(environ: dict[str, str]) -> None:
        with tracing("gateway", environ) as provider:
            provider.get_tracer("t").start_span("one").end()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        environ = {
            # Nothing listens there: the span is lost at once.
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.2:1",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "grpc_proxy"), url),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        await asyncio.to_thread(trace, environ)

    assert 0 == connections


def test_switched_off(monkeypatch) -> None:
    """OTEL_SDK_DISABLED leaves nothing to be sent."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    with tracing("gateway", {}) as provider:
        assert not provider.get_tracer("t").start_span("one").is_recording()


async def test_last_spans_are_sent_at_the_end(monkeypatch) -> None:
    """What is still in the queue when the process ends reaches the collector."""
    received: list[str] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            received.extend(span.name for scope in resource.scope_spans for span in scope.spans)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    def trace(endpoint: str) -> None:
        with tracing("gateway", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as provider:
            provider.get_tracer("t").start_span("the last one").end()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        await asyncio.to_thread(trace, endpoint)

    assert ["the last one"] == received
