"""A gateway that is told to stop: whoever balances hears of it before anything is refused."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from tests.kit.processes.gateway import SECRET, Start, ended, ready

# Long enough for all that a test does meanwhile on a busy machine.
DRAIN = {"DRAIN_SECONDS": "8", "SHUTDOWN_GRACE_SECONDS": "30"}


async def unready(url: str) -> httpx.Response:
    """The first answer of the health that says that deliveries go elsewhere."""
    async with httpx.AsyncClient(verify=False) as client:
        while (answer := await client.get(f"{url}/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
    return answer


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


async def test_pause_is_part_of_the_grace(start: Start, cloner_target: str) -> None:
    """However long the pause is, the grace ends it."""
    process = await start(
        ELEVENLABS_WEBHOOK_SECRET=SECRET, CLONER_TARGET=cloner_target,
        DRAIN_SECONDS="3600", SHUTDOWN_GRACE_SECONDS="0.2",
    )  # fmt: skip
    await ready(process)
    process.terminate()

    assert (0, "") == (await ended(process))[::2]
