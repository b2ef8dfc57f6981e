"""Cloner processes, several on one database, in front of one provider."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator
from tests.kit.cloning import TICK_SECONDS
from tests.kit.forked import Clock, Forked
from tests.kit.rows import Row, rows

API_KEY = "key-of-the-emulator"
DEPLOYMENT = "crash-test"
CREATE = "/v1/voices/add"
SEARCH = "/v2/voices"
# Between two signs of life of a process, and until one that gives none is taken for dead.
DEAD_SECONDS = 10.0
# What a process may hold beyond its death: the agent of a delivery, or a voice that it deletes.
LONGEST_CLAIM = 61.0
# How long a delivery may take, and wait for its agent: longer than a busy machine needs to bring all others to
# their steps, because an update that is given up is undone.
DELIVERY_SECONDS = 60
DEPLOYMENT_LABEL = "precall_deployment"


@dataclass
class Replica:
    """One process, what it has started, and a client of it."""

    process: Forked
    children: list[psutil.Process]
    stub: CloningServiceStub

    def stop(self) -> None:
        """Stops it where it is."""
        self.process.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on from there."""
        self.process.send(signal.SIGCONT)

    async def kill(self) -> None:
        """Kills it at once, and waits until it is gone, and what it has started with it."""
        self.process.kill()
        async with asyncio.timeout(60):
            while any(child.is_running() for child in self.children):
                await asyncio.sleep(0.02)


@dataclass
class World:
    """A provider, a database, and the processes between them."""

    emulator: Emulator
    url: str
    database: str
    folder: Path
    clock: Clock
    """The time of all processes and of the provider."""
    dangling: set[str] = field(default_factory=set)
    """Agents that were seen to point at a voice that is gone."""
    _started: int = 0

    @asynccontextmanager
    async def replica(self, **settings: str) -> AsyncIterator[Replica]:
        """A process with these settings, once it is ready."""
        self._started += 1
        environ = {
            "ELEVENLABS_API_KEY": API_KEY,
            "ELEVENLABS_BASE_URL": self.url,
            "CLONER_PORT": "0",
            "DATABASE_URL": self.database,
            "CALLER_HASH_KEY": "key-of-the-hashes",
            "PRECALL_DEPLOYMENT": DEPLOYMENT,
            "PROVIDER_CONCURRENCY": "50",
            # Every caller of a test may call at once.
            "CLONER_MAX_REQUESTS": "500",
            "DRAIN_SECONDS": "0",
            "RECONCILE_SECONDS": "0.3",
            "RECONCILE_GRACE_SECONDS": "0",
            **settings,
        }
        process = Forked(
            self.clock,
            self.folder / f"replica-{self._started}.log",
            {name: value for name, value in environ.items() if value},
            tick_seconds=TICK_SECONDS,
            asking_seconds=DELIVERY_SECONDS,
        )
        try:
            port = await process.port(100)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                children = psutil.Process(process.pid).children(recursive=True)
                yield Replica(process, children, CloningServiceStub(channel))
        finally:
            process.kill()

    @asynccontextmanager
    async def replicas(self, count: int, **settings: str) -> AsyncIterator[list[Replica]]:
        """Several processes with these settings, started at once."""
        async with AsyncExitStack() as stack:
            yield await asyncio.gather(
                *(stack.enter_async_context(self.replica(**settings)) for _ in range(count))
            )

    def agent(self, name: str) -> str:
        """Places an agent with a voice and a greeting of its own."""
        self.emulator.agents.put(
            name,
            {
                "conversation_config": {
                    "agent": {"first_message": f"This is {name}."},
                    "tts": {"voice_id": "JBFqnCBsd6RMkjVDRZzb"},
                }
            },
        )
        return name

    def changed(self) -> list[str]:
        """The agents that do not speak as `agent` made them."""
        return [
            name
            for name in self._agents()
            if self.spoken(name) != ("JBFqnCBsd6RMkjVDRZzb", f"This is {name}.")
        ]

    def spoken(self, agent: str) -> tuple[str, str]:
        """The voice and the greeting of an agent."""
        config = self.emulator.agents[agent]["conversation_config"]
        return config["tts"]["voice_id"], config["agent"]["first_message"]

    def ours(self) -> dict[str, str]:
        """The voices at the provider that carry our label: whose each one is, by its id."""
        return {
            voice.voice_id: voice.name.split("_Clone_")[0]
            for voice in self.emulator.voices
            if voice.labels.get(DEPLOYMENT_LABEL) == DEPLOYMENT
        }

    async def rows(self, query: str) -> list[Row]:
        """What the registry holds, past the cloner."""
        return await rows(self.database, query)

    async def locked(self) -> bool:
        """Whether somebody is in the middle of a transaction."""
        if self.database.startswith("sqlite:///"):
            return await asyncio.to_thread(_locked, self.database.removeprefix("sqlite:///"))
        query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        return bool(await self.rows(query))

    async def voices(self) -> dict[str, list[Row]]:
        """The registry's rows of voices, by whose they are."""
        found: dict[str, list[Row]] = {}
        for row in await self.rows("SELECT * FROM voices ORDER BY created_at"):
            found.setdefault(row["name"].split("_Clone_")[0], []).append(row)
        return found

    async def wrongs(self) -> list[str]:
        """What must not be at a quiet point, in words."""
        rows = await self.rows("SELECT state, name, voice_id FROM voices")
        ready = {row["voice_id"]: row["name"] for row in rows if row["state"] == "ready"}
        ours = self.ours()
        callers = list(ours.values())
        return [
            *(f"{row['state']}: {row['name']}" for row in rows if row["state"] in ("intended", "deleting")),
            *(f"not in the registry: {ours[voice]}" for voice in ours.keys() - ready.keys()),
            *(f"not at the provider: {ready[voice]}" for voice in ready.keys() - ours.keys()),
            *(f"more than one voice: {caller}" for caller in set(callers) if callers.count(caller) > 1),
            *(f"points at a voice that is gone: {agent}" for agent in self._dangling()),
            *(f"pointed at a voice that was gone: {agent}" for agent in self.dangling),
        ]

    async def quiet(self, seconds: float) -> None:
        """Waits until nothing is wrong, and sees that nothing is after two more reconciliations."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (wrongs := await self.wrongs()) and loop.time() < until:
            await asyncio.sleep(0.1)
        assert [] == wrongs, wrongs
        await self.reconciled(2)
        wrongs = await self.wrongs()
        assert [] == wrongs, wrongs

    async def reconciled(self, times: int) -> None:
        """Waits for so many reconciliations, counted from their beginning."""
        began = len(self._reconciliations())
        async with asyncio.timeout(60):
            while len(self._reconciliations()) < began + times + 1:
                await asyncio.sleep(0.05)

    async def claims_run_out(self) -> None:
        """The dead let go of what they held, after whoever lives has come by while they still held it."""
        await self.reconciled(2)
        self.clock.jump(LONGEST_CLAIM)

    async def watch(self) -> None:
        """Notes agents that point at a voice that is gone, until it is cancelled."""
        while True:
            self.dangling.update(self._dangling())
            await asyncio.sleep(0.01)

    def _reconciliations(self) -> list[Any]:
        searches = self.emulator.requests.matching(method="GET", path=SEARCH)
        return [request for request in searches if request.query["search"] == [DEPLOYMENT]]

    def _agents(self) -> list[str]:
        return [agent["agent_id"] for agent in self.emulator.agents if agent["agent_id"] != "agent_demo"]

    def _dangling(self) -> list[str]:
        return [agent for agent in self._agents() if self.spoken(agent)[0] not in self.emulator.voices]


def delivery(name: str, sample: bytes, *, agent: str | None = None, number: int = 0) -> pb.PrepareCallRequest:
    """A call of this caller's, at an agent of the same name."""
    caller = pb.Caller(name=name, phone_number=f"+3161{number or sum(name.encode()):07}")
    return pb.PrepareCallRequest(
        agent_id=agent or name, conversation_id=f"conv_{name}", caller=caller, sample=sample
    )


def _locked(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False
