import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from precall.v1.cloning_pb2 import PrepareCallResponse

from gateway.edge.limits import REST_SECONDS
from tests.kit.ports import free_port
from tests.kit.processes.gateway import SECRET, Start, ended, ready
from tests.kit.python import python
from tests.kit.valkey import running as running_valkey

MEBIBYTE = 1_048_576


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_idle(start: Start, signum: signal.Signals) -> None:
    """Serves when it says so, and ends well when it is told to."""
    process = await start(imports=True, ELEVENLABS_WEBHOOK_SECRET=SECRET)
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.get(f"{await ready(process)}/health")
    process.send_signal(signum)

    status, output, errors = await ended(process)

    assert 200 == answer.status_code
    assert (0, "") == (status, errors)
    assert "Traceback" not in output


async def test_no_grace(start: Start) -> None:
    """Without any time to finish in it says nothing of requests that had to go, as there are none."""
    process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, SHUTDOWN_GRACE_SECONDS="0")
    await ready(process)
    process.terminate()

    assert (0, "", "") == await ended(process)


@contextmanager
def nobody_reads() -> Iterator[int]:
    """A pipe that is full. What was written into it is lost as the block ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4_096))
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def full_disk() -> Iterator[int]:
    """A file that takes nothing."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        yield file.fileno()


@pytest.mark.parametrize("output", [nobody_reads, full_disk])
async def test_output_that_is_not_taken(
    start: Start, client: httpx.AsyncClient, output: Callable[[], AbstractContextManager[int]]
) -> None:
    """Whether log lines are read holds up no start, no request and no end, and is nothing to tell of elsewhere."""
    url, port = f"http://{own_address()}", free_port()
    with output() as file:
        process = await start(
            output=file, ELEVENLABS_WEBHOOK_SECRET=SECRET, DRAIN_SECONDS="0",
            PRECALL_WEBHOOK_HOST=own_address(), PRECALL_WEBHOOK_PORT=str(port),
        )  # fmt: skip
        async with asyncio.timeout(60):
            while True:
                with suppress(httpx.ConnectError):
                    answer = await client.post(f"{url}:{port}/webhook", content=b"{}")
                    break
                await asyncio.sleep(0.01)
        process.terminate()
    # The pipe has no reader now, so nobody waits for one until the time for the last lines is up.

    assert 401 == answer.status_code
    assert (0, "", "") == await ended(process)


async def test_no_tracing(start: Start, client: httpx.AsyncClient) -> None:
    """Where tracing is switched off, no answer names a trace."""
    process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, OTEL_SDK_DISABLED="true")

    answer = await client.post(f"{await ready(process)}/webhook", content=b"{}")

    assert (401, None, False) == (
        answer.status_code,
        answer.json()["trace_id"],
        "traceresponse" in answer.headers,
    )


async def test_open_files(start: Start) -> None:
    """May open as many files as there may be connections, or takes fewer of these and says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        enough = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET)
        too_many = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, PRECALL_MAX_CONNECTIONS=str(hard))
        await ready(enough)
        assert too_many.stdout is not None
        told = await too_many.stdout.readline()
        await ready(too_many)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert resource.prlimit(enough.pid, resource.RLIMIT_NOFILE)[0] >= 1_000 + 64
    assert b"fewer connections than set" in told
    assert str(hard - 128).encode() in told


async def test_too_few_open_files() -> None:
    """Says so and ends where it may not even open what it needs itself."""
    code = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
runpy.run_module("gateway", run_name="__main__", alter_sys=True)
"""
    settings = {"ELEVENLABS_WEBHOOK_SECRET": SECRET, "PRECALL_WEBHOOK_PORT": "0"}
    async with python("-c", code, env={"PATH": os.environ["PATH"], **settings}) as process:
        actual = await ended(process)

    expected = "gateway: may open only 20 files at once, and needs 64 at least: raise the limit (ulimit -n)\n"
    assert (2, "", expected) == actual


async def test_in_flight(
    start: Start, cloner: Any, cloner_target: str, deliver: Any, document: Callable[..., bytes]
) -> None:
    """Finishes a delivery that has begun, after the pause too, ends its connection, and takes no other."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(context: Any) -> PrepareCallResponse:
        begun.set()
        await go_on.wait()
        reply: PrepareCallResponse = await cloner.prepared(context)
        return reply

    cloner.reply = wait
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, LOG_FORMAT="json", DRAIN_SECONDS="0.1"
    )
    url = await ready(process)
    delivery = asyncio.create_task(deliver(url, document()))
    await begun.wait()
    process.terminate()
    async with asyncio.timeout(60):
        while await listens(url):
            await asyncio.sleep(0.01)
    go_on.set()
    answer = await delivery

    status, output, errors = await ended(process)

    assert (200, "close") == (answer.status_code, answer.headers.get("connection"))
    assert (0, "") == (status, errors)
    assert '"event": "delivery answered"' in output


async def test_limits(
    start: Start,
    tmp_path: Path,
    cloner: Any,
    cloner_target: str,
    deliver: Any,
    document: Callable[..., bytes],
) -> None:
    """Processes count together in a Valkey, and know a delivery's source through a proxy that they trust."""
    async with running_valkey(tmp_path) as valkey:
        processes = [
            await start(
                ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, LOG_FORMAT="json",
                RATE_LIMIT_AGENT="1/day", RATE_LIMIT_STORAGE=valkey.url(), RATE_LIMIT_SOURCE="100/day",
                ALLOWED_SOURCES="elevenlabs", TRUSTED_PROXIES="127.0.0.1", FORWARDED_ALLOW_IPS="*",
            )
            for _ in range(2)
        ]  # fmt: skip
        urls = [await ready(process) for process in processes]
        known = {"X-Forwarded-For": "34.59.11.47, 34.67.146.145"}
        rounds = 0
        answers: list[httpx.Response] = []
        # A busy machine has a storage answer too late now and then, and that delivery goes uncounted.
        while rounds < 5 and [200, 429] != [answer.status_code for answer in answers]:
            await asyncio.sleep(REST_SECONDS if rounds else 0.0)
            rounds += 1
            agent = document(agent_id=f"agent_{rounds}")
            answers = [await deliver(url, agent, **known) for url in urls]
        stranger = await deliver(urls[0], document(), **{"X-Forwarded-For": "34.59.11.47, 198.51.100.9"})
        for process in processes:
            process.terminate()
        found = [await ended(process) for process in processes]

    assert [200, 429, 403] == [answer.status_code for answer in (*answers, stranger)]
    assert [(0, "")] * 2 == [(status, errors) for status, _, errors in found]
    lines = [json.loads(line) for _, output, _ in found for line in output.splitlines()]
    assert rounds == 1 or any("not counted" in line["event"] for line in lines)
    prepared = 2 * (rounds - 1) + 1
    assert [
        ("PERMISSION_DENIED", "198.51.100.9"), ("RATE_LIMITED", "34.67.146.145"),
        *[("success", "34.67.146.145")] * prepared,
    ] == sorted(
        (line.get("precall.reason", line["precall.outcome"]), line["client.address"])
        for line in lines
        if line["event"] == "delivery answered"
    )  # fmt: skip
    assert prepared == len(cloner.asked)


async def listens(url: str) -> bool:
    """Whether new connections are taken."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_memory_goes_back(
    start: Start, cloner: Any, cloner_target: str, deliver: Any, document: Callable[..., bytes]
) -> None:
    """Soon after many large deliveries at once hardly any of the memory that they took is held."""
    everybody = asyncio.Event()

    async def wait(context: Any) -> PrepareCallResponse:
        if len(cloner.asked) == 12:
            everybody.set()
        await everybody.wait()
        reply: PrepareCallResponse = await cloner.prepared(context)
        return reply

    cloner.reply = wait
    process = await start(
        imports=True, ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, LOG_LEVEL="WARNING",
        PRECALL_BUDGET_MS="60000", BODY_TIMEOUT_SECONDS="60",
    )  # fmt: skip
    url, memory = await ready(process), psutil.Process(process.pid)
    before = memory.memory_info().rss
    body = document(bytes(10 * MEBIBYTE))

    answers = await asyncio.gather(*(deliver(url, body) for _ in range(12)))

    assert [200] * 12 == [answer.status_code for answer in answers]
    async with asyncio.timeout(60):
        while memory.memory_info().rss - before > 60 * MEBIBYTE:
            await asyncio.sleep(0.2)


async def test_grace(
    start: Start, cloner: Any, cloner_target: str, deliver: Any, document: Callable[..., bytes]
) -> None:
    """Waits no longer for a delivery than it may, and still ends without a traceback."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(_context: Any) -> PrepareCallResponse:
        begun.set()
        await never.wait()
        return PrepareCallResponse()

    cloner.reply = hang
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, SHUTDOWN_GRACE_SECONDS="1"
    )
    delivery = asyncio.create_task(deliver(await ready(process), document()))
    await begun.wait()
    process.terminate()

    status, output, errors = await ended(process)
    await asyncio.gather(delivery, return_exceptions=True)

    assert 0 == status
    assert "Traceback" not in output + errors


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, ["ELEVENLABS_WEBHOOK_SECRET"]),
        (
            {"PRECALL_WEBHOOK_PORT": "x", "DYNAMIC_VARIABLES": "{", "LOG_LEVEL": "LOUD"},
            ["ELEVENLABS_WEBHOOK_SECRET", "PRECALL_WEBHOOK_PORT", "DYNAMIC_VARIABLES", "LOG_LEVEL"],
        ),
        (
            {"ELEVENLABS_WEBHOOK_SECRET": SECRET, "DYNAMIC_VARIABLES": '{"who": "{nickname}"}'},
            ["DYNAMIC_VARIABLES", "who"],
        ),
        (
            {"ELEVENLABS_WEBHOOK_SECRET": f"{SECRET}\u200b", "CLONER_TARGET": "tcp://10.0.0.1:50051"},
            ["ELEVENLABS_WEBHOOK_SECRET", "CLONER_TARGET"],
        ),
        (
            {
                "RATE_LIMIT_AGENT": "many",
                "RATE_LIMIT_SOURCE": "5",
                "ALLOWED_SOURCES": "everybody",
                "RATE_LIMIT_STORAGE": f"redis://:{SECRET}@cache:port",
                "TRUSTED_PROXIES": "::/0",
            },
            [
                "RATE_LIMIT_AGENT",
                "RATE_LIMIT_SOURCE",
                "RATE_LIMIT_STORAGE",
                "ALLOWED_SOURCES",
                "TRUSTED_PROXIES",
            ],
        ),
    ],
)
async def test_bad_settings(start: Start, environ: dict[str, str], named: list[str]) -> None:
    """Names every variable at fault in one line, and no secret, and does not start."""
    status, output, errors = await ended(await start(**environ))

    assert (2, "", 1) == (status, output, errors.count("\n"))
    for name in named:
        assert name in errors
    assert SECRET not in errors


async def test_port_taken(start: Start) -> None:
    """Says in one line that it cannot listen."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, output, errors = await ended(
            await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, PRECALL_WEBHOOK_PORT=port)
        )

    assert (1, "") == (status, output)
    assert f"gateway: cannot listen on 127.0.0.1:{port}: Address already in use\n" == errors


@pytest.mark.parametrize("host", ["::", "[::]", "::1"])
async def test_ipv6(start: Start, host: str) -> None:
    """Serves on IPv6, and on all addresses of IPv4 as well where that is what `::` says."""
    process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, PRECALL_WEBHOOK_HOST=host)
    address = await ready(process)
    port = address.rpartition(":")[2]
    names = ["[::1]", *(["127.0.0.1"] if "::1" not in host else [])]
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        statuses = [(await client.get(f"http://{name}:{port}/health")).status_code for name in names]
    process.terminate()
    status, _, errors = await ended(process)

    assert f"http://[{host.strip('[]')}]:{port}" == address
    assert [200] * len(names) == statuses
    assert (0, "") == (status, errors)


def own_address() -> str:
    """An address of this machine at which no other process listens, unless at all of them."""
    high, low = divmod(os.getpid() % 64_000, 250)
    return f"127.77.{high}.{low + 1}"


async def test_name_of_the_operator(start: Start) -> None:
    """Log lines call the process as its spans do."""
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, PRECALL_WEBHOOK_PORT="0", LOG_FORMAT="json", LOG_LEVEL="ERROR",
        OTEL_SERVICE_NAME="gateway-of-theirs",
    )  # fmt: skip
    async with asyncio.timeout(60):
        told = json.loads(await process.stdout.readline())

    assert ("gateway-of-theirs", True) == (
        told["service.name"],
        told["event"].startswith("gateway ready on "),
    )


async def test_oddities_are_told(start: Start) -> None:
    """Nothing of the kind stops the process; each has one line, without a value."""
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET="everybody-knows-this-secret-so-change-it",
        PRECALL_WEBHOOK_PORT="tcp://10.1.2.3:3005", PRECALL_WEBHOOK_PORT_3005_TCP="tcp://10.1.2.3:3005",
        PRECALL_WEBHOOK_SERVICE_HOST="10.1.2.3", PRECALL_BUDGET="marked-value", CLONER_PORT="50051",
        PRECALL_WEBHOOK_HOST=own_address(),  # what it serves at is the port that every gateway has unless told
        OTEL_TRACES_EXPORTER="smoke", OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="many", OTEL_BSP_SCHEDULE_DELAY="0",
        OTEL_PYTHON_CONTEXT="marked-value", LOG_FORMAT="json",
    )  # fmt: skip
    lines = []
    async with asyncio.timeout(60):
        while "ready on" not in (line := json.loads(await process.stdout.readline()))["event"]:
            lines.append((line["level"], line["variable"], line.get("did_you_mean")))
    process.terminate()
    status, output, errors = await ended(process)

    assert [
        ("error", "ELEVENLABS_WEBHOOK_SECRET", None),
        ("warning", "OTEL_BSP_SCHEDULE_DELAY", None),
        ("warning", "OTEL_PYTHON_CONTEXT", None),
        ("warning", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", None),
        ("warning", "OTEL_TRACES_EXPORTER", None),
        ("warning", "PRECALL_BUDGET", "PRECALL_BUDGET_MS"),
        ("warning", "PRECALL_WEBHOOK_PORT", None),
    ] == sorted(lines)
    assert (0, "") == (status, errors)
    assert "marked-value" not in output
