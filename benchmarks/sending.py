"""Sends signed deliveries, many at once, over connections of their own, and says how each was answered."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from msgspec import Struct

from benchmarks.deliveries import SECRET

__all__ = ["Answer", "deliver", "deliver_all"]

BOUNDARY = "precall-benchmark"
PIECE = 262_144
LONGEST_SECONDS = 60.0


def event(number: int) -> dict[str, object]:
    """A pre-call event of a caller of their own."""
    return {
        "type": "pre_call",
        "conversation_id": f"conv_{number}",
        "agent_id": "agent_demo",
        "caller_metadata": {"name": "Ivan", "phone_number": f"+31612{number:06}"},
    }


class Answer(Struct, frozen=True):
    """How a delivery was answered, and how long that took."""

    status: int
    """0 where there was no answer."""

    reason: str
    seconds: float
    retry_after: bool = False


async def deliver(url: str, sample: bytes, number: int) -> Answer:
    """Delivers the sample as a form, of the caller of this number, without a copy of it."""
    place = urlsplit(url)
    began = time.monotonic()
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            try:
                return await _deliver(reader, writer, sample, number, began)
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as failure:
        return Answer(0, type(failure).__name__, time.monotonic() - began)


async def deliver_all(url: str, sample: bytes, numbers: Iterable[int], *, at_once: int) -> list[Answer]:
    """Delivers for each of these callers, so many at once."""
    left = iter(numbers)

    async def one_after_another() -> list[Answer]:
        return [await deliver(url, sample, number) for number in left]

    each = await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return [answer for answers in each for answer in answers]


async def _deliver(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sample: bytes, number: int, began: float
) -> Answer:
    pieces = _form(sample, number)
    stamp = str(int(time.time()))
    digest = hmac.new(SECRET.encode(), f"{stamp}.".encode(), hashlib.sha256)
    for piece in pieces:
        digest.update(piece)
    head = (
        "POST /webhook HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {sum(map(len, pieces))}\r\n"
        f"ElevenLabs-Signature: t={stamp},v0={digest.hexdigest()}\r\n\r\n"
    )
    writer.write(head.encode())
    answered = asyncio.ensure_future(_answer(reader, began))
    try:
        with contextlib.suppress(OSError):  # it may be answered before it has read all
            for piece in pieces:
                if answered.done():
                    break
                writer.write(piece)
                await writer.drain()
        return await answered
    finally:
        answered.cancel()


async def _answer(reader: asyncio.StreamReader, began: float) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    content = json.loads(await reader.read())
    status = int(head.split(" ", 2)[1])
    return Answer(
        status,
        content.get("reason") or content["status"],
        time.monotonic() - began,
        "\nretry-after:" in head.lower(),
    )


def _form(sample: bytes, number: int) -> list[memoryview | bytes]:
    metadata = json.dumps(event(number))
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{metadata}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="voice_sample"; filename="s.wav"\r\n\r\n'
    )
    whole = memoryview(sample)
    cut = [whole[at : at + PIECE] for at in range(0, len(sample), PIECE)]
    return [head.encode(), *cut, f"\r\n--{BOUNDARY}--\r\n".encode()]
