import asyncio
import gc
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.edge.body import Bodies

Start = Callable[..., Awaitable[str]]
Document = Callable[..., bytes]

ANSWER = re.compile(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n(\{.*\})", re.DOTALL)


def head(signature: str, *lines: str) -> bytes:
    """The head of a delivery."""
    given = ["POST /webhook HTTP/1.1", "Host: x", "Content-Type: application/json", *lines]
    return "\r\n".join([*given, f"ElevenLabs-Signature: {signature}", "", ""]).encode()


def chunk(content: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(content), content)


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and JSON of an answer that closed the connection, and said that it would."""
    async with asyncio.timeout(60):
        whole = await reader.read()
    match = ANSWER.match(whole)
    assert match is not None
    assert b"connection: close\r\n" in whole
    return int(match[1]), match[2]


@pytest.fixture
def collected() -> Iterator[list[str]]:
    """What the garbage collector is asked to do, which it is wherever much memory was freed."""
    phases: list[str] = []

    def tell(phase: str, _: dict[str, int]) -> None:
        phases.append(phase)

    gc.disable()
    gc.callbacks.append(tell)
    yield phases
    gc.callbacks.remove(tell)
    gc.enable()


async def test_verified(collected: list[str]) -> None:
    """A body whose sender turns out to be known is held as before, and nothing of it counts as freed."""
    size = 64 * 1_048_576
    bodies = Bodies(size, {"deliveries": size})
    with bodies.share(size, "deliveries") as share:
        share.hold(size)
        share.mark_verified()
        while_held = [bodies.used, bodies.verified, *collected]
    freed = [bodies.used, bodies.verified, *collected]

    assert [size, size] == while_held
    assert [0, 0, "start", "stop"] == freed


async def test_become(collected: list[str]) -> None:
    """A body counts as freed once something else was made of it, which is held instead until the answer."""
    size = 32 * 1_048_576
    bodies = Bodies(2 * size, {"deliveries": 2 * size})
    with bodies.share(2 * size, "deliveries") as share:
        share.hold(size)
        before = [bodies.used, *collected]
        share.become(2 * size)
        after = [bodies.used, *collected]

    assert [size] == before
    assert [2 * size, "start", "stop"] == after


async def test_pieces(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Takes a chunked body, in whatever pieces it comes."""
    body = document()
    async with connected(await gateway()) as (reader, writer):
        writer.write(head(sign(body), "Transfer-Encoding: chunked", "Connection: close"))
        for at in range(0, len(body), 50):
            writer.write(chunk(body[at : at + 50]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

        status, _ = await answered(reader)

    assert 200 == status


async def test_kept_alive(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Keeps the connection after an answer to a body that was read."""
    body = document()
    async with connected(await gateway()) as (reader, writer):
        for _ in range(2):
            writer.write(head(sign(body), f"Content-Length: {len(body)}") + body)
            answer = await reader.readuntil(b"}}}}")

            assert b"HTTP/1.1 200 OK" in answer
            assert b"connection: close" not in answer


async def test_declared_too_large(gateway: Start, connected: Any, sign: Any) -> None:
    """Refuses a body by what it says of its size, before a byte of it came."""
    async with connected(await gateway()) as (reader, writer):
        writer.write(head(sign(b""), "Content-Length: 99999999", "Expect: 100-continue"))

        status, body = await answered(reader)

    assert (413, True) == (status, b"BODY_TOO_LARGE" in body)


async def test_chunked_too_large(gateway: Start, connected: Any, sign: Any) -> None:
    """Refuses a body without a size at the limit, without waiting for its end, and closes."""
    url = await gateway(voice_clone_max_size_mb=1.0)
    async with connected(url) as (reader, writer):
        writer.write(head(sign(b""), "Transfer-Encoding: chunked"))
        reading = asyncio.create_task(reader.readuntil(b"}"))
        sent = await flood(writer, chunk(bytes(100_000)), until=reading)
        answer = await reading
        await flood(writer, chunk(bytes(100_000)))

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"BODY_TOO_LARGE" in answer
    assert sent < 100_000_000


async def flood(
    writer: asyncio.StreamWriter, piece: bytes, *, until: asyncio.Task[bytes] | None = None
) -> int:
    """Sends a piece over and over until the other side closes or a task is done. Says how much."""
    sent = 0
    async with asyncio.timeout(60):
        while until is None or not until.done():
            try:
                writer.write(piece)
                await writer.drain()
            except ConnectionError:
                break
            sent += len(piece)
            await asyncio.sleep(0)
    return sent


@pytest.mark.long
@pytest.mark.parametrize("pause", [0.05, 0.005])
@pytest.mark.parametrize("limits", [{"body_timeout_seconds": 0.5}, {"body_timeout_seconds": 600.0}], ids=str)
async def test_dribble(
    gateway: Start, connected: Any, sign: Any, document: Document, limits: dict[str, float], pause: float
) -> None:
    """Cuts off a sender that never stops but hardly sends, by the time for all or by the rate."""
    body = document() + b" " * 10_000
    url = await gateway(**limits, precall_budget_ms=600_000)
    async with connected(url) as (reader, writer):
        writer.write(head(sign(body), f"Content-Length: {len(body)}"))
        reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        sent = 0
        while not reading.done():
            writer.write(body[sent : sent + 1])
            sent += 1
            await asyncio.wait([reading], timeout=pause)

        status_line, _, _ = (await reading).partition(b"\r\n")
        answer = await reader.read()

    assert (b"HTTP/1.1 408 Request Timeout", True) == (status_line, b"BODY_TIMEOUT" in answer)
    assert sent < len(body)


async def test_silence(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Cuts off a sender that sends nothing, or less than it said."""
    body = document()
    url = await gateway(body_timeout_seconds=0.3)

    async def send(size: int) -> tuple[int, bytes]:
        async with connected(url) as (reader, writer):
            writer.write(head(sign(body), f"Content-Length: {len(body)}") + body[:size])
            return await answered(reader)

    answers = await asyncio.gather(send(0), send(10))

    assert [(408, True)] * 2 == [(status, b"BODY_TIMEOUT" in answer) for status, answer in answers]


async def test_budget_bounds_the_body(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Waits for a body no longer than its answer may take."""
    body = document()
    url = await gateway(precall_budget_ms=300)

    async def refused() -> tuple[bool, int]:
        async with connected(url) as (reader, writer):
            began = time.monotonic()
            writer.write(head(sign(body), f"Content-Length: {len(body)}") + body[:10])

            line = await reader.readline()
            return time.monotonic() - began < 0.3, int(line.split()[1])

    # A busy machine makes an answer late now and then; it is not every time that it does.
    for _ in range(10):
        if (seen := await refused())[0]:
            break

    assert (True, 408) == seen


async def test_says_less_than_it_sends(
    gateway: Start, connected: Any, sign: Any, document: Document, cloner: Any
) -> None:
    """Takes only as much as was announced; the rest is no request."""
    body = document()
    async with connected(await gateway()) as (reader, writer):
        writer.write(head(sign(body), f"Content-Length: {len(body) - 10}") + body)

        status, rest = await answered(reader)

    assert (401, True) == (status, b"HTTP/1.1 400 Bad Request" in rest)
    assert [] == cloner.asked


CHUNKED = b"POST /webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "header": b"GET / HTTP/1.1\r\nX: ",
    "path": b"GET /",
    "trailer": CHUNKED + b"0\r\nX: ",
    "chunk extension": CHUNKED + b"5;",
}


async def test_endless(gateway: Start, connected: Any) -> None:
    """Does not collect what has no end, wherever in a request that is."""
    url = await gateway()
    for begin in ENDLESS.values():
        async with connected(url) as (_, writer):
            writer.write(begin)

            sent = await flood(writer, b"a" * 50_000)

        assert sent < 100_000_000


async def test_early_answer_to_a_busy_sender(gateway: Start, client: httpx.AsyncClient) -> None:
    """A client that sends 50 MB before it listens sees why it was refused."""
    answer = await client.post(f"{await gateway()}/webhook", content=bytes(50_000_000))

    assert (401, "SIGNATURE_MISSING") == (answer.status_code, answer.json()["reason"])
    assert "close" == answer.headers["connection"]


async def test_early_answer_to_a_slow_sender(gateway: Start, connected: Any) -> None:
    """Whoever looks for an answer only when all is sent finds it, though it came seconds before."""
    async with connected(await gateway()) as (reader, writer):
        writer.write(head("nonsense", "Content-Length: 4000000"))
        for _ in range(40):
            writer.write(bytes(100_000))
            await writer.drain()
            await asyncio.sleep(0.06)

        status, body = await answered(reader)

    assert (401, True) == (status, b"SIGNATURE_MALFORMED" in body)


async def test_early_answer_of_a_busy_gateway(gateway: Start, connected: Any) -> None:
    """A gateway that stands still for a moment does not take that for a pause of the sender."""
    async with connected(await gateway()) as (reader, writer):
        writer.write(head("nonsense", "Content-Length: 4000000"))
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"}")
        writer.write(bytes(100_000))
        await writer.drain()
        time.sleep(1.5)  # noqa: ASYNC251 - the gateway's loop, too
        await asyncio.sleep(0.1)
        for _ in range(39):
            writer.write(bytes(100_000))
            await writer.drain()
        async with asyncio.timeout(60):
            rest = await reader.read()

    assert (True, b"") == (b"SIGNATURE_MALFORMED" in answer, rest)


async def test_early_answer_to_curl(gateway: Start, tmp_path: Any, left_out: Any) -> None:
    """So does curl."""
    if not shutil.which("curl"):
        left_out("curl")
        return
    (tmp_path / "body").write_bytes(bytes(50_000_000))
    process = await asyncio.create_subprocess_exec(
        *(
            "curl",
            "-s",
            "-w",
            " %{http_code}",
            "--data-binary",
            f"@{tmp_path}/body",
            f"{await gateway()}/webhook",
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()

    assert output.endswith(b" 401")
    assert b"SIGNATURE_MISSING" in output


async def test_every_early_answer_closes(gateway: Start, connected: Any) -> None:
    """Answers before the body came, and then closes even if nothing more is sent."""
    url = await gateway()
    expected = {"GET /webhook": 405, "POST /none": 404, "POST /webhook": 401}

    async def ask(line: str) -> tuple[str, int]:
        async with connected(url) as (reader, writer):
            writer.write(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
            status, _ = await answered(reader)
        return line, status

    async with asyncio.timeout(60):
        actual = dict(await asyncio.gather(*map(ask, expected)))

    assert expected == actual


async def test_no_body_no_closing(gateway: Start, client: httpx.AsyncClient) -> None:
    """A refused request without a body leaves the connection open."""
    answer = await client.get(f"{await gateway()}/none")

    assert 404 == answer.status_code
    assert "connection" not in answer.headers


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_offered_upgrade(
    gateway: Start, connected: Any, sign: Any, document: Document, protocol: str
) -> None:
    """Reads the body of a client that offers another protocol, as Java's does."""
    body = document()
    offer = (
        "Connection: Upgrade, HTTP2-Settings",
        f"Upgrade: {protocol}",
        "HTTP2-Settings: AAMAAABkAAQAoAAA",
    )
    async with connected(await gateway()) as (reader, writer):
        writer.write(head(sign(body), f"Content-Length: {len(body)}", *offer))
        await writer.drain()
        writer.write(body)

        answer = await reader.readuntil(b"}}}}")

    assert b"HTTP/1.1 200 OK" in answer


NOT_HTTP = [
    b"garbage\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /webhook HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /webhook HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /webhook HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    b"GET /" + b"a" * 40_000,
]


async def test_not_http(gateway: Start, connected: Any) -> None:
    """Answers what is not HTTP, or has too many headers, in the one shape."""
    url = await gateway()
    for sent in NOT_HTTP:
        async with connected(url) as (reader, writer):
            writer.write(sent)

            status, body = await answered(reader)

        assert (400, True) == (status, b'"reason":"MALFORMED_BODY"' in body)
