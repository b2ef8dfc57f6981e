"""A collector that takes connections and says nothing holds up nobody who is told to stop."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from tests.kit.processes import cloner, gateway

# The SDK by itself would wait for 30 s, and its exporters for as long as they are told.
PATIENCE = {
    "OTEL_BSP_EXPORT_TIMEOUT": "1000", "OTEL_EXPORTER_OTLP_TIMEOUT": "120", "DRAIN_SECONDS": "0",
    "LOG_LEVEL": "ERROR",
}  # fmt: skip
LONGEST_SECONDS = 15.0


class Silent:
    """A collector that never answers."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.port = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads whatever comes."""
        while await reader.read(65_536):
            self.reached.set()
        writer.close()


@pytest.fixture
async def collector() -> AsyncIterator[Silent]:
    """A real listener, on a port of its own."""
    silent = Silent()
    server = await asyncio.start_server(silent.take, "127.0.0.1", 0)
    silent.port = server.sockets[0].getsockname()[1]
    yield silent
    server.close()


async def seconds_to_stop(process: asyncio.subprocess.Process, collector: Silent) -> float:
    """How long it takes once the collector has something that it does not answer."""
    process.terminate()
    begun = time.monotonic()
    await asyncio.wait_for(process.wait(), 60)
    assert collector.reached.is_set()
    return time.monotonic() - begun


def telling(collector: Silent, protocol: str) -> dict[str, str]:
    """Where spans go."""
    return PATIENCE | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_gateway(collector: Silent, protocol: str) -> None:
    """A gateway that has served leaves after OTEL_BSP_EXPORT_TIMEOUT, with exit status 0."""
    settings = telling(collector, protocol) | {
        "ELEVENLABS_WEBHOOK_SECRET": gateway.SECRET, "PRECALL_WEBHOOK_PORT": "0",
    }  # fmt: skip
    async with gateway.process(**settings) as process:
        url = await gateway.ready(process)
        async with httpx.AsyncClient(verify=False) as client:
            assert 401 == (await client.post(f"{url}/webhook", content=b"{}")).status_code
        took = await seconds_to_stop(process, collector)

    assert (0, True) == (process.returncode, took < LONGEST_SECONDS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_cloner(collector: Silent, protocol: str, emulator_url: str) -> None:
    """So does a cloner."""
    settings = telling(collector, protocol) | {
        "ELEVENLABS_API_KEY": cloner.API_KEY, "ELEVENLABS_BASE_URL": emulator_url, "CLONER_PORT": "0",
    }  # fmt: skip
    async with cloner.process(**settings) as process:
        async with grpc.aio.insecure_channel(await cloner.ready(process)) as channel:
            await CloningServiceStub(channel).ListVoices(pb.ListVoicesRequest(), timeout=20)
        took = await seconds_to_stop(process, collector)

    assert (0, True) == (process.returncode, took < LONGEST_SECONDS)
