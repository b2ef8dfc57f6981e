import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.events import (
    BARE,
    MIB,
    PATH,
    SECRET,
    event,
    head,
    recording,
    signature,
    streamed,
    transcription,
)

SERVER = f"POST {PATH}"

Start = Callable[..., Awaitable[str]]
Tell = Callable[..., Coroutine[Any, Any, httpx.Response]]


async def test_recording(gateway: Start, client: httpx.AsyncClient, cloner: Any, spans: Any) -> None:
    """Takes a recording that ends nothing, and still says which call it is of."""
    answer = await streamed(client, await gateway(), 50 * MIB)

    (server,) = await spans.wait(SERVER)
    assert (200, "conv_y", []) == (answer.status_code, answer.json()["conversation_id"], cloner.ended)
    assert ("post_call_audio", "ignored", "agent_x") == (
        server.attributes["precall.event.type"],
        server.attributes["precall.reason"],
        server.attributes["gen_ai.agent.id"],
    )


async def test_forged_recording(gateway: Start, client: httpx.AsyncClient) -> None:
    """Checks the signature of all of a recording."""
    signed = signature([*recording(MIB), b"x"])

    answer = await streamed(client, await gateway(), MIB, signed=signed)

    assert (401, "SIGNATURE_MISMATCH") == (answer.status_code, answer.json()["reason"])


def peak(pid: int) -> int:
    """The most memory that a process ever had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(("last", "at_once", "most"), [(False, 4, 6 * MIB), (True, 2, 44 * MIB)])
async def test_memory(start: Any, client: httpx.AsyncClient, last: bool, at_once: int, most: int) -> None:
    """Holds next to nothing of recordings; of those whose type comes last, what may be held of events."""
    process = await start(ELEVENLABS_WEBHOOK_SECRET=SECRET)
    url = (await process.stdout.readline()).decode().split()[-1]
    await streamed(client, url, MIB)
    before = peak(process.pid)
    signed = signature(recording(50 * MIB, last=last))

    answers = await asyncio.gather(
        *(streamed(client, url, 50 * MIB, last=last, signed=signed) for _ in range(at_once))
    )

    assert [200] * at_once == [answer.status_code for answer in answers]
    assert peak(process.pid) - before < most


async def test_held_together(gateway: Start, client: httpx.AsyncClient, connected: Any) -> None:
    """What events hold counts with all other bodies: the oldest that nobody has signed gives way."""
    url = await gateway(voice_clone_max_size_mb=0.5, body_buffer_mb=1.1, post_call_held_mb=0.9)
    large = event("post_call_transcription", {"conversation_id": "conv_y", "x": "x" * 800_000})
    async with connected(url) as (reader, writer):
        writer.write(head(signature([large]), f"Content-Length: {len(large)}") + large[:-1])
        await writer.drain()

        taken = await client.post(
            url + PATH, content=large, headers={"ElevenLabs-Signature": signature([large])}
        )
        recording = await streamed(client, url, 5 * MIB)
        async with asyncio.timeout(60):
            first = await reader.readuntil(b"}")

    assert (200, 200) == (taken.status_code, recording.status_code)
    assert first.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1\r\n" in first


async def test_too_large_to_be_held(gateway: Start, tell: Tell, cloner: Any) -> None:
    """Ends the call of an event that is too large to be held by what its beginning says."""
    url = await gateway(post_call_held_mb=0.5)
    turns = [{"role": "user", "message": "x" * 1_000}] * 1_000

    found = await tell(url, transcription(transcript=turns))
    lost = await tell(
        url, event("post_call_transcription", {"transcript": turns, "conversation_id": "conv_y"})
    )

    assert (200, [BARE]) == (found.status_code, cloner.ended)
    assert (413, "BODY_TOO_LARGE") == (lost.status_code, lost.json()["reason"])
    assert (
        "The event is too large, and its first 65536 bytes do not say what it is and of which call."
        == lost.json()["error_message"]
    )


async def test_too_large(gateway: Start, connected: Any, client: httpx.AsyncClient) -> None:
    """Refuses more than the limit: by what is announced, or while it streams in."""
    url = await gateway(post_call_max_mb=2.0)
    async with connected(url) as (reader, writer):
        writer.write(head(signature([b""]), "Content-Length: 2097153"))
        async with asyncio.timeout(60):
            announced = await reader.read()
    streaming = await streamed(client, url, 50 * MIB)
    fits = await streamed(client, url, 2 * MIB - MIB // 8)

    assert announced.startswith(b"HTTP/1.1 413 ")
    assert b"BODY_TOO_LARGE" in announced
    assert b"The body may have at most 2097152 bytes." in announced
    assert (413, "BODY_TOO_LARGE", "close") == (
        streaming.status_code,
        streaming.json()["reason"],
        streaming.headers["connection"],
    )
    assert 200 == fits.status_code


async def test_too_large_for_who_sends_first(gateway: Start, connected: Any) -> None:
    """A client that reads only once it has sent all sees the refusal, however large an event may be."""
    size = 130 * MIB
    async with connected(await gateway()) as (reader, writer), asyncio.timeout(60):
        writer.write(head(signature([b""]), f"Content-Length: {size}"))
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
            await writer.drain()
        answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_limits_are_its_own(gateway: Start, tell: Tell, connected: Any) -> None:
    """Neither the size nor the time of a delivery before a call counts here."""
    small: dict[str, Any] = {
        "voice_clone_max_size_mb": 0.1,
        "body_timeout_seconds": 0.1,
        "precall_budget_ms": 200,
    }
    url = await gateway(**small, post_call_timeout_seconds=30)
    impatient = await gateway(**small, post_call_timeout_seconds=1)
    large = transcription(transcript=[{"message": "x" * 1_000_000}])
    body = transcription()
    async with connected(url) as (reader, writer):
        writer.write(head(signature([body]), f"Content-Length: {len(body)}"))
        await asyncio.sleep(0.4)
        writer.write(body)
        async with asyncio.timeout(60):
            slow = await reader.readline()
    async with connected(impatient) as (reader, writer):
        writer.write(head(signature([body]), f"Content-Length: {len(body)}"))
        async with asyncio.timeout(60):
            too_slow = await reader.read()

    assert 200 == (await tell(url, large)).status_code
    assert b"HTTP/1.1 200 OK\r\n" == slow
    assert too_slow.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_TIMEOUT" in too_slow
