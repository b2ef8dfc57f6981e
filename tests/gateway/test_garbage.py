"""Of a request that failed nothing is left: what refers to itself would stay until somebody looks for garbage."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import httpx
import pytest

from environment import Secret
from tests.gateway.events import transcription
from tests.kit.garbage import left_in_cycles

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Coroutine[Any, Any, httpx.Response]]
Document = Callable[..., bytes]


async def full(context: Any) -> Any:
    """Refuses a call."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


async def silent(_context: Any) -> Any:
    """Never answers."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("otherwise", ["error", "default_voice"])
async def test_failed(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any, otherwise: str
) -> None:
    """Nothing of a delivery is left, whoever refused it."""
    url = await gateway(precall_fallback=otherwise, precall_budget_ms=600)
    bodies = [document(), document(agent_id="../"), b"{"]
    with left_in_cycles("gateway", "client") as left:
        for reply in (full, silent):
            cloner.reply = reply
            refused = [await deliver(url, body) for body in bodies]
            assert all(answer.json()["status"] in {"error", "fallback"} for answer in refused)
        forged = await deliver(url, document(), **{"ElevenLabs-Signature": f"t=1,v0={'0' * 64}"})
        assert 401 == forged.status_code

    assert [] == left


async def test_abandoned(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any, spans: Any
) -> None:
    """Nothing of a delivery is left whose sender hung up."""
    asked = asyncio.Event()

    async def never(_context: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    cloner.reply = never
    url = await gateway()
    with left_in_cycles("gateway", "client") as left:
        delivery = asyncio.create_task(deliver(url, document()))
        await asked.wait()
        delivery.cancel()
        await asyncio.gather(delivery, return_exceptions=True)
        await spans.wait("POST /webhook")

    assert [] == left


async def test_events(gateway: Start, client: httpx.AsyncClient, tell: Deliver, cloner: Any) -> None:
    """Nothing is left of ElevenLabs' own webhooks that could not be read, or that the cloner refused."""
    cloner.completed = cloner.opening = full
    url = await gateway(conversation_init_token=(Secret("test-token-0001"),))
    with left_in_cycles("gateway", "client") as left:
        ended = await tell(url, transcription())
        unreadable = await tell(url, transcription()[:-1] + b" " * 100_000)
        begun = await client.post(
            f"{url}/webhook/conversation-init",
            json={"caller_id": "+31612345678", "agent_id": "agent_def456uvw"},
            headers={"Authorization": "Bearer test-token-0001"},
        )

    assert [429, 400, 200] == [answer.status_code for answer in (ended, unreadable, begun)]
    assert [] == left
    assert cloner.opened
