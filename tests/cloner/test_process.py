import asyncio
import json
import os
import re
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from structlog.testing import capture_logs

from cloner.registry import opened
from cloner.registry.opening import MIGRATION_LOCK
from cloner.transport_security import health_target
from cloner.voices.hash_key import settled
from emulator import Emulator, Fault
from environment import Key
from tests.kit.postgres import new_database
from tests.kit.processes.cloner import API_KEY, process, ready, until_ready
from tests.kit.python import python

CREATE = "/v1/voices/add"


async def test_faulty_settings() -> None:
    """One line names every variable at fault; the exit status is 2."""
    async with process(imports=True, CLONER_PORT="no", LOG_FORMAT="xml") as started:
        out, err = await started.communicate()

    assert 2 == started.returncode
    assert b"" == out
    (line,) = err.decode().splitlines()
    for name in ("ELEVENLABS_API_KEY", "CLONER_PORT", "LOG_FORMAT"):
        assert name in line


async def test_faulty_telemetry() -> None:
    """What OpenTelemetry could not use is told, and takes nothing else down with it."""
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", OTEL_TRACES_EXPORTER="carrier-pigeon",
        OTEL_BSP_MAX_QUEUE_SIZE="256", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_COMPRESSION="zstd",
        OTEL_EXPORTER_OTLP_TIMEOUT="10s", OTEL_BSP_EXPORT_TIMEOUT="500",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="many", OTEL_PYTHON_CONTEXT="smoke",
    ) as started:  # fmt: skip
        lines = await until_ready(started)
        started.terminate()
        _, err = await asyncio.wait_for(started.communicate(), 60)

    assert (0, b"") == (started.returncode, err)
    assert [
        "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_PYTHON_CONTEXT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_TRACES_EXPORTER",
    ] == sorted(re.search(r"variable=(\S+)", line)[1] for line in lines if "cannot be used" in line)  # fmt: skip


async def test_open_files() -> None:
    """A cloner may open as many files as clients and it need, or takes fewer connections and says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with process(
            ELEVENLABS_API_KEY="k", CLONER_PORT="0", CLONER_MAX_CONNECTIONS=str(hard)
        ) as started:
            lines = await until_ready(started)
            allowed = resource.prlimit(started.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    (told,) = [line for line in lines if "fewer connections than set" in line]
    assert ((hard, hard), True) == (allowed, f"most={hard - 128 - 5 - 8}" in told)


async def test_too_few_open_files() -> None:
    """A cloner that may open too few files says so and ends."""
    command = ("sh", "-c", 'ulimit -n 24; exec "$0" -m cloner', sys.executable)
    settings = {"PATH": os.environ["PATH"], "ELEVENLABS_API_KEY": "k", "CLONER_PORT": "0"}
    done = await asyncio.create_subprocess_exec(*command, env=settings, stderr=asyncio.subprocess.PIPE)
    _, err = await done.communicate()

    expected = "cloner: may open only 24 files at once, and needs 64 at least: raise the limit (ulimit -n)\n"
    assert (2, expected) == (done.returncode, err.decode())


async def test_memory_limit(tmp_path: Path) -> None:
    """A cloner serves under a limit of memory that is below the one of the workers that look at samples."""
    command = ("sh", "-c", 'ulimit -v 1000000; exec "$0" -m cloner', sys.executable)
    settings = {"ELEVENLABS_API_KEY": "k", "CLONER_PORT": "0", "AUDIO_WORKERS": "1"}
    started = await asyncio.create_subprocess_exec(
        *command, env={"PATH": os.environ["PATH"], **settings}, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    try:
        await ready(started)
    finally:
        started.terminate()
        await started.communicate()

    assert 0 == started.returncode


@pytest.mark.parametrize("host", ["::", "[::1]"])
async def test_ipv6(host: str) -> None:
    """A cloner serves on IPv6, and its own health check finds it there."""
    settings = {"CLONER_HOST": host, "CLONER_TOKEN": "token-of-the-cloner", "CLONER_INSECURE": "true"}
    async with process(ELEVENLABS_API_KEY="k", CLONER_PORT="0", **settings) as started:
        address = await ready(started)
        port = address.rpartition(":")[2]
        health = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cloner.health",
            env={"PATH": os.environ["PATH"], **settings, "CLONER_PORT": port},
        )  # fmt: skip
        status = await health.wait()

    assert (f"[{host.strip('[]')}]:{port}", 0) == (address, status)


async def test_health_that_is_not_well(tmp_path: Path) -> None:
    """A health check that fails says in one line whether nobody answers there, or a cloner that does not serve."""

    async def asked(port: str) -> tuple[int, str]:
        environ = {"PATH": os.environ["PATH"], "CLONER_PORT": port}
        async with python("-m", "cloner.health", env=environ) as health:
            _, err = await health.communicate()
            return health.returncode, err.decode()

    database = tmp_path / "precall.sqlite3"
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=f"sqlite:///{database}"
    ) as started:
        port = (await ready(started)).rpartition(":")[2]
        told = [await asked(port)]
        database.unlink()
        async with asyncio.timeout(60):
            while (last := await asked(port)) == (0, ""):
                await asyncio.sleep(0.1)
        told += [last, await asked("1")]

    assert [
        (0, ""),
        (1, f"cloner.health: the cloner at 127.0.0.1:{port} does not serve: see its log\n"),
        (
            1,
            "cloner.health: no cloner of this machine answers for 127.0.0.1:1: are CLONER_HOST and CLONER_PORT its own?\n",
        ),
    ] == told


@pytest.mark.parametrize(
    ("fault", "key", "level", "event"),
    [
        (None, API_KEY, "info", "ElevenLabs takes ELEVENLABS_API_KEY"),
        (None, "another-key", "error", "ElevenLabs refuses ELEVENLABS_API_KEY"),
        ("missing_permissions", API_KEY, "warning", "ELEVENLABS_API_KEY lacks a permission"),
        ("system_busy", API_KEY, "warning", "ELEVENLABS_API_KEY could not be checked"),
    ],
)
async def test_api_key_is_checked(
    emulator: Emulator, emulator_url: str, fault: str | None, key: str, level: str, event: str
) -> None:
    """Every start says whether ElevenLabs takes the key, and never the key."""
    if fault:
        emulator.faults.set(Fault(method="GET", path="/v1/user/subscription", error=fault))
    async with process(
        ELEVENLABS_API_KEY=key, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0", LOG_FORMAT="json",
        PROVIDER_ATTEMPTS="1",
    ) as started:  # fmt: skip
        async with asyncio.timeout(60):
            while event not in (line := await started.stdout.readline()).decode():
                assert line
                assert key.encode() not in line

    told = json.loads(line)
    assert (level, event) == (told["level"], told["event"])
    if fault == "missing_permissions":
        assert "create_instant_voice_clone" == told["precall.provider.permission"]


async def test_port_in_use() -> None:
    """A taken port is told in one line."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with process(ELEVENLABS_API_KEY="k", CLONER_PORT=str(port)) as started:
            _, err = await started.communicate()

    assert 1 == started.returncode
    assert f"cloner: cannot serve on 127.0.0.1:{port}: Address already in use\n" == err.decode()


async def test_address_of_another() -> None:
    """An address that the machine does not have is told as such, not as a port that is taken."""
    settings = {
        "CLONER_HOST": "192.0.2.1",
        "CLONER_TOKEN": "token-of-the-cloner",
        "CLONER_INSECURE": "true",
    }
    async with process(ELEVENLABS_API_KEY="k", **settings) as started:
        _, err = await started.communicate()

    assert 1 == started.returncode
    assert "cloner: cannot serve on 192.0.2.1:50051: Cannot assign requested address\n" == err.decode()


async def test_database_that_is_not_there() -> None:
    """A database that cannot be reached is told in one line."""
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL="postgresql://127.0.0.1:1/x",
        CALLER_HASH_KEY="key-of-the-hashes",
    ) as started:  # fmt: skip
        _, err = await started.communicate()

    assert 1 == started.returncode
    assert [
        "cloner: DATABASE_URL: nothing listens at the host and port of the database"
    ] == err.decode().splitlines()


@pytest.mark.parametrize(
    ("url", "status", "line"),
    [
        ("sqlite:///:memory:", 2, "DATABASE_URL: expected the path of a SQLite file"),
        ("sqlite:///missing/precall.sqlite3", 1, "missing does not exist"),
        ("sqlite:////dev/null", 1, "DATABASE_URL: /dev/null is not a file"),
    ],
)
async def test_database_that_cannot_be(url: str, status: int, line: str) -> None:
    """What is in the way of a database is one line on standard error, and an exit status."""
    async with process(ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=url) as started:
        _, err = await started.communicate()

    (told,) = err.decode().splitlines()
    assert (status, True) == (started.returncode, line in told)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_another_key(database: str) -> None:
    """A key that the callers of the registry are not known by is one line on standard error, and status 2."""
    async with opened(database, name="tested", now=1.0) as store:
        await settled(store, database, Key.read("key-of-the-hashes"))
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=database, CALLER_HASH_KEY="key-of-somebody-else"
    ) as started:
        out, err = await asyncio.wait_for(started.communicate(), 60)

    assert (2, b"") == (started.returncode, out)
    says = "cloner: CALLER_HASH_KEY is not the key by which the registry knows its callers: set "
    (line,) = err.decode().splitlines()
    assert says == line[: len(says)]
    assert "unset" not in line

    Path(f"{database.removeprefix('sqlite:///')}.key").write_text("key-of-the-hashes")
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=database, CALLER_HASH_KEY="key-of-somebody-else"
    ) as started:
        out, err = await asyncio.wait_for(started.communicate(), 60)

    assert (2, b"") == (started.returncode, out)
    assert err.decode() == f"{line}; or unset CALLER_HASH_KEY: precall.sqlite3.key is there\n"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_name_of_another_deployment(cloning) -> None:
    """A database keeps the name that it was begun with; a start that says another is told so, and no other is."""
    with capture_logs() as lines:
        for name in ("ours", "elsewhere", "ours", None):
            async with cloning(precall_deployment=name):
                pass

    told = [
        line["deployment"] for line in lines if line["event"].startswith("PRECALL_DEPLOYMENT does nothing")
    ]
    assert ["ours"] == told


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
async def test_stops_when_told(name: signal.Signals) -> None:
    """An idle process ends at once, with exit status 0 and without a complaint."""
    async with process(imports=True, ELEVENLABS_API_KEY="k", CLONER_PORT="0") as started:
        await ready(started)
        started.send_signal(name)
        _, err = await asyncio.wait_for(started.communicate(), 10)

    assert (0, b"") == (started.returncode, err)


async def test_stops_while_it_opens_the_registry(postgres: str) -> None:
    """A process that waits for another one to migrate the database ends as soon as it is told to."""
    database = new_database(postgres)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
    with psycopg.connect(database) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        async with process(
            ELEVENLABS_API_KEY="k",
            CLONER_PORT="0",
            DATABASE_URL=database,
            CALLER_HASH_KEY="key-of-the-hashes",
        ) as started:
            async with asyncio.timeout(60):
                while other.execute(waiting, (database.rpartition("/")[2],)).fetchone() != (1,):
                    await asyncio.sleep(0.02)
            started.terminate()
            _, err = await asyncio.wait_for(started.communicate(), 20)

    assert (0, b"") == (started.returncode, err)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_stops_while_it_begins_to_serve(cloning) -> None:
    """A cloner that is told to stop between its registry's opening and its first call leaves nothing running."""
    served = False
    before = running()

    def now() -> float:
        # The first to ask, after whoever begins, is the janitor.
        if asyncio.current_task() is not begun and not begun.cancelling():
            begun.cancel()
        return time.time()

    async def serve() -> None:
        nonlocal served
        async with cloning(now):
            served = True

    begun = asyncio.create_task(serve())
    with capture_logs() as lines:
        await asyncio.wait([begun], timeout=20)

    assert (True, False, set()) == (begun.cancelled(), served, running() - before)
    assert [] == [line for line in lines if line["log_level"] in ("warning", "error")]


def running() -> set[str]:
    """What the tasks are at."""
    return {task.get_coro().__qualname__ for task in asyncio.all_tasks()}


async def test_finishes_what_is_in_flight(emulator: Emulator, emulator_url: str, speech: bytes) -> None:
    """A delivery under way at SIGTERM is answered before the process ends, while another may begin already."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with process(
        ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0"
    ) as started, grpc.aio.insecure_channel(where := await ready(started)) as channel:  # fmt: skip
        host, port = where.split(":")
        request = pb.PrepareCallRequest(agent_id="agent_demo", conversation_id="conv_1", sample=speech)
        answer = asyncio.ensure_future(CloningServiceStub(channel).PrepareCall(request, timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")

        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
        started.terminate()
        assert health_pb2.HealthCheckResponse.NOT_SERVING == (await watch.read()).status
        watch.cancel()
        while listens((host, int(port))):
            await asyncio.sleep(0.02)
        # Another cloner may serve here now, and tell its health.
        told = listens(health_target(host, int(port)).replace("unix-abstract:", "\0"))
        emulator.faults.release()

        assert (await answer).voice.voice_id in emulator.voices
        await asyncio.wait_for(started.wait(), 45)

    assert (0, False) == (started.returncode, told)


def listens(where: tuple[str, int] | str) -> bool:
    """Whether somebody takes connections at an address, which is one of the system's own if it is text."""
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as tried:
        return tried.connect_ex(where) == 0


async def test_finishes_a_create_that_nobody_waits_for(
    emulator: Emulator, emulator_url: str, speech: bytes
) -> None:
    """A create whose caller has gone is finished before the process ends."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with process(
        ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0"
    ) as started, grpc.aio.insecure_channel(await ready(started)) as channel:  # fmt: skip
        request = pb.PrepareCallRequest(agent_id="agent_demo", conversation_id="conv_1", sample=speech)
        answer = CloningServiceStub(channel).PrepareCall(request, timeout=20)
        await emulator.requests.wait(path=CREATE, stage="held")
        answer.cancel()

        started.terminate()
        emulator.faults.release()
        await asyncio.wait_for(started.wait(), 45)

    assert 0 == started.returncode
    assert ["finished"] == [request.stage for request in emulator.requests.matching(path=CREATE)]
