import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from precall_client import PrecallError, connect
from prometheus_client.parser import text_string_to_metric_families

from emulator import NO_LATENCY, Emulator, Fault, Settings
from tests.kit.forked import started
from tests.system.signing import event, signed

pytestmark = pytest.mark.long

SECRET = "secret-of-the-webhook"
API_KEY = "key-of-the-emulator"
POST_CALL = {
    "type": "post_call_transcription",
    "data": {"agent_id": "agent_demo", "conversation_id": "conv_1"},
}
ROOT = Path(__file__).parents[2]
ACCOUNT = "/v1/user/subscription"


class Row(NamedTuple):
    """A metric, as docs/METRICS.md has it."""

    prometheus: str
    process: str
    unit: str
    attributes: frozenset[str]


def documented(process: str) -> dict[str, Row]:
    """The metrics of a process, by their names."""
    rows: dict[str, Row] = {}
    for line in (ROOT / "docs" / "METRICS.md").read_text().splitlines():
        if not line.startswith("| `"):
            continue
        name, prometheus, whose, unit, attributes, _ = (part.strip() for part in line.strip("|").split("|"))
        if whose in (process, "both"):
            rows[name.strip("`")] = Row(
                prometheus.strip("`"), whose, unit.strip("`"), frozenset(re.findall(r"`([^`]+)`", attributes))
            )
    return rows


class System:
    """Two real processes in front of the emulator."""

    def __init__(self, http: httpx.AsyncClient, gateway: str, cloner: str, speech: bytes) -> None:
        self.http = http
        self.gateway = gateway
        self.cloner = cloner
        self.metrics: dict[str, str] = {}
        self.processes: list[asyncio.subprocess.Process] = []
        self._speech = speech

    async def deliver(self, *, secret: str = SECRET, **changes: Any) -> httpx.Response:
        """One delivery."""
        data = {"format": "base64", "data": base64.b64encode(self._speech).decode()}
        return await self.send("/webhook", {**event(**changes), "voice_sample": data}, secret=secret)

    async def send(self, path: str, content: dict[str, Any], *, secret: str = SECRET) -> httpx.Response:
        """One signed request."""
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "ElevenLabs-Signature": signed(body, secret=secret)}
        return await self.http.post(self.gateway + path, content=body, headers=headers)

    async def fetch(self, process: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
        """What a Prometheus server would fetch: the series of each sample, and their values."""
        found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await self.http.get(self.metrics[process])
                    break
                except httpx.TransportError:  # more than may ask at once
                    await asyncio.sleep(0.05)
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        return found

    async def stop(self) -> list[int | None]:
        """Stops the gateway, then the cloner; their exit statuses."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await process.communicate()
        return [process.returncode for process in self.processes]


Running = Callable[..., Awaitable[System]]


@pytest.fixture
def emulator() -> Emulator:
    """A provider that counts what is added in a month."""
    return Emulator(
        Settings(
            api_key=API_KEY, latency=NO_LATENCY, create_latency=NO_LATENCY, voice_limit=500, monthly_limit=100
        )
    )


@pytest.fixture
async def running(emulator_url: str, sqlite: str, speech: bytes) -> AsyncIterator[Running]:
    """Starts both processes with these settings."""
    async with AsyncExitStack() as stack:

        async def process(name: str, told: str, **settings: str) -> tuple[Any, list[str]]:
            """Starts one; returns it and what the lines say up to the one that says that it serves."""
            environ = {"PATH": os.environ["PATH"], **settings}
            begun = await stack.enter_async_context(started(name, environ=environ))
            lines: list[str] = []
            async with asyncio.timeout(60):
                while not lines or told not in lines[-1]:
                    lines.append((await begun.stdout.readline()).decode())
                    assert lines[-1], lines
            return begun, lines

        async def start(**settings: str) -> System:
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, verify=False))
            cloner, of_cloner = await process(
                "cloner", "cloner ready on ", ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url,
                CLONER_PORT="0", DATABASE_URL=sqlite, AUDIO_WORKERS="1", DRAIN_SECONDS="0", **settings,
            )  # fmt: skip
            target = of_cloner[-1].split()[-1]
            gateway, of_gateway = await process(
                "gateway", "gateway ready on ", ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=target,
                PRECALL_WEBHOOK_HOST="127.0.0.1", PRECALL_WEBHOOK_PORT="0", **settings,
            )  # fmt: skip
            system = System(http, of_gateway[-1].split()[-1], target, speech)
            system.processes = [cloner, gateway]
            for name, lines in (("cloner", of_cloner), ("gateway", of_gateway)):
                if found := re.search(r"url=(\S+/metrics)", "".join(lines)):
                    system.metrics[name] = found[1]
            return system

        yield start


async def everything(system: System, emulator: Emulator) -> httpx.Response:
    """Has everything happen that is measured; the answer to the delivery."""
    async with asyncio.timeout(60):
        # For the key, and for the figures.
        while [request.path for request in emulator.requests].count(ACCOUNT) < 2:
            await asyncio.sleep(0.01)
    emulator.faults.set(Fault(method="GET", path="/v1/convai/agents/{agent_id}", error="service_unavailable"))
    answer = await system.deliver()
    assert 200 == answer.status_code, answer.text
    assert 401 == (await system.deliver(secret="another")).status_code
    assert 200 == (await system.send("/webhook/post-call", POST_CALL)).status_code
    reader, writer = await asyncio.open_connection(
        httpx.URL(system.gateway).host, httpx.URL(system.gateway).port
    )
    writer.write(b"this is not HTTP\r\n\r\n")
    assert b"400" in await reader.read()
    writer.close()
    return answer


def names(labels: Iterable[Iterable[tuple[str, str]]]) -> set[str]:
    """The names of labels that are not empty, without a histogram's own."""
    return {name for one in labels for name, value in one if value} - {"le"}


async def test_prometheus(running: Running, emulator: Emulator) -> None:
    """docs/METRICS.md lists what Prometheus fetches of both processes, and nothing else; both then end well."""
    system = await running(OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT="0")
    await everything(system, emulator)

    for process in ("gateway", "cloner"):
        found = await system.fetch(process)
        rows = documented(process)
        expected = {
            name
            for row in rows.values()
            for name in (
                [row.prometheus[:-1] + end for end in ("_bucket", "_count", "_sum")]
                if row.prometheus.endswith("*")
                else [row.prometheus]
            )
        }
        assert expected == found.keys() - {"target_info"}
        for row in rows.values():
            labels = names(found[row.prometheus.replace("*", "_count")])
            assert labels <= {attribute.replace(".", "_") for attribute in row.attributes}, row
    assert [0, 0] == await system.stop()


async def test_figures(running: Running, emulator: Emulator) -> None:
    """The figures are those of what happened."""
    system = await running(OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT="0")
    await everything(system, emulator)
    gateway, cloner = await system.fetch("gateway"), await system.fetch("cloner")

    def one(found: Any, name: str, **labels: str) -> float:
        (value,) = (value for series, value in found[name].items() if labels.items() <= dict(series).items())
        return value

    outcome = {"precall_route": "/webhook", "precall_outcome": "success", "precall_voice_reused": "false"}
    assert 1 == one(gateway, "precall_deliveries_total", **outcome)
    assert 1 == one(gateway, "precall_deliveries_total", precall_reason="SIGNATURE_MISMATCH")
    assert 1 == one(
        gateway,
        "precall_signature_failures_total",
        precall_route="/webhook",
        precall_reason="SIGNATURE_MISMATCH",
    )
    assert 1 == one(gateway, "precall_call_events_total", precall_outcome="call_ended")
    assert 1 == one(gateway, "precall_connections_refused_total", precall_why="unreadable")
    assert 0 == one(gateway, "precall_telemetry_dropped_total")
    assert 0 == one(gateway, "precall_buffer_used_bytes")
    assert 1 == one(
        gateway,
        "http_server_request_duration_seconds_count",
        http_route="/webhook",
        http_response_status_code="401",
    )
    method = {"rpc_method": "precall.v1.CloningService/PrepareCall", "rpc_response_status_code": "OK"}
    assert 1 == one(gateway, "rpc_client_call_duration_seconds_count", **method)
    assert 1 == one(cloner, "rpc_server_call_duration_seconds_count", **method)
    assert 1 == one(cloner, "precall_clone_duration_seconds_count", precall_outcome="success")
    read = {"precall_provider_operation": "read_agent", "precall_reason": "PROVIDER_UNAVAILABLE"}
    assert 1 == one(cloner, "precall_provider_requests_total", **read)
    assert 1 == one(cloner, "precall_provider_retries_total", **read)
    assert 1 == one(
        cloner, "precall_client_requests_total",
        precall_client="anybody", rpc_method="precall.v1.CloningService/PrepareCall", precall_outcome="success",
    )  # fmt: skip
    assert 0 == one(
        cloner, "precall_provider_requests_total",
        precall_provider_operation="clone", precall_reason="PROVIDER_UNAUTHORIZED",
    )  # fmt: skip
    assert 500 == one(cloner, "precall_provider_slots_limit")


async def test_strangers(running: Running) -> None:
    """Whatever strangers send, odd paths, methods, agents and events, there are no more series than before."""
    system = await running(
        OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT="0",
        CLONER_TOKEN="a-token-that-is-long-enough", RATE_LIMIT_AGENT="off",
    )  # fmt: skip

    async def send(turn: int) -> None:
        http, url = system.http, system.gateway
        await http.get(f"{url}/odd-{turn}")
        await http.post(f"{url}/webhook/odd-{turn}?q={turn}")
        await http.request(f"ODD{turn}", f"{url}/webhook")
        await http.post(
            f"{url}/webhook",
            headers={"User-Agent": f"odd-{turn}", "Host": f"odd-{turn}", "X-Forwarded-Proto": f"odd{turn}"},
        )
        await system.deliver(secret="another", agent_id=f"agent_{turn}", conversation_id=f"odd_{turn}")
        await system.send("/webhook/post-call", {**POST_CALL, "type": f"odd_{turn}"})
        ended = {"agent_id": f"agent_{turn}", "conversation_id": f"odd_{turn}"}
        await system.send("/webhook/post-call", {**POST_CALL, "data": ended})
        async with grpc.aio.insecure_channel(system.cloner) as channel:
            for method in (f"/odd.v{turn}.Service/Odd{turn}", f"/precall.v1.CloningService/Odd{turn}"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(method)(
                        b"", metadata=(("authorization", f"Bearer odd-{turn}"),)
                    )
        async with connect(system.cloner, token=f"odd-{turn}") as precall:
            with pytest.raises(PrecallError):
                await precall.get_usage()

    async def series() -> set[Any]:
        return {
            (process, name, one)
            for process in ("gateway", "cloner")
            for name, found in (await system.fetch(process)).items()
            for one in found
        }

    await send(0)
    before = await series()
    for turn in range(1, 15):
        await send(turn)
    after = await series()

    # What the janitor does meanwhile is no stranger's.
    grown = {one for one in after - before if "registry_transaction" not in one[1]}
    assert set() == grown
    assert not any("odd" in value.lower() for _, _, one in after for _, value in one)


@asynccontextmanager
async def collecting(received: dict[str, list[Metric]]) -> AsyncIterator[str]:
    """Takes in metrics over OTLP/HTTP, by the process that sends them."""
    writers: list[asyncio.StreamWriter] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
                body = await reader.readexactly(length)
                if b"/v1/metrics" in head:
                    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                        attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
                        for scope in resource.scope_metrics:
                            received.setdefault(attributes["service.name"], []).extend(scope.metrics)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(collect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for each in (*writers, server):
            each.close()


async def test_otlp(running: Running, emulator: Emulator) -> None:
    """docs/METRICS.md lists what is sent at the end, with its units; exemplars carry the delivery's trace id."""
    received: dict[str, list[Metric]] = {}
    async with collecting(received) as endpoint:
        # So rarely that nothing is sent before the end.
        system = await running(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_METRIC_EXPORT_INTERVAL="3600000")
        answer = await everything(system, emulator)
        assert {} == received
        assert [0, 0] == await system.stop()

    trace_id = answer.headers["traceresponse"].split("-")[1]
    for process in ("gateway", "cloner"):
        rows = documented(process)
        assert {name: row.unit for name, row in rows.items()} == {
            metric.name: metric.unit for metric in received[process]
        }
        for metric in received[process]:
            data = getattr(metric, metric.WhichOneof("data"))
            keys = {attribute.key for point in data.data_points for attribute in point.attributes}
            assert keys <= rows[metric.name].attributes, metric.name
            # What the table has is there, but for an error that does not happen here.
            assert rows[metric.name].attributes - keys <= {"error.type", "precall.reason"}, metric.name
    for process, name in (
        ("gateway", "precall.delivery.duration"),
        ("gateway", "http.server.request.duration"),
        ("gateway", "rpc.client.call.duration"),
        ("cloner", "rpc.server.call.duration"),
        ("cloner", "http.client.request.duration"),
        ("cloner", "precall.clone.duration"),
    ):
        (metric,) = (one for one in received[process] if one.name == name)
        exemplars = [one.trace_id.hex() for point in metric.histogram.data_points for one in point.exemplars]
        assert trace_id in exemplars, name


async def test_nowhere(running: Running, asked: Callable[[], list[str]]) -> None:
    """Where metrics go nowhere, nothing listens for them, and ElevenLabs is not asked for their sake."""
    system = await running(OTEL_METRICS_EXPORTER="none")
    await system.deliver()

    assert {} == system.metrics
    # Whether the key is taken is looked at in any case.
    assert 1 >= asked().count(ACCOUNT)
