"""Reads a request's body, within limits of bytes, of time and of the bytes of all bodies together.

    BodyError BODY_TOO_LARGE   the sender's fault: larger than a delivery can be
    BodyError BODY_TIMEOUT     the sender's fault: too slow, or silent
    BodyError RATE_LIMITED     nobody's fault: too many bodies are in flight, and this one was evicted, or
                               no other one could be evicted
    ClientGone                 the client hung up; there is nobody to answer

None of them leaves anything behind.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from environment.memory import FreedMemory, give_back
from gateway.edge.clock import Clock, end
from gateway.edge.pacing import Pacing

__all__ = ["Bodies", "BodyError", "ClientGone", "Receive", "disconnected", "has_body", "read_body"]

Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]
Reason = Literal["BODY_TOO_LARGE", "BODY_TIMEOUT", "RATE_LIMITED"]

# How far a sender may fall behind the least rate: a lost packet takes a second or two to be sent again.
GRACE_SECONDS = 5.0
LENGTH = re.compile(rb"[0-9]{1,18}")


class BodyError(Exception):
    """The body was not read to its end. `message` says more than the reason, where there is more to say."""

    def __init__(self, reason: Reason, message: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message


class ClientGone(Exception):
    """The client hung up before it was answered."""


class Share:
    """What one body holds of the bytes that all may hold together."""

    def __init__(self, bodies: "Bodies", queue: "_Queue", most: int) -> None:
        self._bodies = bodies
        self._queue = queue
        self._most = most
        self.size = 0
        self.verified = False
        """Whether the sender is known; then the body is not evicted."""

        self.evicted = False
        """Whether it was evicted for others."""

        self.interrupt: Callable[[], None] = lambda: None
        """Ends the reading of the body."""

    def expect(self, size: int) -> None:
        """Raises BodyError if a body of this size cannot fit even after evictions. Reserves nothing."""
        if self._bodies.verified + min(size, self._most) > self._bodies.capacity:
            raise BodyError("RATE_LIMITED")

    async def wait_for_turn(self, left: int) -> None:
        """Waits until more may be read; `left` bytes are to come. With few bodies the wait is short."""
        if not self.verified:
            await self._bodies.pacing.wait_for_turn(left)

    def hold(self, size: int) -> None:
        """Notes how many bytes are held from now on. Raises BodyError if no eviction makes room for them."""
        more = size - self.size
        if self.evicted or (more > 0 and not self._bodies.make_room(self, self._queue, more)):
            raise BodyError("RATE_LIMITED")
        self._add(more)

    def become(self, size: int) -> None:
        """Notes that the body was replaced by something of `size` bytes. Raises BodyError."""
        former = self.size
        self.hold(size)
        self._bodies.note_freed(former)

    def mark_verified(self) -> None:
        """Notes that the sender is known. Raises BodyError if the body was evicted before."""
        if self.evicted:
            raise BodyError("RATE_LIMITED")
        # The bytes are held as before, but can no longer be evicted.
        self._queue.used -= self.size
        self._queue.shares.pop(self, None)
        self.verified = True
        self._bodies.verified += self.size

    def evict(self) -> None:
        """Gives its bytes to others; its reading ends with RATE_LIMITED."""
        self._add(-self.size)
        self.evicted = True
        self.interrupt()

    def end(self) -> None:
        """Gives back what is held."""
        self._add(-self.size)

    def _add(self, more: int) -> None:
        self.size += more
        self._bodies.count(more)
        if self.verified:
            self._bodies.verified += more
            return
        self._queue.used += more
        if self.size:
            self._queue.shares.setdefault(self)
        else:
            self._queue.shares.pop(self, None)


class _Queue:
    """The bodies of one route whose senders are not known yet, the oldest first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self.shares: dict[Share, None] = {}

    def oldest_but(self, share: Share) -> Share | None:
        """The oldest body but this one, which may be evicted for it."""
        return next((other for other in self.shares if other is not share), None)


class Bodies:
    """Counts the bytes of all bodies in flight, and gives memory back when they are gone.

    Bodies whose senders are not known yet share a budget for each route. When it is used up, the oldest of
    them is evicted for another body of the route; when all bytes are used up, for any body.
    """

    def __init__(self, capacity: int, budgets: Mapping[str, int]) -> None:
        """`budgets` has the bytes for each route, each enough for the largest body of that route."""
        self.capacity = capacity
        self.used = 0
        self.verified = 0
        self.pacing = Pacing()
        self._freed = FreedMemory(give_back)
        self._queues = {route: _Queue(budget) for route, budget in budgets.items()}

    @contextmanager
    def share(self, most: int, route: str) -> Iterator[Share]:
        """The share of a body that holds at most `most` bytes; it is given back at the end of the block."""
        share = Share(self, self._queues[route], most)
        try:
            yield share
        finally:
            share.end()

    def count(self, more: int) -> None:
        """Notes that so many more bytes are held, or fewer."""
        self.used += more
        if more < 0:
            self.note_freed(-more)

    def note_freed(self, size: int) -> None:
        """Notes that so many bytes were freed, even if others are held in their place."""
        self._freed.note_freed(size, held=self.used)

    def make_room(self, share: Share, queue: _Queue, more: int) -> bool:
        """Evicts others if it must; returns whether so many more bytes may be held now."""
        while not share.verified and queue.used + more > queue.budget:
            oldest = queue.oldest_but(share)
            if oldest is None:
                return False
            oldest.evict()
        while self.used + more > self.capacity:
            # The route that has most of its budget in use is evicted from first.
            fullest = sorted(self._queues.values(), key=lambda queue: queue.used / queue.budget, reverse=True)
            oldest = next((found for each in fullest if (found := each.oldest_but(share))), None)
            if oldest is None:
                return False
            oldest.evict()
        return True


async def read_body(
    headers: Headers,
    receive: Receive,
    feed: Callable[[bytes], None],
    share: Share,
    *,
    limit: int,
    seconds: float,
    least_rate: float,
) -> float:
    """Feeds the body to `feed` piece by piece; returns the loop's time at which it began to arrive.

    The wait for its first turn is subtracted from that time, because its bytes may have been there before.
    `feed` notes in `share` what it holds. A body that is declared too large is refused before a byte of it is
    read. One that comes with fewer than `least_rate` bytes a second is refused before `seconds` are over.
    Raises BodyError and ClientGone.
    """
    declared = _declared(headers)
    if declared > limit:
        raise _too_large(limit)
    # Nothing is reserved, so that a sender that only announces bytes keeps nobody out.
    share.expect(declared)
    loop = asyncio.get_running_loop()
    began: float | None = None
    size = 0
    waits = False
    ends = loop.time() + seconds
    due = loop.time() + GRACE_SECONDS
    whole, pace = Clock(), Clock()
    try:
        async with asyncio.timeout(None) as reading:
            share.interrupt = partial(end, reading)
            whole.set(ends, share.interrupt)
            while True:
                # While others have their turns, the sender is not at fault for being slow.
                pace.stop()
                asked, waits = loop.time(), True
                await share.wait_for_turn((declared or limit) - size)
                if share.evicted:
                    raise BodyError("RATE_LIMITED")
                waited, waits = loop.time() - asked, False
                due += waited
                pace.set(due, share.interrupt)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                now = loop.time()
                began = began or now - waited
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                feed(chunk)
                if not message.get("more_body", False):
                    return began
                due = min(due + len(chunk) / least_rate, now + GRACE_SECONDS)
                if due < now:
                    # This chunk was all that had arrived: the sender is too slow. A large chunk would have
                    # moved `due` further.
                    raise BodyError("BODY_TIMEOUT")
    except TimeoutError:
        raise BodyError("RATE_LIMITED" if share.evicted or waits else "BODY_TIMEOUT") from None
    finally:
        share.interrupt = lambda: None
        whole.stop()
        pace.stop()


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


def _too_large(limit: int) -> BodyError:
    return BodyError("BODY_TOO_LARGE", f"The body may have at most {limit} bytes.")


def _declared(headers: Headers) -> int:
    """What Content-Length says; 0 for a body whose length nobody knows."""
    for name, value in headers:
        if name == b"content-length":
            # uvicorn lets no other text pass; one that is too long for us is surely too large.
            return int(value) if LENGTH.fullmatch(value) else 1 << 63
    return 0
