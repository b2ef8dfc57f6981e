"""How long ElevenLabs waits for the answer to its initiation webhook, of a caller who is known."""

import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path

import httpx

from benchmarks.system import TOKEN, System

__all__ = ["measured"]

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.mp3"
CALLER = {"name": "Ivan", "phone_number": "+31612345678"}
MANY = 50


def measured(system: System, count: int) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile in milliseconds, one call after another, and 50 at once."""
    system.deliver(_announced, SPEECH.read_bytes(), 0)
    return asyncio.run(_measured(system.url, count))


async def _measured(url: str, count: int) -> dict[str, tuple[float, float]]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with AsyncExitStack() as stack:
        # A client each, because those who share one wait for each other in it.
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=False, trust_env=False)  # noqa: S501
            )
            for _ in range(MANY)
        ]
        alone = await _one_after_another(clients[0], (f"alone_{number}" for number in range(count)))
        names = (f"many_{number}" for number in range(count))
        each = await asyncio.gather(*(_one_after_another(client, names) for client in clients))
    return {"alone": _quantiles(alone), f"{MANY} at once": _quantiles(list(chain.from_iterable(each)))}


async def _one_after_another(http: httpx.AsyncClient, names: Iterator[str]) -> list[float]:
    return [await _ask(http, name) for name in names]


async def _ask(http: httpx.AsyncClient, conversation_id: str) -> float:
    """The milliseconds until a call was answered with the caller's voice."""
    call = {
        "caller_id": CALLER["phone_number"], "called_number": "+31201234567", "agent_id": "agent_demo",
        "call_sid": "CA0", "conversation_id": conversation_id,
    }  # fmt: skip
    began = time.perf_counter()
    answer = await http.post("/webhook/conversation-init", json=call)
    took = (time.perf_counter() - began) * 1000
    # Nobody's voice would be quicker.
    assert "conversation_config_override" in answer.raise_for_status().json()  # noqa: S101
    return took


def _announced(http: httpx.Client, sample: bytes, _: int) -> httpx.Request:
    """The delivery by which the caller is known."""
    call = {
        "type": "pre_call", "conversation_id": "conv_0", "agent_id": "agent_demo", "caller_metadata": CALLER,
    }  # fmt: skip
    data = {"format": "base64", "data": base64.b64encode(sample).decode()}
    return http.build_request("POST", "/webhook", json={**call, "voice_sample": data})


def _quantiles(times: list[float]) -> tuple[float, float]:
    times = sorted(times)
    return times[len(times) // 2], times[len(times) * 99 // 100]
