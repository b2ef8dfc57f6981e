"""A provider that answers whatever bytes it likes, as long as it likes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from opentelemetry.sdk.trace import TracerProvider

from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.exchange import Api
from cloner.provider.transport import AiohttpTransport, authorities
from telemetry.http_client import HttpClientTracing

Writer = asyncio.StreamWriter


class Adversary:
    """Answers each request with `answer`, bytes or a function that writes them, and notes its head."""

    def __init__(self) -> None:
        self.answer: bytes | Callable[[Writer], object] = b""
        self.heads: list[str] = []
        self.sent = 0
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serves, one request for each connection. Yields the base URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.create_task(self._exchange(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _exchange(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            await self._answer(reader, writer)
        finally:
            writer.transport.abort() if asyncio.current_task().cancelling() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            _, found, length = head.lower().partition("content-length: ")
            if found:
                await reader.readexactly(int(length.partition("\r\n")[0]))
            if callable(self.answer):
                await self.answer(writer)
            else:
                await self.send(writer, self.answer)

    async def send(self, writer: Writer, data: bytes) -> None:
        """Sends the bytes, as fast as the other side takes them."""
        writer.write(data)
        self.sent += len(data)
        await writer.drain()


def http_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer of HTTP."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


@contextlib.asynccontextmanager
async def client_of(
    url: str, *, attempts: int = 1, tracing: TracerProvider | None = None
) -> AsyncIterator[ElevenLabs]:
    """A client of whoever listens there."""
    async with HttpClientTracing(AiohttpTransport(authorities()), tracing or TracerProvider()) as transport:
        api = Api(transport, base_url=url, api_key="k")
        yield ElevenLabs(api, attempts=attempts, concurrency=2, queue=2)
