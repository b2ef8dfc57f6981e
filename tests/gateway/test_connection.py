import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

Start = Callable[..., Awaitable[str]]
Document = Callable[..., bytes]
Deliver = Callable[..., Awaitable[httpx.Response]]

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
FORGED = f"v0={'0' * 64}"


async def whole(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side closes."""
    async with asyncio.timeout(60):
        return await reader.read()


def statuses(answers: bytes) -> list[int]:
    """Of each answer."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


async def test_sent_ahead(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Answers what was sent ahead, each in its turn, with bodies of every kind between."""
    body = document()
    head = f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nElevenLabs-Signature: {sign(body)}\r\n"
    known = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    chunked = (
        f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\nX: y\r\n\r\n"
    )
    last = b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n"
    sent = HEALTH + known + chunked + HEALTH + chunked + known + last
    url = await gateway()
    for size in (7, 100, 1_000, len(sent)):
        async with connected(url) as (reader, writer):
            for at in range(0, len(sent), size):
                writer.write(sent[at : at + size])
                await asyncio.sleep(0)

            answers = await whole(reader)

        assert [200] * 6 + [404] == statuses(answers)
        assert 4 == answers.count(b'"status":"success"')


@pytest.mark.parametrize("piece", [HEALTH, b"GET /schema HTTP/1.1\r\n\r\n"])
async def test_flood_that_is_never_read(
    gateway: Start, connected: Any, deliver: Deliver, document: Document, piece: bytes
) -> None:
    """Reads no further than one answer ahead of a client that reads none, and ends it; others are served."""
    url = await gateway()
    async with connected(url) as (_, writer):
        sent = 0
        stuck = False
        while not stuck:
            writer.write(piece * 1_000)
            sent += 1_000 * len(piece)
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except (TimeoutError, ConnectionError):
                stuck = True

        answer = await deliver(url, document())
        # It would send what is left, and the gateway waits for that when it stops.
        writer.transport.abort()

    assert 200 == answer.status_code
    assert sent < 200_000_000


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
STRANGE = {
    "connect": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "connect to a path": (b"CONNECT /health HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "two connects": (b"CONNECT / HTTP/1.1\r\n\r\n" * 2, [400]),
    "two upgrades": (b"GET /health HTTP/1.1\r\n" + UPGRADE + b"\r\n", [200]),
    "upgrades": ((b"GET /health HTTP/1.1\r\n" + UPGRADE + b"\r\n") * 3, [200] * 3),
    "upgrade that closes": (
        b"GET /health HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: x\r\n\r\n" + HEALTH, [200]
    ),
    "upgrade, then text": (b"GET /health HTTP/1.1\r\n" + UPGRADE + b"\r\ntext\r\n\r\n", [200, 400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "absolute": (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", [200]),
    "absolute without a path": (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
    "both lengths": (
        b"POST /webhook HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400]
    ),
    "chunk size": (b"POST /none HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", [400]),
    "huge chunk size": (b"POST /none HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", [400]),
    "gzip": (b"POST /none HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", [400]),
    "folded": (b"GET /health HTTP/1.1\r\nX: a\r\n b\r\n\r\n", [400]),
    "NUL": (b"GET /health HTTP/1.1\r\nX: a\x00b\r\n\r\n", [400]),
    "bare line ends": (b"GET /health HTTP/1.1\nHost: x\n\n" * 100, [400]),
    "headers": (b"GET /health HTTP/1.1\r\n" + b"a:b\r\n" * 4_000 + b"\r\n", [400]),
    "huge path": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", [400]),
    "percent": (b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
    "HTTP/0.9": (b"GET /health\r\n\r\n", [200]),
    "empty lines": (b"\r\n" * 100 + HEALTH, [200]),
    "unknown expectation": (b"GET /health HTTP/1.1\r\nExpect: x\r\n\r\n", [200]),
    "HEAD that is broken": (b"HEAD /health HTTP/1.1\r\nX: a\x00b\r\n\r\n", [400]),
    "text after HEAD": (b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\ntext\r\n\r\n", [200, 400]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
async def test_strange(gateway: Start, connected: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Answers every oddity in the one shape or as what it is, and closes; nothing escapes to the loop."""
    sent, expected = STRANGE[name]
    url = await gateway()
    with caplog.at_level(logging.WARNING):
        async with connected(url) as (reader, writer):
            writer.write(sent)
            answers = b""
            async with asyncio.timeout(60):
                while len(statuses(answers)) < len(expected):
                    more = await reader.read(65_536)
                    assert more, answers
                    answers += more
                writer.write(b"\x00 what is no HTTP ends it\r\n\r\n")
                answers += await reader.read()

    assert expected == statuses(answers)[: len(expected)]
    if expected[-1] == 400 and not sent.startswith(b"HEAD"):
        assert json.loads(answers[answers.rindex(b"{") :])["reason"] == "MALFORMED_BODY"
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_signature_in_a_trailer(
    gateway: Start, connected: Any, sign: Any, document: Document, cloner: Any
) -> None:
    """Takes no signature that comes after the body."""
    body = document()
    head = b"POST /webhook HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    trailer = f"\r\n0\r\nElevenLabs-Signature: {sign(body)}\r\n\r\n".encode()
    async with connected(await gateway()) as (reader, writer):
        writer.write(head + b"%x\r\n" % len(body) + body + trailer)

        answer = await whole(reader)

    assert ([401], True) == (statuses(answer), b"SIGNATURE_MISSING" in answer)
    assert [] == cloner.asked


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200), ("/health/live", 200), ("/health/ready", 200), ("/schema/openapi.json", 200), ("/none", 404),
        ("/webhook", 405), ("/webhook/post-call", 405), ("/webhook/conversation-init", 405),
    ],
)  # fmt: skip
async def test_head(gateway: Start, connected: Any, path: str, status: int) -> None:
    """Answers HEAD as GET, without a body."""
    async with connected(await gateway()) as (reader, writer):
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

        answer = await whole(reader)

    assert [status] == statuses(answer)
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "second"])
@pytest.mark.parametrize(
    "broken",
    [
        b"HEAD /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n",
        b"HEAD \x01 HTTP/1.1\r\n\r\n",
        b"HEAD \r\n\r\n",
        b"HEAD http://x HTTP/1.1\r\n\r\n",
        b"HEAD /health HTTP/9.9\r\n\r\n",
        b"HEAD /health HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"HEAD /health HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"HEAD /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda broken: repr(broken[:24]),
)
async def test_head_that_cannot_be_read(gateway: Start, connected: Any, before: bytes, broken: bytes) -> None:
    """Tells whoever asks by HEAD of what is wrong without a body, too, wherever it goes wrong."""
    async with connected(await gateway()) as (reader, writer):
        writer.write(before + broken)

        answer = await whole(reader)

    assert [*([200] if before else []), 400] == statuses(answer)
    assert answer.endswith(b"\r\n\r\n")


async def test_too_many_tiny_chunks(gateway: Start, connected: Any, sign: Any) -> None:
    """Refuses a body in pieces so small that they cost more than their bytes."""
    head = f"POST /webhook HTTP/1.1\r\nElevenLabs-Signature: {sign(b'')}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connected(await gateway()) as (reader, writer):
        writer.write(head.encode() + b"1\r\nx\r\n" * 5_000)

        answer = await whole(reader)

    assert [400] == statuses(answer)


async def test_full_house(gateway: Start, deliver: Deliver, document: Document, connected: Any) -> None:
    """Serves a newcomer whatever the others do that nobody knows: idle, slow with headers or with a body."""
    url = await gateway(precall_max_connections=30)
    body = f"POST /webhook HTTP/1.1\r\nContent-Length: 9\r\nContent-Type: application/json\r\nElevenLabs-Signature: t={{}},{FORGED}\r\n\r\n"
    said = [b"", b"GET /", body.replace("{}", str(int(time.time()))).encode()]
    async with AsyncExitStack() as stack:
        for one in said:
            for _ in range(60):
                _, writer = await stack.enter_async_context(connected(url))
                writer.write(one)

            answers = [await deliver(url, document(), Connection="close") for _ in range(10)]

            assert [200] * 10 == [answer.status_code for answer in answers]


async def test_who_gives_way(gateway: Start, connected: Any) -> None:
    """The one that is idle longest goes before one that asks, and that before the newcomer."""
    url = await gateway(precall_max_connections=3)
    now = int(time.time())
    body = f"POST /webhook HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\nElevenLabs-Signature: t={now},{FORGED}\r\n\r\n"
    async with connected(url) as asking, connected(url) as first, connected(url) as second:
        asking[1].write(body.encode())
        for reader, writer in (second, first):
            writer.write(HEALTH)
            await reader.readuntil(b"}")
        async with connected(url) as third:
            # The second was idle before the first.
            assert b"" == await whole(second[0])
            third[1].write(b"GET /")
            async with connected(url) as fourth:
                assert b"" == await whole(first[0])
                fourth[1].write(body.encode())
                async with connected(url) as fifth:
                    assert b"" == await whole(third[0])
                    fifth[1].write(body.encode())
                    async with connected(url) as sixth:
                        assert [429] == statuses(await whole(asking[0]))
                        sixth[1].write(HEALTH)
                        async with asyncio.timeout(60):
                            assert b" 200 " in await sixth[0].readline()


@pytest.mark.parametrize("path", ["/webhook", "/webhook/post-call", "/webhook/conversation-init"])
async def test_stalled_bodies(
    gateway: Start, connected: Any, deliver: Deliver, document: Document, path: str
) -> None:
    """Takes every delivery beside bodies that nobody signed and that would fill all memory."""
    url = await gateway(voice_clone_max_size_mb=1.0, post_call_held_mb=1.0, body_buffer_mb=4.0)
    size = 250_000 if path.endswith("init") else 1_000_000
    now = int(time.time())
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {size}\r\nElevenLabs-Signature: t={now},{FORGED}\r\n\r\n"
    async with AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(connected(url)) for _ in range(24)]
        for _, writer in stalled:
            writer.write(head.encode() + bytes(size - 1))
        answers = [await deliver(url, document(bytes(900_000))) for _ in range(5)]
        first = await whole(stalled[0][0])

    assert [200] * 5 == [answer.status_code for answer in answers]
    assert statuses(first) in ([429], [408])


@pytest.mark.long
async def test_least_rate(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Ends a body that stalls long before it may take no longer."""
    body = document()
    url = await gateway(body_timeout_seconds=600, precall_budget_ms=600_000)
    head = f"POST /webhook HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nElevenLabs-Signature: {sign(body)}\r\n\r\n"
    async with connected(url) as (reader, writer):
        writer.write(head.encode() + body[:-1])

        answer = await whole(reader)

    assert ([408], True) == (statuses(answer), b"BODY_TIMEOUT" in answer)
