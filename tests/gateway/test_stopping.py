"""A gateway that is told to stop: whoever balances hears of it before anything is refused."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from gateway.app import listening, serving
from gateway.settings import Settings
from tests.kit.processes.gateway import SECRET, Start, ended, ready

# Long enough for all that a test does meanwhile on a busy machine.
DRAIN = {"DRAIN_SECONDS": "8", "SHUTDOWN_GRACE_SECONDS": "30"}


async def unready(url: str) -> httpx.Response:
    """The first answer of the health that says that deliveries go elsewhere."""
    async with httpx.AsyncClient(verify=False) as client:
        while (answer := await client.get(f"{url}/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
    return answer


@pytest.mark.long
async def test_serves_while_it_says_that_it_goes(
    start: Start, cloner_target: str, client: httpx.AsyncClient, deliver: Any, document: Callable[..., bytes]
) -> None:
    """It is not ready but lives, takes deliveries, and ends each connection by its answer."""
    process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target, **DRAIN)
    url = await ready(process)
    before = await deliver(url, document())
    assert 200 == (await client.get(f"{url}/health/ready")).status_code
    process.terminate()
    told = await unready(url)
    alive = await client.get(f"{url}/health/live")
    during = [await deliver(url, document()) for _ in range(3)]
    refused = await client.post(f"{url}/webhook", content=document())

    status, output, errors = await ended(process)

    assert (503, "CLONER_UNAVAILABLE", "This gateway is about to stop.") == (
        told.status_code, told.json()["reason"], told.json()["error_message"],
    )  # fmt: skip
    assert [200] * 5 == [answer.status_code for answer in (before, alive, *during)]
    assert "connection" not in before.headers
    assert [["close"]] * 5 == [answer.headers.get_list("connection") for answer in (alive, *during, refused)]
    assert (0, "") == (status, errors)
    assert "Traceback" not in output


async def test_stranger(
    settings: Callable[..., Settings],
    cloner_target: str,
    client: httpx.AsyncClient,
    connected: Any,
    spans: Any,
) -> None:
    """Who may be a stranger, and sends slowly, holds up the stop no longer than a delivery may take."""
    chosen = settings(cloner_target=cloner_target, body_timeout_seconds=0.1, post_call_timeout_seconds=60.0)
    head = f"ElevenLabs-Signature: t={int(time.time())},v0={'0' * 64}\r\nContent-Length: 1000000\r\n\r\n"

    async def sent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(f"POST /webhook/post-call HTTP/1.1\r\nHost: x\r\n{head}begin".encode())
        line = await reader.readline()
        writer.close()
        return line

    async with AsyncExitStack() as stack:
        async with serving(chosen, spans.provider("gateway"), listening(chosen)) as url:
            answer = asyncio.create_task(sent(*await stack.enter_async_context(connected(url))))
            # Whoever answers this has read what came before it.
            await client.get(f"{url}/health")

        assert (await answer).startswith(b"HTTP/1.1 429 ")


async def test_server_that_cannot_start(settings: Callable[..., Settings], spans: Any) -> None:
    """What does not serve does not say that it does."""
    chosen = settings(drain_seconds=0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unfit:
        unfit.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="Stream"):
            async with serving(chosen, spans.provider("gateway"), unfit):
                pytest.fail("it serves")


async def test_pause_is_part_of_the_grace(start: Start, cloner_target: str) -> None:
    """However long the pause is, the grace ends it."""
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target,
        DRAIN_SECONDS="3600", SHUTDOWN_GRACE_SECONDS="0.2",
    )  # fmt: skip
    await ready(process)
    process.terminate()

    assert (0, "") == (await ended(process))[::2]
