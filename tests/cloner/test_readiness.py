"""What the health says of the registry, by Check and by Watch, for the process and for its one service."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from precall.v1 import cloning_pb2 as pb

from tests.kit.clients import channel
from tests.kit.failures import failure, reason
from tests.kit.figures import Figures
from tests.kit.postgres import new_database, on_server
from tests.kit.relay import Relay

pytestmark = pytest.mark.long

SERVICE = "precall.v1.CloningService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
OPENING = pb.OpenCallRequest(agent_id="agent_demo", conversation_id="conv_1")
# Longer than a busy machine lets a registry wait that is well.
PATIENCE_SECONDS = 3.0


class Health:
    """What the health says of both names."""

    def __init__(self, wire: grpc.aio.Channel) -> None:
        self._stub = health_pb2_grpc.HealthStub(wire)

    async def both(self) -> set[int]:
        """What Check answers."""
        return {
            (await self._stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status
            for name in ("", SERVICE)
        }

    async def until(self, status: int, *, seconds: float = 20) -> None:
        """Waits until Check and Watch say so, of both."""

        async def watch(name: str) -> None:
            async for answer in self._stub.Watch(health_pb2.HealthCheckRequest(service=name)):
                if answer.status == status:
                    return

        async with asyncio.timeout(seconds):
            await asyncio.gather(watch(""), watch(SERVICE))
        assert {status} == await self.both()


@asynccontextmanager
async def watched(cloning: Any, database: str, **settings: Any) -> Any:
    """A cloner on that database, and its health."""
    async with cloning(database_url=database, **settings) as cloner, channel(cloner.port) as wire:
        health = Health(wire)
        assert {SERVING} == await health.both()
        yield cloner, health


@pytest.fixture
def database(sqlite: str) -> str:
    """A SQLite file; what is about Postgres makes its own."""
    return sqlite


async def test_deleted_file(cloning, database: str, tmp_path: Path, capsys) -> None:
    """A registry that was deleted ends the work until the cloner is started anew, however long that takes."""
    # It is looked at four times in a second.
    async with watched(cloning, database, registry_patience_seconds=1.0) as (cloner, health):
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"precall.sqlite3{suffix}").unlink()
        await health.until(NOT_SERVING, seconds=5)
        assert "REGISTRY_UNAVAILABLE" == reason(await failure(cloner.OpenCall(OPENING, timeout=5)))[0]
        await asyncio.sleep(1)
        assert {NOT_SERVING} == await health.both()
    told = capsys.readouterr().out
    async with watched(cloning, database) as (cloner, health):
        await cloner.OpenCall(OPENING, timeout=5)

    assert 1 == told.count("[error")
    assert 1 == told.count("registry file deleted or replaced")


@pytest.mark.parametrize("calls", [False, True], ids=["idle", "under calls"])
async def test_locked_file(cloning, database: str, tmp_path: Path, calls: bool, capsys) -> None:
    """A file that somebody else keeps locked is told of once, also where nobody calls, and is well again later."""
    async with watched(cloning, database, registry_patience_seconds=PATIENCE_SECONDS) as (cloner, health):
        with closing(sqlite3.connect(tmp_path / "precall.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            if calls:
                await failure(cloner.OpenCall(OPENING, timeout=0.5))
            await health.until(NOT_SERVING)
            other.execute("ROLLBACK")
        await health.until(SERVING)
        await cloner.OpenCall(OPENING, timeout=5)

    assert 1 == capsys.readouterr().out.count("[error")


@pytest.mark.parametrize("how", ["hang", "down"])
async def test_unreachable_server(cloning, postgres: str, how: str, capsys) -> None:
    """A Postgres that hangs, or refuses, is told of once after a while, and is well again later."""
    server, _, name = new_database(postgres).rpartition("/")
    user, _, target = server.rpartition("@")
    async with Relay(target).listening() as relay:
        url = f"{user}@{relay.address}/{name}"
        async with watched(cloning, url, registry_patience_seconds=PATIENCE_SECONDS) as (cloner, health):
            await getattr(relay, how)()
            await health.until(NOT_SERVING)
            await relay.mend()
            await health.until(SERVING, seconds=40)
            await cloner.OpenCall(OPENING, timeout=10)

    assert 1 == capsys.readouterr().out.count("[error")


async def test_gauge(cloning, postgres: str, figures: Figures) -> None:
    """Metrics tell what the health says, also while nothing is known of what the registry holds."""
    server, _, name = new_database(postgres).rpartition("/")
    user, _, target = server.rpartition("@")
    async with Relay(target).listening() as relay:
        url = f"{user}@{relay.address}/{name}"
        settings = {"registry_patience_seconds": PATIENCE_SECONDS, "meters": figures.meters}
        async with watched(cloning, url, **settings) as (_, health):
            await figures.until("precall.due", lambda told: told == 0, kind="agent")
            assert 1 == figures.told("precall.serving")
            await relay.down()
            await health.until(NOT_SERVING)
            await figures.until("precall.due", lambda told: told is None, kind="agent")
            assert 0 == figures.told("precall.serving")
            await relay.mend()
            await health.until(SERVING, seconds=40)
            assert 1 == figures.told("precall.serving")

    assert 0 == figures.told("precall.serving")


async def test_server_that_may_only_be_read(cloning, postgres: str) -> None:
    """A Postgres that takes no writes is told of, also where nobody calls, and is well again later."""
    url = new_database(postgres)
    name = url.rpartition("/")[2]
    async with watched(cloning, url, registry_patience_seconds=1.0) as (cloner, health):
        for mode, status in (("on", NOT_SERVING), ("off", SERVING)):
            on_server(postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = {mode}")
            # It counts for new connections.
            on_server(
                postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            )
            await health.until(status)
        await cloner.OpenCall(OPENING, timeout=10)


async def test_nothing_to_write(cloning, postgres: str, capsys) -> None:
    """While no row can be written, a transaction that finds nothing to change is no sign of an end of that."""
    url = new_database(postgres)
    async with watched(cloning, url, registry_patience_seconds=1.0) as (cloner, health):
        with psycopg.connect(url) as other:
            other.execute("UPDATE deployment SET name = name")
            await health.until(NOT_SERVING)
            for _ in range(10):
                request = pb.CompleteCallRequest(agent_id="agent_demo", voice_id="voice_of_nobody")
                assert not (await cloner.CompleteCall(request, timeout=5)).found
                await asyncio.sleep(0.2)
                assert {NOT_SERVING} == await health.both()
            other.rollback()
        await health.until(SERVING)

    assert 1 == capsys.readouterr().out.count("[error")


async def test_patience(cloning, database: str, tmp_path: Path) -> None:
    """What is over before the patience is says nothing, and a caller who hangs up is no sign of anything."""
    async with watched(cloning, database, registry_patience_seconds=4.0) as (cloner, health):
        with closing(sqlite3.connect(tmp_path / "precall.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await failure(cloner.OpenCall(OPENING, timeout=0.3))
            await asyncio.sleep(1)
            assert {SERVING} == await health.both()
            other.execute("ROLLBACK")
        # Long enough for what was left unanswered to be held against it.
        for _ in range(11):
            await asyncio.sleep(0.5)
            assert {SERVING} == await health.both()


async def test_watches(cloning, database: str) -> None:
    """However many watch the health, one more is told to go without, and nobody's calls are refused for it."""

    async def watch(number: int, ends: asyncio.Event) -> int | tuple[str, grpc.StatusCode]:
        # Each connection takes so many streams.
        stub = health_pb2_grpc.HealthStub(wires[number % 2])
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        try:
            return (await watching.read()).status
        except grpc.aio.AioRpcError as refused:
            return reason(refused)
        finally:
            told.append(number)
            await ends.wait()
            watching.cancel()

    told: list[int] = []
    ends = asyncio.Event()
    async with watched(cloning, database) as (cloner, _), AsyncExitStack() as stack:
        address = f"127.0.0.1:{cloner.port}"
        wires = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, (("our.number", n),)))
            for n in range(2)
        ]
        watches = [asyncio.create_task(watch(number, ends)) for number in range(300)]
        async with asyncio.timeout(60):
            while len(told) < len(watches):
                await asyncio.sleep(0.01)
        await cloner.OpenCall(OPENING, timeout=10)
        ends.set()
        answers = Counter(await asyncio.gather(*watches))

    assert {SERVING: 256, ("METHOD_NOT_ALLOWED", grpc.StatusCode.UNIMPLEMENTED): 44} == answers
