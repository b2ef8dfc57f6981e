"""What httpx's requests meet on their way over aiohttp, on sockets that misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from cloner.provider.transport import AiohttpTransport, authorities

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[str]:
    """A server that does as it is told with each connection."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def client(timeout: float = 5.0) -> httpx.AsyncClient:
    """A client as the cloner has it."""
    return httpx.AsyncClient(transport=AiohttpTransport(authorities()), timeout=timeout, trust_env=False)


async def head(reader: asyncio.StreamReader) -> bytes:
    """A request's headers."""
    return await reader.readuntil(b"\r\n\r\n")


async def test_body_in_pieces() -> None:
    """A body whose length is told goes out under that length, and not in chunks, with the headers as given."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await head(reader)).lower())
        seen.append(await reader.readexactly(6))
        writer.write(OK)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    async with served(serve) as place, client() as http:
        headers = {"Content-Length": "6", "Content-Type": "x/y", "User-Agent": "precall"}
        answer = await http.post(f"http://{place}/v1/a%2Fb?q=%2B1", content=pieces(), headers=headers)

    assert (200, b"ok", b"abcdef") == (answer.status_code, answer.content, seen[1])
    lines = seen[0].split(b"\r\n")
    assert b"post /v1/a%2fb?q=%2b1 http/1.1" == lines[0]
    assert {b"content-length: 6", b"content-type: x/y", b"user-agent: precall"} < set(lines)
    assert b"transfer-encoding" not in seen[0]
    assert 1 == seen[0].count(b"host:")


async def test_body_of_unknown_length() -> None:
    """A body whose length nobody tells goes out in chunks."""
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(OK)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"

    async with served(serve) as place, client() as http:
        await http.post(f"http://{place}/", content=pieces())

    lines = bytes(seen).lower().split(b"\r\n")
    assert [b"transfer-encoding: chunked"] == [
        line for line in lines if line.startswith(b"transfer-encoding")
    ]
    assert bytes(seen).endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


async def test_refused_before_the_body_is_read() -> None:
    """An answer that comes while the body is still sent is the answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        while await reader.read(65_536):  # or the kernel resets the connection
            pass

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(100_000)

    async with served(serve) as place, client() as http:
        headers = {"Content-Length": "10000000"}
        answer = await http.post(f"http://{place}/", content=pieces(), headers=headers)

    assert (413, b"no") == (answer.status_code, answer.content)


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", httpx.ReadError), (b"HTTP/1.1 200 OK\r\nContent-Le", httpx.ReadError), (OK[:-1], httpx.ReadError),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", httpx.RemoteProtocolError),
    ],
)  # fmt: skip
async def test_broken_answer(answer: bytes, expected: type[Exception], method: str) -> None:
    """A connection that breaks after the request, or what is no HTTP, may have done what was asked."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await head(reader)
        writer.write(answer)

    async with served(serve) as place, client() as http:
        with pytest.raises(expected):
            await http.request(method, f"http://{place}/", content=b"x")

    assert 1 == asked


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_kept_connection_that_was_closed(method: str) -> None:
    """Nothing is sent twice here, whatever is asked and however old the connection: so it may have been done."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        for answer in (OK, b""):
            await head(reader)
            await reader.readexactly(1)
            asked += 1
            writer.write(answer)

    async with served(serve) as place, client() as http:
        await http.request(method, f"http://{place}/", content=b"x")
        with pytest.raises(httpx.ReadError):
            await http.request(method, f"http://{place}/", content=b"x")

    assert 2 == asked


async def test_answer_that_nobody_asked_for() -> None:
    """What comes on a kept connection between two requests is the answer to neither: the next gets another."""
    received = asyncio.Event()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await head(reader)
        writer.write(OK)
        await received.wait()
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with served(serve) as place, client() as http:
        await http.get(f"http://{place}/")
        received.set()
        for _ in range(5):  # turns of the loop, in which it is sent and arrives
            await asyncio.sleep(0)
        answer = await http.get(f"http://{place}/")

    assert (200, b"ok", 2) == (answer.status_code, answer.content, connections)


async def test_silence() -> None:
    """No answer in time is told apart from no connection, whether none of it came or half."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"half" in await head(reader):
            writer.write(OK[:-1])
        await reader.read()

    async with served(serve) as place, client(0.3) as http:
        for path in ("none", "half"):
            with pytest.raises(httpx.ReadTimeout):
                await http.get(f"http://{place}/{path}")


async def test_no_connection() -> None:
    """Where nobody listens, no such host is, or TLS is not spoken, nothing was sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with served(serve) as place, client() as http:
        for url in ("http://127.0.0.1:1/", "http://nowhere.invalid/", f"https://{place}/"):
            with pytest.raises(httpx.ConnectError):
                await http.post(url, content=b"x")


async def test_no_connection_in_time() -> None:
    """A handshake that nobody answers ends in time, and nothing was sent."""

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.sleep(1)

    async with served(serve) as place, client(0.3) as http:
        with pytest.raises(httpx.ConnectTimeout):
            await http.post(f"https://{place}/", content=b"x")


async def test_connections_are_kept() -> None:
    """One request after the other goes over one connection; one whose answer was not read to its end closes it."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while not reader.at_eof():
            try:
                await head(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))

    async with served(serve) as place, client() as http:
        for _ in range(2):
            await http.get(f"http://{place}/")
        assert 1 == connections
        async with http.stream("GET", f"http://{place}/"):
            pass
        await http.get(f"http://{place}/")

    assert 2 == connections


async def test_given_up() -> None:
    """A request that is given up closes its connection."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await head(reader)
        await reader.read()
        closed.set()

    async with served(serve) as place, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await http.get(f"http://{place}/")
        async with asyncio.timeout(60):
            await closed.wait()
