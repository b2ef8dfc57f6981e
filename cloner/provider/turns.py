"""Limits the requests to ElevenLabs at once, and lets calls go before work ahead of time.

Work that no call waits for (enrolment, replacement, erasure, clean-up, reconciliation) is done within
`yielding_to_calls()`; this includes tasks that are started there. Such work waits for as long as calls want
turns, and leaves one turn free for the next call.

A create lasts for seconds, and for a minute where ElevenLabs does not answer. Where there are more than two
turns, creates therefore leave one to what is short: agents are read and put back meanwhile.

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
from cloner.provider.failures import Busy, OwnQueueFull
from cloner.refusals import Overloaded
from telemetry.parts import part

__all__ = ["Queue", "Turns", "Urgency", "urgency", "with_urgency", "yielding_to_calls"]


# The weight of the last turn in the estimate of how long the next one takes.
NEWS = 0.2
# How often the queue is checked while nothing happens.
REVIEW_SECONDS = 0.5
# How long a call takes between the end of its turn and its answer.
SPARE_SECONDS = 0.3
# ElevenLabs' words for more requests at once than the plan allows (API reference, "Errors"): what helps is
# the end of others, of this process or another.
CROWDED_WORDS = ("concurrent_limit_exceeded", "too_many_concurrent_requests")
# After such a word, how long it takes until one create more is tried at once.
RAISE_SECONDS = 5.0


class Urgency:
    """Whether a call waits for a piece of work, and until when, on the loop's clock.

    Work that began ahead of time can become urgent, and work that a call waited for can be left.
    """

    def __init__(self, *, call: bool, until: float | None = None) -> None:
        self.call = call
        self.until = until
        self._heard_by: set[Callable[[], None]] = set()
        self._give_up: Callable[[], object] | None = None

    def hurry(self, until: float | None = None) -> None:
        """Marks the work as urgent: a call now waits for it, until `until`.

        If several calls wait, the latest time counts; None means without end.
        """
        self.call, self._give_up = True, None
        if self.until is not None:
            self.until = None if until is None else max(self.until, until)
        for tell in tuple(self._heard_by):
            tell()

    def leave(self, give_up: Callable[[], object] | None) -> None:
        """Marks the work as such that nobody waits for any more.

        Once a call waits for a turn, `give_up` is called: it ends the work.
        """
        self.call, self._give_up = False, give_up

    def give_way(self) -> None:
        """Ends the work if nobody waits for it any more."""
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

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
    lasting: bool
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
    """Lets `at_once` requests through at once.

    Calls go before other work; among calls, requests that may not be declined go first; then arrival counts.
    At most `queue` calls wait, and as many others. If ElevenLabs says that there are too many at once, fewer
    lasting ones are let through for a while.
    """

    def __init__(self, at_once: int, queue: int, measures: Measures = UNMEASURED) -> None:
        self._measures = measures
        self._at_once = at_once
        self._queue = queue
        self._running: set[_Place] = set()
        self._lasting = 0
        # How many lasting requests ElevenLabs let through besides the one that it refused last, and when.
        self._let: tuple[int, float] | None = None
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
        """Whether the next lasting request of the current urgency would have to wait."""
        return not self._free(urgency(), lasting=True)

    @asynccontextmanager
    async def one(
        self, deadline: float, *, kind: str = "", declinable: bool = False, lasting: bool = False
    ) -> AsyncIterator[None]:
        """Waits for a turn until the deadline. Raises OwnQueueFull then, or at once if too many wait.

        Turns of the same `kind` take about the same time. A `declinable` request raises Overloaded as soon as
        it is clear that it would end too late for the call that waits for it. A `lasting` one may take long.
        """
        mine = urgency()
        loop = asyncio.get_running_loop()
        place = _Place(mine, kind, declinable, lasting, loop.create_future())
        came = loop.time()
        try:
            if self._waiting or not self._free(mine, lasting=lasting):
                await self._wait_for_turn(place, deadline)
            else:
                self._begin(place)
        finally:
            self._measures.turn_waited(call=mine.call, seconds=loop.time() - came)
        try:
            yield
        except BaseException as end:
            self._note_crowded(place, end)
            self._end(place)
            raise
        else:
            took = loop.time() - place.began
            known = self._lasts.get(kind, took)
            self._lasts[kind] = known + NEWS * (took - known)
            self._end(place)

    async def _wait_for_turn(self, place: _Place, deadline: float) -> None:
        self._waiting[place] = None
        # What is short may have a turn that those who came before may not have.
        self._next()
        if place in self._running:
            return
        if self._waiting_like(place.whose) > self._queue:
            del self._waiting[place]
            raise OwnQueueFull
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
        self._lasting += place.lasting

    def _end(self, place: _Place) -> None:
        self._running.discard(place)
        self._lasting -= place.lasting
        self._next()
        self._decline()

    def _free(self, mine: Urgency, *, lasting: bool) -> bool:
        kept = 0 if mine.call else 1
        if len(self._running) >= max(1, self._at_once - kept):
            return False
        return not lasting or self._lasting < max(1, self._most_lasting() - kept)

    def _most_lasting(self) -> int:
        """How many lasting requests may be under way at once."""
        most = self._at_once - 1 if self._at_once > 2 else self._at_once
        if self._let is None:
            return most
        let, since = self._let
        return min(most, let + int((asyncio.get_running_loop().time() - since) / RAISE_SECONDS))

    def _note_crowded(self, place: _Place, end: BaseException) -> None:
        """Has the next ones wait until others have ended, if ElevenLabs says that there were too many."""
        if place.lasting and isinstance(end, Busy) and end.code in CROWDED_WORDS:
            self._let = max(1, self._lasting - 1), asyncio.get_running_loop().time()

    def _waiting_like(self, mine: Urgency) -> int:
        """How many requests of the same urgency wait."""
        return sum(other.whose.call == mine.call for other in self._waiting)

    def _in_order(self) -> list[_Place]:
        """The waiting requests: calls first, and among these what may not be declined; then by arrival."""
        return sorted(self._waiting, key=lambda place: (not place.whose.call, place.declinable))

    def _next(self) -> None:
        """Gives the free turns to calls first, then to others."""
        for place in self._in_order():
            if len(self._running) >= self._at_once:
                return
            if self._free(place.whose, lasting=place.lasting) and not place.turn.done():
                del self._waiting[place]
                self._begin(place)
                place.turn.set_result(True)

    def _decline(self) -> None:
        """Ends what nobody waits for, and refuses requests that would end too late.

        Looks again in a moment while any waits.
        """
        if self._review is not None:
            self._review.cancel()
            self._review = None
        if len(self._running) >= self._at_once and any(place.whose.call for place in self._waiting):
            for place in (*self._running, *self._waiting):
                place.whose.give_way()
        now, most = asyncio.get_running_loop().time(), self._most_lasting()

        def lasts(kind: str) -> float:
            ages = [now - place.began for place in self._running if place.kind == kind]
            # The estimate rises where most turns under way have already lasted longer.
            return max(self._lasts.get(kind, 0.0), min(ages) if 2 * len(ages) >= most else 0.0)

        spare = now + SPARE_SECONDS
        work = sum(max(0.0, lasts(place.kind) - (now - place.began)) for place in self._running)
        for place in self._in_order():
            own, until = lasts(place.kind), place.whose.until
            if place.declinable and until is not None and now < until < spare + work / most + own:
                del self._waiting[place]
                if not place.turn.done():
                    place.turn.set_result(False)
                continue
            work += own
        if self._waiting:
            self._review = asyncio.get_running_loop().call_later(REVIEW_SECONDS, self._look_again)

    def _look_again(self) -> None:
        # With time, ElevenLabs may be asked for more at once again.
        self._next()
        self._decline()
