"""Sends requests as cheaply as it can, and takes the time that each was answered in.

It shares the machine's cores with what it measures, as does the provider: so it parses nothing but the length
of an answer, and what it sends was put together before.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from urllib.parse import urlsplit

from benchmarks.deliveries import Request

__all__ = ["Answered", "Connection", "RequestFailed", "ask", "send", "send_evenly"]

END = b"\r\n\r\n"
LENGTH = b"content-length:"
PATIENCE_SECONDS = 60


class RequestFailed(Exception):
    """A request was not answered as it should be. The text says how."""


class Answered:
    """How long each of the requests took, in milliseconds, and how long all together, in seconds."""

    def __init__(self, times: Sequence[float], seconds: float) -> None:
        self.times = sorted(times)
        self.seconds = seconds

    @property
    def rate(self) -> float:
        """How many were answered in a second."""
        return len(self.times) / self.seconds

    def quantile(self, share: float) -> float:
        """What this share of them took at the most."""
        return self.times[min(len(self.times) - 1, int(len(self.times) * share))]

    def __add__(self, other: "Answered") -> "Answered":
        return Answered([*self.times, *other.times], self.seconds + other.seconds)


class Connection(asyncio.Protocol):
    """One connection that is kept open. Takes one request after the other."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._whole = 0
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, _: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(RequestFailed("the connection was closed without an answer"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole and (end := self._received.find(END)) >= 0:
            head = bytes(self._received[:end]).lower()
            at = head.find(LENGTH)
            if at < 0:
                self._transport.abort()
                return
            self._whole = end + len(END) + int(head[at + len(LENGTH) :].partition(b"\r\n")[0])
        if self._whole and len(self._received) >= self._whole and self._answered is not None:
            answer = bytes(self._received)
            self._received.clear()
            self._whole = 0
            if not self._answered.done():
                self._answered.set_result(answer)

    @property
    def closed(self) -> bool:
        """Whether the other side has closed it."""
        return self._transport.is_closing()

    async def exchange(self, request: Request) -> bytes:
        """Sends the request, and returns its answer with its headers."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.writelines(request.pieces)
        return await self._answered

    def close(self) -> None:
        self._transport.abort()


async def connected(url: str, count: int) -> list[Connection]:
    """So many connections to the address."""
    loop, (host, _, port) = asyncio.get_running_loop(), urlsplit(url).netloc.partition(":")
    made = [loop.create_connection(Connection, host, int(port)) for _ in range(count)]
    return [connection for _, connection in await asyncio.gather(*made)]


async def send(
    url: str, requests: Iterable[Request], *, at_once: int, seconds: float, expected: bytes
) -> Answered:
    """Sends requests, so many at once, until the time or they are over. Raises RequestFailed."""
    coming = iter(requests)
    connections = await connected(url, at_once)
    times: list[float] = []
    began = time.perf_counter()

    async def work(connection: Connection) -> None:
        for request in coming:
            times.append(await _timed(connection, request, expected))
            if time.perf_counter() - began >= seconds:
                return

    try:
        await asyncio.gather(*map(work, connections))
        return Answered(times, time.perf_counter() - began)
    finally:
        for connection in connections:
            connection.close()


async def send_evenly(
    url: str,
    requests: Iterator[Request],
    *,
    rate: float,
    at_most: int,
    seconds: float,
    expected: bytes,
    made: list[Connection],
) -> tuple[Answered, list[str]]:
    """Sends requests at a steady rate, whether or not those before were answered; says how others failed.

    Waiting for one of the `at_most` connections counts as part of the time that a request takes. Each
    connection that it makes is added to `made` at once.
    """
    room, idle = asyncio.Semaphore(at_most), deque[Connection]()
    times: list[float] = []
    failures: list[str] = []
    began = time.perf_counter()

    async def one(request: Request, due: float) -> None:
        async with room:
            connection = idle.pop() if idle else None
            if connection is None or connection.closed:
                (connection,) = await connected(url, 1)
                made.append(connection)
            waited = (time.perf_counter() - due) * 1000
            try:
                times.append(waited + await _timed(connection, request, expected))
            except RequestFailed as failure:
                failures.append(str(failure))
            idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(islice(requests, int(rate * seconds))):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(request, due))
    for connection in idle:
        connection.close()
    return Answered(times, time.perf_counter() - began), failures


async def ask(url: str, path: str, method: str = "POST") -> bytes:
    """The body of the answer to a small request of its own."""
    (connection,) = await connected(url, 1)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n".encode()
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await connection.exchange(Request((head,), "", ""))).partition(END)[2]
    finally:
        connection.close()


async def _timed(connection: Connection, request: Request, expected: bytes) -> float:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await connection.exchange(request)
    except TimeoutError:
        connection.close()  # the answer may still come, and would be taken for the next one's
        raise RequestFailed(f"not answered within {PATIENCE_SECONDS} seconds") from None
    took = (time.perf_counter() - began) * 1000
    status = answer[9:12]
    if status != b"200" or expected not in answer:
        raise RequestFailed(
            f"answered {status.decode()}: {answer.partition(END)[2][:300].decode(errors='replace')}"
        )
    return took
