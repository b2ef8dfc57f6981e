"""Reads a request's body, bounded in bytes, in time and in what all bodies hold together.

    BodyError BODY_TOO_LARGE   the sender's fault: larger than a delivery can be
    BodyError BODY_TIMEOUT     the sender's fault: too slow, or silent
    BodyError RATE_LIMITED     nobody's fault: too many bodies are in flight
    ClientGone                 the client hung up; there is nobody to answer

None of them leaves anything behind.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

__all__ = ["Bodies", "BodyError", "ClientGone", "Receive", "disconnected", "has_body", "read_body"]

Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]
Reason = Literal["BODY_TOO_LARGE", "BODY_TIMEOUT", "RATE_LIMITED"]

LENGTH = re.compile(rb"[0-9]{1,18}")


class BodyError(Exception):
    """The body was not read to its end."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientGone(Exception):
    """The client hung up before it was answered."""


class Share:
    """What one body holds of the bytes that all may hold together."""

    def __init__(self, bodies: "Bodies", most: int) -> None:
        self._bodies = bodies
        self._most = most
        self.size = 0

    def expect(self, size: int) -> None:
        """Raises BodyError if what is held of a body of this size does not fit now. Takes nothing."""
        if not self._bodies.fits(min(size, self._most)):
            raise BodyError("RATE_LIMITED")

    def hold(self, size: int) -> None:
        """Says how many bytes are held from now on. Raises BodyError if all bodies hold too many."""
        more = size - self.size
        if more > 0 and not self._bodies.fits(more):
            raise BodyError("RATE_LIMITED")
        self._bodies.used += more
        self.size = size


class Bodies:
    """Counts the bytes of all bodies in flight."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.used = 0

    @contextmanager
    def share(self, most: int) -> Iterator[Share]:
        """The share of a body of which so much is held at most, given back at the end of the block."""
        share = Share(self, most)
        try:
            yield share
        finally:
            self.used -= share.size

    def fits(self, size: int) -> bool:
        """Whether so many bytes more may be held now."""
        return self.used + size <= self._capacity


async def read_body(
    headers: Headers,
    receive: Receive,
    feed: Callable[[bytes], None],
    share: Share,
    *,
    limit: int,
    seconds: float,
) -> float:
    """Feeds the body to `feed` piece by piece; returns the loop's time at which it began to arrive.

    `feed` tells `share` what it holds. A body that says that it is too large is refused before a
    byte of it is read. Raises BodyError and ClientGone.
    """
    declared = _declared(headers)
    if declared > limit:
        raise BodyError("BODY_TOO_LARGE")
    # Nothing is reserved: who only announces bytes shall not keep others out.
    share.expect(declared)
    loop = asyncio.get_running_loop()
    began: float | None = None
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                began = began or loop.time()
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise BodyError("BODY_TOO_LARGE")
                feed(chunk)
                if not message.get("more_body", False):
                    return began
    except TimeoutError:
        raise BodyError("BODY_TIMEOUT") from None


async def disconnected(receive: Receive) -> None:
    """Returns when the client has hung up. For after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def has_body(headers: Headers) -> bool:
    """Whether a request with these headers has a body, however small."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )


def _declared(headers: Headers) -> int:
    """What Content-Length says; 0 for a body whose length nobody knows."""
    for name, value in headers:
        if name == b"content-length":
            # uvicorn lets no other text pass; one that is too long for us is surely too large.
            return int(value) if LENGTH.fullmatch(value) else 1 << 63
    return 0
