"""Cloners are restarted one after the other under continuous calls, and nobody notices."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Self

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from precall_client import connect
from precall_client.transport import SERVICE_CONFIG

from tests.kit.connections import connected
from tests.kit.ports import free_port
from tests.kit.processes.cloner import API_KEY, process, ready

PHASE = 125


class Callers:
    """Several who call one after the other, without a pause, until the block ends."""

    def __init__(self, channel: grpc.aio.Channel, *names: str) -> None:
        self._stub = CloningServiceStub(channel)
        self._names = names
        self._ended = False
        self.answered = 0
        self.lost: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._calling = [asyncio.create_task(self._call(name)) for name in self._names]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._calling)

    async def until_answered(self, more: int) -> None:
        """Waits until so many more calls were answered."""
        before = self.answered
        async with asyncio.timeout(60):
            while self.answered < before + more:
                await asyncio.sleep(0.01)

    async def _call(self, name: str) -> None:
        number = 0
        while not self._ended:
            number += 1
            try:
                # One that reads, one that writes.
                await self._stub.ListVoices(pb.ListVoicesRequest(), timeout=20)
                await self._stub.OpenCall(
                    pb.OpenCallRequest(agent_id="agent_demo", conversation_id=f"conv_{name}_{number}"),
                    timeout=20,
                )
                self.answered += 2
                # Often enough to meet every moment of a restart, and other tests need the processor, too.
                await asyncio.sleep(0.03)
            except grpc.aio.AioRpcError as lost:
                self.lost[f"{lost.code().name}: {lost.details()}"] += 1
                await asyncio.sleep(0.01)


@pytest.mark.long
async def test_rolling_restart(emulator_url: str, sqlite: str) -> None:
    """No call is lost: of a gateway, nor of a client that has nothing of ours but the service config."""
    settings = {
        "ELEVENLABS_API_KEY": API_KEY, "ELEVENLABS_BASE_URL": emulator_url,
        "DATABASE_URL": sqlite, "CALLER_HASH_KEY": "key-of-the-hashes",
        "LOG_LEVEL": "ERROR",  # nobody reads what they write, and a full pipe would hold them up
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        # Each comes back where it was, so that port must be nobody else's meanwhile.
        ports = [str(free_port()) for _ in range(2)]
        running = [await start(process(**settings, CLONER_PORT=port)) for port in ports]
        for each in running:
            await ready(each)
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        # Of two addresses, gRPC asks a proxy, whatever NO_PROXY says.
        options = (("grpc.service_config", SERVICE_CONFIG.read_text()), ("grpc.enable_http_proxy", 0))
        clients = {
            "gateway": await start(Callers((await start(connect(target))).channel, "Ivan", "Maria")),
            "python": await start(
                Callers(await start(grpc.aio.insecure_channel(target, options)), "Tom", "Li")
            ),
        }

        async def until_answered() -> None:
            await asyncio.gather(*(callers.until_answered(PHASE) for callers in clients.values()))

        await until_answered()
        for old, port in zip(running, ports, strict=True):
            old.terminate()
            assert 0 == await asyncio.wait_for(old.wait(), 60)
            fresh = await start(process(**settings, CLONER_PORT=port))
            await ready(fresh)
            # Not before each has found it: the pause between its tries has grown meanwhile.
            await connected(fresh.pid, int(port), count=len(clients))
            await until_answered()
        for callers in clients.values():
            await callers.__aexit__()

    assert {"gateway": {}, "python": {}} == {name: callers.lost for name, callers in clients.items()}
