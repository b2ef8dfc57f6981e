"""Bounds how much is asked of ElevenLabs at once, and lets calls go before work ahead of time.

Work that no call waits for (enrolment, replacement, erasure, clean-up, reconciliation) is done within
`ahead()`, tasks begun there included. It waits for as long as calls want turns, and leaves one turn
free for the next call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import ContextVar

import msgspec

from cloner.provider.failures import Busy

__all__ = ["Queue", "Turns", "Urgency", "ahead", "as_urgent_as", "urgency"]


class Urgency:
    """Whether a call waits for a piece of work. It can come to be so while the work is under way."""

    def __init__(self, *, call: bool) -> None:
        self.call = call
        self._heard_by: set[Callable[[], None]] = set()

    def hurry(self) -> None:
        """Says that a call waits for it now."""
        self.call = True
        for tell in tuple(self._heard_by):
            tell()

    @contextlib.contextmanager
    def heard_by(self, tell: Callable[[], None]) -> Iterator[None]:
        """Has a change told for as long as the block lasts."""
        self._heard_by.add(tell)
        try:
            yield
        finally:
            self._heard_by.discard(tell)


_urgency: ContextVar[Urgency] = ContextVar("urgency")


def urgency() -> Urgency:
    """How urgent the work is that is being done here. Where nothing was said, a call waits for it."""
    return _urgency.get(None) or Urgency(call=True)


def ahead() -> AbstractContextManager[None]:
    """Work that no call waits for."""
    return as_urgent_as(Urgency(call=False))


@contextlib.contextmanager
def as_urgent_as(mine: Urgency) -> Iterator[None]:
    """Work as urgent as that is from time to time."""
    token = _urgency.set(mine)
    try:
        yield
    finally:
        _urgency.reset(token)


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """How much is under way and how much waits, and how much of each may."""

    running: int
    running_limit: int
    waiting: int
    waiting_limit: int


class Turns:
    """Lets `at_once` through at once, of each urgency in the order in which they came.

    At most `queue` calls wait, and as many others.
    """

    def __init__(self, at_once: int, queue: int) -> None:
        self._at_once = at_once
        self._queue = queue
        self._running = 0
        self._waiting: dict[asyncio.Future[None], Urgency] = {}

    @property
    def queue(self) -> Queue:
        """How much is under way, and how much waits."""
        return Queue(
            running=self._running,
            running_limit=self._at_once,
            waiting=len(self._waiting),
            waiting_limit=self._queue,
        )

    @property
    def full(self) -> bool:
        """Whether the next one who is as urgent as this would have to wait."""
        return not self._free(urgency())

    @asynccontextmanager
    async def one(self, deadline: float) -> AsyncIterator[None]:
        """Waits for a turn until the deadline; raises Busy then, and at once when too many wait already."""
        mine = urgency()
        if self._free(mine) and not self._ahead_of(mine):
            self._running += 1
        else:
            await self._turn(mine, deadline)
        try:
            yield
        finally:
            self._running -= 1
            self._next()

    async def _turn(self, mine: Urgency, deadline: float) -> None:
        if self._ahead_of(mine) >= self._queue:
            raise Busy
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = mine
        try:
            with mine.heard_by(self._next):
                async with asyncio.timeout_at(deadline):
                    await turn
        except BaseException as end:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():
                self._running -= 1
                self._next()
            if isinstance(end, TimeoutError):
                raise Busy from None
            raise

    def _free(self, mine: Urgency) -> bool:
        kept = 1 if self._at_once > 1 and not mine.call else 0
        return self._running < self._at_once - kept

    def _ahead_of(self, mine: Urgency) -> int:
        """How many wait who are as urgent."""
        return sum(other.call == mine.call for other in self._waiting.values())

    def _next(self) -> None:
        """Gives the free turns to calls first, then to others."""
        for call in (True, False):
            for turn, whose in list(self._waiting.items()):
                if whose.call == call and self._free(whose) and not turn.done():
                    del self._waiting[turn]
                    self._running += 1
                    turn.set_result(None)
