"""A gateway that stood still, as in a container that is held: what arrived in time is answered."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest
import uvloop

from gateway.edge.clock import LOOK_SECONDS, Clock
from gateway.edge.closing import PAUSE_SECONDS, LingeringClose
from tests.kit.processes.gateway import SECRET, Process, Start, ready

# Not less: a busy machine may keep a test from stopping the gateway for so long.
SECONDS = 3


async def stood_still(process: Process, meanwhile: Coroutine[Any, Any, Any]) -> Any:
    """What comes of something that begins while the process stands still for longer than any of its times."""
    process.send_signal(signal.SIGSTOP)
    begun = asyncio.create_task(meanwhile)
    await asyncio.sleep(SECONDS + 0.2)
    process.send_signal(signal.SIGCONT)
    return await begun


async def test_connection_that_was_idle(
    start: Start, cloner_target: str, client: httpx.AsyncClient, deliver: Any, document: Callable[..., bytes]
) -> None:
    """A delivery on a connection whose time was over when the gateway went on is answered."""
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target,
        PRECALL_KEEP_ALIVE_SECONDS=str(SECONDS),
    )  # fmt: skip
    url = await ready(process)
    await client.get(f"{url}/health")

    answer = await stood_still(process, deliver(url, document()))

    assert 200 == answer.status_code


@pytest.fixture
def halted(
    start: Start, cloner_target: str, client: httpx.AsyncClient, sign: Any, document: Callable[..., bytes]
) -> Callable[..., Coroutine[Any, Any, httpx.Response]]:
    """Starts a gateway, has it stand still in the middle of a body, and returns its answer."""

    async def run(**settings: str) -> httpx.Response:
        process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, **settings)
        url = await ready(process)
        body = document()
        half, rest = asyncio.Event(), asyncio.Event()

        async def sent() -> AsyncIterator[bytes]:
            yield body[:100]
            half.set()
            await rest.wait()
            yield body[100:]

        headers = {"Content-Type": "application/json", "ElevenLabs-Signature": sign(body)}
        delivery = asyncio.create_task(client.post(f"{url}/webhook", content=sent(), headers=headers))
        await half.wait()
        # Whoever answers this has read what came before it.
        await client.get(f"{url}/health")

        async def send_rest() -> None:
            rest.set()

        await stood_still(process, send_rest())
        return await delivery

    return run


async def test_body(halted: Callable[..., Coroutine[Any, Any, httpx.Response]]) -> None:
    """So is one whose body arrived while the gateway stood still."""
    answer = await halted(BODY_TIMEOUT_SECONDS=str(SECONDS))

    assert 200 == answer.status_code


async def test_budget(halted: Callable[..., Coroutine[Any, Any, httpx.Response]], cloner: Any) -> None:
    """A body that used up the time for its answer is told so: it was no provider who took the time."""
    answer = await halted(PRECALL_BUDGET_MS=str(SECONDS * 1000))

    assert (504, "DEADLINE_TOO_SHORT", []) == (answer.status_code, answer.json()["reason"], cloner.asked)


async def test_budget_of_a_call_that_goes_on(
    halted: Callable[..., Coroutine[Any, Any, httpx.Response]], cloner: Any
) -> None:
    """Where the time is over, nobody is asked how the agent speaks either: the answer would come too late."""
    answer = await halted(PRECALL_BUDGET_MS=str(SECONDS * 1000), PRECALL_FALLBACK="default_voice")

    assert (200, "DEADLINE_TOO_SHORT", []) == (answer.status_code, answer.json()["reason"], cloner.opened)


@pytest.mark.parametrize("arrived", [True, False])
def test_clock(arrived: bool) -> None:
    """It rings after its time, unless something had arrived by then that stops it."""

    async def stands_still() -> bool:
        clock, loop = Clock(), asyncio.get_running_loop()
        rung = asyncio.Event()
        ours, theirs = socket.socketpair()
        waking, woken = socket.socketpair()

        def stand_still() -> None:
            loop.remove_reader(woken)
            if arrived:
                theirs.send(b"x")
            time.sleep(0.1)

        with ours, theirs, waking, woken:
            loop.add_reader(ours, clock.stop)
            # While sockets are looked at: timers come next.
            loop.add_reader(woken, stand_still)
            clock.set(loop.time() + 0.05, rung.set)
            waking.send(b"x")
            await asyncio.sleep(0.3)
            loop.remove_reader(ours)
            return rung.is_set()

    assert uvloop.run(stands_still()) is not arrived


async def test_clock_that_is_set_again() -> None:
    """It rings, however often it is set to a time that is over."""
    rung = asyncio.Event()
    clock, loop = Clock(), asyncio.get_running_loop()
    over = loop.time()
    async with asyncio.timeout(60):
        while not rung.is_set():
            clock.set(over, rung.set)
            await asyncio.sleep(0.001)

    assert not clock.runs


async def test_answer_before_the_body_that_is_cut_short() -> None:
    """Nothing rings once nobody waits any more for what a client still sends."""
    waits = asyncio.Event()

    async def receive() -> Any:
        waits.set()
        await asyncio.Event().wait()

    async def send(_: Any) -> None:
        pass

    async def refuse(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    scope = {"type": "http", "headers": [(b"content-length", b"5")]}
    answering = asyncio.create_task(LingeringClose(refuse)(scope, receive, send))
    await waits.wait()
    answering.cancel()
    await asyncio.wait([answering])
    await asyncio.sleep(PAUSE_SECONDS + 2 * LOOK_SECONDS)

    assert [] == told
