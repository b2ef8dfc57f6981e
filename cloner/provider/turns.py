"""Limits the requests to ElevenLabs at once, and lets calls go before work ahead of time.

Work that no call waits for (enrolment, replacement, erasure, clean-up, reconciliation) is done within
`yielding_to_calls()`; this includes tasks that are started there. Such work waits for as long as calls want
turns, and leaves one turn free for the next call.

A request whose turn would come too late is refused at once, so that the others are answered in time: without
that, everybody waits behind those who have given up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import msgspec

from cloner.measures import UNMEASURED, Measures
from cloner.provider.failures import OwnQueueFull
from cloner.refusals import Overloaded
from telemetry.parts import part

__all__ = ["Queue", "Turns", "Urgency", "urgency", "with_urgency", "yielding_to_calls"]


# The weight of the last turn in the estimate of how long the next one takes.
NEWS = 0.2
# How often the queue is checked while nothing happens.
REVIEW_SECONDS = 0.5
# How long a call takes between the end of its turn and its answer.
SPARE_SECONDS = 0.3


class Urgency:
    """Whether a call waits for a piece of work, and until when, on the loop's clock.

    Work that began ahead of time can become urgent.
    """

    def __init__(self, *, call: bool, until: float | None = None) -> None:
        self.call = call
        self.until = until
        self._heard_by: set[Callable[[], None]] = set()

    def hurry(self, until: float | None = None) -> None:
        """Marks the work as urgent: a call now waits for it, until `until`.

        If several calls wait, the latest time counts; None means without end.
        """
        self.call = True
        if self.until is not None:
            self.until = None if until is None else max(self.until, until)
        for tell in tuple(self._heard_by):
            tell()

    @contextlib.contextmanager
    def heard_by(self, tell: Callable[[], None]) -> Iterator[None]:
        """Calls `tell` at every change, for as long as the block lasts."""
        self._heard_by.add(tell)
        try:
            yield
        finally:
            self._heard_by.discard(tell)


_urgency: ContextVar[Urgency] = ContextVar("urgency")


def urgency() -> Urgency:
    """The urgency of the current work. Unless something else was set, a call waits for it."""
    return _urgency.get(None) or Urgency(call=True)


def yielding_to_calls() -> AbstractContextManager[None]:
    """A block of work that no call waits for."""
    return with_urgency(Urgency(call=False))


@contextlib.contextmanager
def with_urgency(mine: Urgency) -> Iterator[None]:
    """A block of work that is as urgent as `mine` at every moment."""
    token = _urgency.set(mine)
    try:
        yield
    finally:
        _urgency.reset(token)


@dataclass(eq=False, slots=True)
class _Place:
    """A request that waits, or that has its turn since `began`."""

    whose: Urgency
    kind: str
    declinable: bool
    turn: "asyncio.Future[bool]"
    """True once it has its turn, False if it gets none."""

    began: float = 0.0


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests are under way and how many wait, and how many of each may."""

    running: int
    running_limit: int
    waiting: int
    waiting_limit: int


class Turns:
    """Lets `at_once` requests through at once: calls first, of these begun work first, then by arrival.

    At most `queue` calls wait, and as many others.
    """

    def __init__(self, at_once: int, queue: int, measures: Measures = UNMEASURED) -> None:
        self._measures = measures
        self._at_once = at_once
        self._queue = queue
        self._running: set[_Place] = set()
        self._waiting: dict[_Place, None] = {}
        # How long a turn of each kind takes, as far as that is known.
        self._lasts: dict[str, float] = {}
        self._review: asyncio.TimerHandle | None = None

    @property
    def queue(self) -> Queue:
        """How much is under way, and how much waits."""
        return Queue(
            running=len(self._running),
            running_limit=self._at_once,
            waiting=len(self._waiting),
            waiting_limit=self._queue,
        )

    @property
    def full(self) -> bool:
        """Whether the next request of the current urgency would have to wait."""
        return not self._free(urgency())

    @asynccontextmanager
    async def one(self, deadline: float, *, kind: str = "", declinable: bool = False) -> AsyncIterator[None]:
        """Waits for a turn until the deadline. Raises OwnQueueFull then, or at once if too many wait.

        Turns of the same `kind` take about the same time. A `declinable` request raises Overloaded as soon as
        it is clear that it would end too late for the call that waits for it.
        """
        mine = urgency()
        loop = asyncio.get_running_loop()
        place = _Place(mine, kind, declinable, loop.create_future())
        came = loop.time()
        try:
            if not self._free(mine) or self._ahead_of(mine):
                await self._wait_for_turn(place, deadline)
            else:
                self._begin(place)
        finally:
            self._measures.turn_waited(call=mine.call, seconds=loop.time() - came)
        try:
            yield
        except BaseException:
            self._end(place)
            raise
        else:
            took = loop.time() - place.began
            known = self._lasts.get(kind, took)
            self._lasts[kind] = known + NEWS * (took - known)
            self._end(place)

    async def _wait_for_turn(self, place: _Place, deadline: float) -> None:
        if self._ahead_of(place.whose) >= self._queue:
            raise OwnQueueFull
        self._waiting[place] = None
        self._decline()
        try:
            with part("queue"), place.whose.heard_by(self._next):
                async with asyncio.timeout_at(deadline):
                    has_turn = await place.turn
        except BaseException as end:
            self._waiting.pop(place, None)
            if place in self._running:
                self._end(place)
            if isinstance(end, TimeoutError):
                raise OwnQueueFull from None
            raise
        if not has_turn:
            raise Overloaded(queue="own")

    def _begin(self, place: _Place) -> None:
        place.began = asyncio.get_running_loop().time()
        self._running.add(place)

    def _end(self, place: _Place) -> None:
        self._running.discard(place)
        self._next()
        self._decline()

    def _free(self, mine: Urgency) -> bool:
        kept = 1 if self._at_once > 1 and not mine.call else 0
        return len(self._running) < self._at_once - kept

    def _ahead_of(self, mine: Urgency) -> int:
        """How many requests of the same urgency wait before it."""
        return sum(other.whose.call == mine.call for other in self._waiting)

    def _in_order(self) -> list[_Place]:
        """The waiting requests: calls first, and of these begun work before those that can be declined."""
        return sorted(self._waiting, key=lambda place: (not place.whose.call, place.declinable))

    def _next(self) -> None:
        """Gives the free turns to calls first, then to others."""
        for place in self._in_order():
            if self._free(place.whose) and not place.turn.done():
                del self._waiting[place]
                self._begin(place)
                place.turn.set_result(True)

    def _decline(self) -> None:
        """Refuses requests that would end too late, and checks again in a moment while any waits."""
        if self._review is not None:
            self._review.cancel()
            self._review = None
        now = asyncio.get_running_loop().time()

        def lasts(kind: str) -> float:
            ages = [now - place.began for place in self._running if place.kind == kind]
            # The estimate rises where most turns under way have already lasted longer.
            return max(self._lasts.get(kind, 0.0), min(ages) if 2 * len(ages) >= self._at_once else 0.0)

        spare = now + SPARE_SECONDS
        work = sum(max(0.0, lasts(place.kind) - (now - place.began)) for place in self._running)
        for place in self._in_order():
            own, until = lasts(place.kind), place.whose.until
            if place.declinable and until is not None and now < until < spare + work / self._at_once + own:
                del self._waiting[place]
                if not place.turn.done():
                    place.turn.set_result(False)
                continue
            work += own
        if self._waiting:
            self._review = asyncio.get_running_loop().call_later(REVIEW_SECONDS, self._decline)
