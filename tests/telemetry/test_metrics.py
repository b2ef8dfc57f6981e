import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from telemetry.losses import CountingProcessor, Losses
from telemetry.metrics import NOWHERE, duration, observing
from telemetry.prometheus import MOST_AT_ONCE

Use = Callable[[dict[str, str]], None]


@contextmanager
def collector(
    metrics: list[Metric], *, meet: Callable[[str], object] = lambda _: None, status: int = 200
) -> Iterator[str]:
    """Takes in metrics over OTLP/HTTP; `meet` is called with the path before each answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            meet(self.path)
            if self.path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    metrics.extend(metric for scope in resource.scope_metrics for metric in scope.metrics)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Writes nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def settings(monkeypatch) -> Callable[[dict[str, str]], dict[str, str]]:
    """Puts these variables into the environment, where the SDK reads some of them, and returns them."""

    def put(environ: dict[str, str]) -> dict[str, str]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return environ

    return put


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"}
# Each protocol, and why nothing can be sent over it where nobody listens.
NOBODY = [("http/protobuf", "ConnectionError|ConnectTimeout"), ("grpc", "UNAVAILABLE|DEADLINE_EXCEEDED")]


@pytest.mark.parametrize(
    ("environ", "is_measured"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1/v1/metrics"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, False),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}, True),
    ],
    ids=str,
)
def test_choice(settings, environ: dict[str, str], *, is_measured: bool) -> None:
    """Metrics go where they are sent, else where spans go; where they go nowhere, nothing is measured."""
    with observing("gateway", settings({**environ, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"})) as (_, meters):
        assert is_measured == (meters is not NOWHERE)


def test_last_metrics(settings) -> None:
    """What was measured last is sent when the process ends."""
    received: list[Metric] = []
    with collector(received) as endpoint:
        environ = settings({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        with observing("gateway", environ) as (_, meters):
            meters.get_meter("t").create_counter("the.last").add(7)

    (last,) = (metric for metric in received if metric.name == "the.last")
    assert 7 == last.sum.data_points[0].as_int


def test_side_by_side(settings) -> None:
    """At the end spans and metrics are sent at the same time: a collector that is slow costs the time of one."""
    both, paths = threading.Barrier(2), set()

    def meet(path: str) -> None:
        both.wait(10)
        paths.add(path)

    with collector([], meet=meet) as endpoint:
        environ = settings({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "20"})
        with observing("gateway", environ) as (tracers, meters):
            tracers.get_tracer("t").start_span("the last").end()
            meters.get_meter("t").create_counter("the.last").add(1)

    assert {"/v1/traces", "/v1/metrics"} == paths


def test_no_place_for_metrics(settings, capsys) -> None:
    """A collector that takes no metrics, as Jaeger, is asked once, and the log says so."""
    paths: list[str] = []
    with collector([], meet=paths.append, status=404) as endpoint:
        environ = settings({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        with observing("gateway", environ) as (_, meters):
            meters.get_meter("t").create_counter("some").add(1)
            for _ in range(3):
                meters.force_flush()

    assert ["/v1/metrics"] == paths
    assert 1 == capsys.readouterr().out.count("the collector takes no metrics")


@pytest.mark.parametrize(("ratio", "carried"), [("1.0", True), ("0.0", False)])
def test_exemplars(settings, ratio: str, *, carried: bool) -> None:
    """Over OTLP a measurement carries the id of the trace that it was taken in, if that is sampled."""
    received: list[Metric] = []
    with collector(received) as endpoint:
        environ = settings({
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio,
        })  # fmt: skip
        with observing("gateway", environ) as (tracers, meters):
            histogram = duration(meters.get_meter("t"), "took", "Took.")
            with tracers.get_tracer("t").start_as_current_span("work") as span:
                histogram.record(0.2)

    (took,) = (metric for metric in received if metric.name == "took")
    trace_id = span.get_span_context().trace_id.to_bytes(16, "big")
    found = [exemplar.trace_id for exemplar in took.histogram.data_points[0].exemplars]
    assert ([trace_id] if carried else []) == found


class Waiting(SpanExporter):
    """Takes spans when it is told to."""

    def __init__(self) -> None:
        self.asked, self.told = threading.Event(), threading.Event()
        self.answer = SpanExportResult.SUCCESS
        self.received = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.told.wait()
        self.received += len(spans)
        return self.answer


def test_dropped_spans(monkeypatch) -> None:
    """Every span that finds the queue full is counted, and no other."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    exporter, losses = Waiting(), Losses()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CountingProcessor(exporter, losses, most=3))
    tracer = provider.get_tracer("t")

    tracer.start_span("is sent").end()
    exporter.asked.wait()
    for _ in range(10):
        tracer.start_span("waits, or is dropped").end()
    dropped = losses.spans
    exporter.told.set()
    provider.shutdown()

    assert 7 == dropped == losses.spans
    assert 4 == exporter.received


def test_spans_that_nobody_took() -> None:
    """What the collector does not take is lost and counted. The log says so once, and again at the end."""
    exporter, losses = Waiting(), Losses()
    exporter.told.set()
    exporter.answer = SpanExportResult.FAILURE
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CountingProcessor(exporter, losses))
    with capture_logs() as told:
        for _ in range(3):
            provider.get_tracer("t").start_span("is refused").end()
            provider.force_flush()
        provider.shutdown()

    assert 3 == losses.spans
    assert [("spans could not be sent, see to the collector", spans) for spans in (1, 2)] == [
        (line["event"], line["spans"]) for line in told
    ]


def why_lost(environ: dict[str, str]) -> list[str]:
    """Why a span could not be sent, as often as the log says so."""
    with capture_logs() as told, observing("gateway", environ) as (tracers, _):
        tracers.get_tracer("t").start_span("is lost").end()
    return [line["why"] for line in told]


@pytest.mark.parametrize(("protocol", "why"), NOBODY)
def test_no_collector(settings, protocol: str, why: str) -> None:
    """Where nobody listens, the log says why spans are lost, over either protocol."""
    (told,) = why_lost(
        settings({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_METRICS_EXPORTER": "none"})
    )

    assert re.fullmatch(why, told)


def test_collector_that_refuses(settings) -> None:
    """The log says with which status, and nothing else of it."""
    with collector([], status=401) as endpoint:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{endpoint}/?key=secret", "OTEL_METRICS_EXPORTER": "none"}
        told = why_lost(settings(environ))

    assert ["401"] == told


@pytest.mark.parametrize(("protocol", "why"), NOBODY)
def test_metrics_that_nobody_takes(settings, protocol: str, why: str) -> None:
    """The log says so once, however often they are sent, and why."""
    environ = settings({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    with capture_logs() as told, observing("gateway", environ) as (_, meters):
        meters.get_meter("t").create_counter("some").add(1)
        for _ in range(2):
            meters.force_flush()

    assert [("metrics could not be sent, see to the collector", 1)] == [
        (line["event"], line["times"]) for line in told
    ]
    assert re.fullmatch(why, told[0]["why"])


def test_dropped_is_a_metric(settings) -> None:
    """The metrics say how many spans were dropped."""
    received: list[Metric] = []
    with collector(received) as endpoint:
        environ = settings({
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{endpoint}/v1/metrics",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "0.1", "OTEL_METRIC_EXPORT_INTERVAL": "50",
        })  # fmt: skip
        with observing("gateway", environ) as (tracers, _):
            tracers.get_tracer("t").start_span("is refused").end()
            tracers.force_flush()
            before = len(received)
            ends = time.monotonic() + 10
            while len(received) == before and time.monotonic() < ends:
                time.sleep(0.01)

    last = [metric for metric in received if metric.name == "precall.telemetry.dropped"][-1]
    (point,) = last.sum.data_points
    assert (1, [("precall.signal", "spans")]) == (
        point.as_int,
        [(attribute.key, attribute.value.string_value) for attribute in point.attributes],
    )


@contextmanager
def fetched(settings, capsys, **environ: str) -> Iterator[str]:
    """A process whose metrics can be fetched, and where; or what the log says instead."""
    chosen = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0", **environ}
    with observing("gateway", settings(chosen)) as (_, meters):
        meters.get_meter("t").create_counter("some").add(1)
        told = capsys.readouterr().out
        found = re.search(r"http://\S+/metrics", told)
        yield found[0] if found else told


@pytest.mark.long
async def test_flood(settings, capsys) -> None:
    """Those who are silent, or too many, keep each other out, take no thread, and are gone after a while."""
    with fetched(settings, capsys) as url:
        where = httpx.URL(url)
        before = threading.active_count()
        silent = [await asyncio.open_connection(where.host, where.port) for _ in range(MOST_AT_ONCE)]
        # All at one moment: they come faster than they are accepted.
        turned_away = await asyncio.gather(
            *(asyncio.open_connection(where.host, where.port) for _ in range(100))
        )
        async with asyncio.timeout(60):
            answers = [await reader.read() for reader, _ in turned_away]
            busy = threading.active_count()
            for reader, _ in silent:
                await reader.read()
        for _, writer in (*silent, *turned_away):
            writer.close()
        async with httpx.AsyncClient(verify=False) as http, asyncio.timeout(60):
            while True:
                try:
                    answer = await http.get(url)
                    break
                except httpx.TransportError:  # the pause after each of those before
                    await asyncio.sleep(0.01)

    assert [b""] * 100 == answers
    assert busy <= before + MOST_AT_ONCE
    assert "some_total 1.0" in answer.text


def test_port_taken(settings, capsys) -> None:
    """Where nothing can listen, the log says so, and the process goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"OTEL_EXPORTER_PROMETHEUS_PORT": port, "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1"}
        with fetched(settings, capsys, **environ) as told:
            assert "metrics cannot be fetched" in told
            assert f"127.0.0.1:{port}" in told
