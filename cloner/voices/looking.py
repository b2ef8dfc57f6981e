"""Looks at voices as they stand: by id, by caller, in lists, and for as long as somebody watches."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextvars import Context
from typing import NamedTuple

import msgspec

from cloner.provider.failures import VoiceNotFound
from cloner.registry import CallView, Store, VoiceView, reasons, views
from cloner.voices.callers import Caller, Identities
from cloner.voices.voice import MADE_OUT_SECONDS, Voice, voice_seen
from environment.memory import unraised

__all__ = ["CallersSeveral", "Looking", "Watched", "chosen"]

# Between two reads for all who watch.
LOOK_SECONDS = 0.5
OVER = ("failed", "deleting", "gone")


class CallersSeveral(Exception):
    """A number was given alone, and several callers are known by it."""

    faults = (("caller.name", "is required: several callers are known by this phone number"),)

    def __init__(self) -> None:
        super().__init__(" ".join(self.faults[0]))


class _Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whose voice is meant: that of a marker, of a person, or of the one person known by a number."""

    marker: str | None = None
    person: str | None = None
    number: str | None = None

    def choose(self, found: Iterable[VoiceView]) -> VoiceView | None:
        """The voice that counts. Raises CallersSeveral."""
        if self.marker is not None:
            return next((view for view in found if view.marker == self.marker), None)
        mine = [view for view in found if view.person == self.person]
        if not mine and self.number is not None:
            mine = [view for view in found if view.number == self.number]
            if len({view.person for view in mine}) > 1:
                raise CallersSeveral
        return chosen(mine)


class _Watch:
    """One who watches, and what the last read found for them."""

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.found: VoiceView | None = None
        self.failure: Exception | None = None
        self.looked = asyncio.Event()


class Watched(NamedTuple):
    """A watch and the voice it starts from. If a caller's voice is gone then, the next one is waited for."""

    target: _Target
    view: VoiceView | None
    alive: bool
    """Whether the watch ends when this voice is gone."""


class Looking:
    """Looks at voices. `now` tells the time, in Unix seconds.

    Voices are kept for `keep_seconds` after their last call, or for good where that is None; a call is in
    progress for `call_seconds` at the most.
    """

    def __init__(
        self,
        store: Store,
        identities: Identities,
        *,
        keep_seconds: float | None,
        call_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._identities = identities
        self._keep_seconds = keep_seconds
        self._call_seconds = call_seconds
        self._now = now
        self._watches: set[_Watch] = set()
        self._look: asyncio.Task[None] | None = None

    @property
    def busy_since(self) -> float:
        """A call that began before then counts as over."""
        return self._now() - self._call_seconds

    @property
    def unsure_since(self) -> float:
        """A create that got no answer after then may yet turn out to have made a voice."""
        return self._now() - MADE_OUT_SECONDS

    def seen(self, view: VoiceView) -> Voice:
        """The voice as it stands now."""
        return voice_seen(view, keep_seconds=self._keep_seconds, now=self._now())

    def ended_at(self, view: CallView) -> float | None:
        """When a call ended: when its end was told, or as long after its begin as a call may take.

        The registry learns of the latter only when a process looks.
        """
        return None if view.ended_at is None else min(view.ended_at, view.begun_at + self._call_seconds)

    async def voice(self, voice_id: str) -> VoiceView | None:
        """The voice of that id, whatever became of it."""
        return await self._store.read(views.voice, voice_id, busy_since=self.busy_since)

    async def voice_of_caller(self, caller: Caller) -> VoiceView | None:
        """Of a caller's voices the one that counts, if there is one. Raises CallersSeveral."""
        person = await self.person(caller)
        return chosen(await self._store.read(views.voices_of, person, busy_since=self.busy_since))

    async def person(self, caller: Caller, *, consents: bool = False) -> str:
        """The person hash of a caller. A number alone stands for the one person known by it, if there is one.

        With `consents`, somebody of whom only a consent is known counts, too, where nobody has a voice.
        Raises CallersSeveral.
        """
        exactly = self._identities.person_hash(caller)
        named, number = self._identities.row_hashes(caller)
        if named is not None or number is None:
            return exactly
        known_by = views.consenters_of if consents else views.persons_of
        known = await self._store.read(known_by, number, exactly=exactly)
        if len(known) > 1:
            raise CallersSeveral
        return known[0] if known else exactly

    async def begin(self, caller: Caller | None, voice_id: str) -> Watched:
        """Begins to watch a caller's voice, or that of an id. Returns it as it stands now.

        Raises VoiceNotFound, CallersSeveral or RegistryUnavailable.
        """
        if caller is None:
            view = await self.voice(voice_id)
            if view is None:
                raise VoiceNotFound
            return Watched(_Target(marker=view.marker), view, alive=True)
        named, number = self._identities.row_hashes(caller)
        target = _Target(
            person=self._identities.person_hash(caller), number=number if named is None else None
        )
        return Watched(target, await self.voice_of_caller(caller), alive=False)

    async def follow(self, watched: Watched, *, until: float) -> AsyncGenerator[Voice, None]:
        """Yields a voice, and again whenever its state changes, until it is gone or time is up.

        If a caller's voice is gone at the start, the watch waits for the next one. The registry is asked for
        this watch until the iterator is closed. Raises CallersSeveral or RegistryUnavailable.
        """
        target, view, alive = watched
        told: Voice | None = None
        with self._watching(target) as watch:
            while True:
                voice = self._voice_after(told, view) if alive or view is not None else None
                if voice is not None and (told is None or _differs(told, voice)):
                    told = voice
                    yield voice
                    if voice.state in OVER and alive:
                        return
                    alive = alive or voice.state not in OVER
                try:
                    async with asyncio.timeout_at(until):
                        await watch.looked.wait()
                except TimeoutError:
                    return
                watch.looked.clear()
                if watch.failure is not None:
                    raise unraised(watch.failure)
                view = watch.found

    async def close(self) -> None:
        """Stops looking."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    def _voice_after(self, told: Voice | None, view: VoiceView | None) -> Voice | None:
        """The voice as it stands after it was reported as `told`; without a row it was forgotten."""
        if view is not None:
            return self.seen(view)
        if told is None:
            return None
        return msgspec.structs.replace(
            told,
            state="gone",
            reason=reasons.FORGOTTEN,
            name="",
            consent="",
            consented=None,
            reference="",
            expires=None,
        )

    @contextlib.contextmanager
    def _watching(self, target: _Target) -> Iterator[_Watch]:
        watch = _Watch(target)
        self._watches.add(watch)
        if self._look is None or self._look.done():
            # For all who watch, so of no request's trace.
            self._look = asyncio.create_task(self._looks(), context=Context())
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def _looks(self) -> None:
        """Reads the registry every LOOK_SECONDS for all who watch, as long as anybody does."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            watches = tuple(self._watches)
            if not watches:
                return
            targets = [watch.target for watch in watches]
            try:
                found = await self._store.read(
                    views.watched,
                    markers={target.marker for target in targets if target.marker is not None},
                    persons={target.person for target in targets if target.person is not None},
                    numbers={target.number for target in targets if target.number is not None},
                    busy_since=self.busy_since,
                )
            except Exception as failure:  # noqa: BLE001 - raised for each who watches
                for watch in watches:
                    watch.failure = failure
            else:
                for watch in watches:
                    try:
                        watch.found = watch.target.choose(found)
                    except CallersSeveral as failure:
                        watch.failure = failure
            for watch in watches:
                watch.looked.set()


def chosen(found: Iterable[VoiceView]) -> VoiceView | None:
    """The one of a caller's voices that counts: the ready one, else the one on its way, else the newest."""
    newest = sorted(found, key=lambda view: (view.created_at, view.marker), reverse=True)
    for state in ("ready", "intended"):
        for view in newest:
            if view.state == state:
                return view
    return newest[0] if newest else None


def _differs(told: Voice, voice: Voice) -> bool:
    """Whether a voice differs from the last report; waiting to be deleted is no difference."""
    if told.marker != voice.marker:
        return True
    return told.state != voice.state and not {told.state, voice.state} <= {"deleting", "gone"}
