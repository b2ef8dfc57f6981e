"""Finds a caller's voice, or has one made: one voice for one caller, however many ask at the same time."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog
from cachetools import LRUCache
from opentelemetry.trace import Link, get_current_span

from cloner.provider import failures
from cloner.provider.failures import ProviderFailure
from cloner.provider.turns import urgency
from cloner.registry import (
    AgentIntended,
    CallerForgotten,
    NamedRequest,
    Store,
    VoiceRow,
    calls,
    consents,
    departures,
    requests,
    voice_consents,
    voices,
)
from cloner.voices.callers import Caller, Identities, Identity
from cloner.voices.clone import Clone, Superseded
from cloner.voices.cloning import Cloning
from cloner.voices.elsewhere import Elsewhere
from cloner.voices.intent import Wanted
from cloner.voices.marked import Marked
from cloner.voices.samples import Recording, Samples, digest_of
from cloner.voices.voice import Voice, voice_of
from telemetry.parts import part

__all__ = ["ConsentMissing", "Found", "Voices"]

log = structlog.get_logger()

# How long a voice is not asked for again once ElevenLabs did not say in time whether it has it.
AGAIN_SECONDS = 5.0
# Less time than that is too little to ask the registry before the answer.
HARDLY_SECONDS = 0.05
VOICES = 10_000
# How often one request looks again because others changed what it had found, and how many clones it may
# begin. No request needs so many; without a bound, wrong answers could make us clone for ever.
ROUNDS = 10
CLONES = 3


class ConsentMissing(Exception):
    """A consent is required, and none was given. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The caller's consent is required: send its reference as `consent`.")


class Found(NamedTuple):
    """A caller's voice, and whether it existed before."""

    voice: Voice
    reused: bool
    agent_intended: AgentIntended | None
    """The update that was passed with a new voice, and whether it was stored; None if it was never tried."""


class Voices:
    """Finds voices, and has them made. `now` tells the time, in Unix seconds.

    A voice that was not seen at ElevenLabs for `check_seconds` is looked for there before it is used. A call
    waits `asking_seconds` for the answer; then the registry counts.
    A voice that is made ahead of time is kept for `keep_seconds` at least. With `require_consent`, no voice
    is made or used without a consent.

    The methods that wait for a voice raise ConsentMissing, a ProviderFailure, VoiceNeedsVerification or
    RegistryUnavailable. When the deadline passes, they raise the last known failure, or TimedOut, or
    DeadlineTooShort if ElevenLabs was not asked by then; the clone goes on without them.
    """

    def __init__(
        self,
        cloning: Cloning,
        marked: Marked,
        samples: Samples,
        store: Store,
        *,
        identities: Identities,
        check_seconds: float,
        asking_seconds: float,
        keep_seconds: float,
        require_consent: bool,
        now: Callable[[], float],
    ) -> None:
        self._cloning = cloning
        self._marked = marked
        self._samples = samples
        self._store = store
        self._identities = identities
        self._check_seconds = check_seconds
        self._asking_seconds = asking_seconds
        self._keep_seconds = keep_seconds
        self._require_consent = require_consent
        self._now = now
        self._ask_again_at: LRUCache[str, float] = LRUCache(VOICES)
        self._elsewhere = Elsewhere(cloning, store, now=now)

    async def identify(self, caller: Caller, sample: bytes, *, call_id: str = "") -> Identity:
        """Who the caller is."""
        sample_digest = ""
        if self._identities.needs_sample(caller):
            sample_digest = await digest_of(sample)
        return self._identities.identify(caller, sample_digest=sample_digest, call_id=call_id)

    async def follow(
        self, row: VoiceRow | None, wanted: Wanted, *, deadline: float, attached: bool = False
    ) -> Voice | None:
        """Waits for the caller's voice of `row` and returns it; None if there is none.

        `attached` says that the call already has the voice of the row in the registry.
        """
        for _ in range(ROUNDS):
            await self._require(wanted, row)
            if row is None:
                return None
            voice = await self._found(row, deadline)
            done = attached and voice is not None and voice.marker == row.marker and row.state == "ready"
            if voice is not None and (done or await self._attach(wanted, voice.marker)):
                return await self.note_told(voice, wanted)
            await self._check_remembered(row.marker)
            row = await self._store.read(voices.find_by_caller, wanted.identity.caller)
        raise failures.Busy

    async def find_or_clone(self, wanted: Wanted, recording: Recording, *, deadline: float) -> Found:
        """Clones the recording, unless the caller has a voice by now."""
        for _ in range(CLONES):
            await self._require(wanted, None)
            row, clone = await self._cloning.begin(wanted, recording)
            if clone is None:
                voice = await self.follow(row, wanted, deadline=deadline)
            else:
                try:
                    voice = await self._made(clone, deadline)
                except BaseException:
                    clone.leave()
                    raise
            if voice is not None:
                return Found(voice, clone is None, None if clone is None else clone.agent_intended)
        log.warning("clone given up", clones=CLONES)
        raise failures.Busy

    async def clone_ahead(self, wanted: Wanted, sample: bytes, *, deadline: float) -> tuple[Voice, bool]:
        """Finds or clones the voice of a caller who may call later. Returns it, and whether it existed.

        The voice is kept for `keep_seconds` at least. A repeated request gets the same answer as before.
        Also raises what Samples raises, and RequestDiffers or RequestForgotten.
        """
        request = wanted.request
        for _ in range(CLONES):
            row = await self._store.read(voices.find_by_caller, wanted.identity.caller)
            # Read after the row: whoever stored the intent of that row stored its request as well.
            if request is not None and (answered := await self._answered(request, deadline)) is not None:
                return answered
            await self._note_consent(row, wanted)
            voice, reused = await self.follow(row, wanted, deadline=deadline), True
            if voice is None:
                recording = await self._samples.inspect(sample, deadline=deadline)
                voice, reused, _ = await self.find_or_clone(wanted, recording, deadline=deadline)
            now = self._now()
            until = now + self._keep_seconds
            if request is None:
                if await self._store.write(voices.keep, voice.marker, until=until):
                    return voice, reused
            else:
                told = await self._store.write(
                    voices.keep_for, voice.marker, request, until=until, reused=reused, now=now
                )
                if told is not None and told.marker == voice.marker:
                    return voice, told.reused
            await self._check_remembered(voice.marker)
        raise failures.Busy

    async def replace(self, wanted: Wanted, sample: bytes, *, deadline: float) -> Voice:
        """Clones a new voice for the caller, kept as by `clone_ahead`. Once ready, it replaces the old one.

        A repeated request gets the same voice as before. Raises what `clone_ahead` raises.
        """
        request = wanted.request
        await self._require(wanted, None)
        recording: Recording | None = None
        old: VoiceRow | None = None
        for _ in range(ROUNDS):
            if old is not None:
                await self._check_remembered(old.marker)
            old = await self._store.read(voices.find_by_caller, wanted.identity.caller)
            # As in `clone_ahead`.
            if request is not None and (answered := await self._answered(request, deadline)) is not None:
                return answered[0]
            if recording is None:
                await self._note_consent(None, wanted)
                recording = await self._samples.inspect(sample, deadline=deadline)
                # The same request may have come again during the inspection.
                continue
            if old is not None and old.state == "intended":
                await self._found(old, deadline)
                continue
            anew = msgspec.structs.replace(wanted, replaces=old is not None)
            _, clone = await self._cloning.begin(anew, recording)
            if clone is not None and (voice := await self._made(clone, deadline)) is not None:
                if request is None:
                    return voice
                # Another process that took this one for dead may have answered with another voice.
                answer = await self._store.write(
                    requests.settle, request, voice.marker, reused=False, now=self._now()
                )
                if answer.marker == voice.marker:
                    return voice
        raise failures.Busy

    def check_time(self, wanted: Wanted, *, deadline: float) -> None:
        """Raises the failure of a wait for the caller's clone, if there is one and hardly any time is left.

        Whoever then asked the registry first would only hear that the registry did not answer in time.
        """
        if deadline - asyncio.get_running_loop().time() < HARDLY_SECONDS:
            clone = self._cloning.clone_of(wanted.identity.caller)
            if clone is not None:
                raise clone.late_failure()

    def must_ask(self, row: VoiceRow | None) -> bool:
        """Whether `usable` asks ElevenLabs for the voice of the row."""
        if row is None or row.state != "ready":
            return False
        now = self._now()
        return now - row.checked_at > self._check_seconds and self._ask_again_at.get(row.marker, now) <= now

    async def usable(self, row: VoiceRow | None, *, deadline: float) -> Voice | None:
        """The voice of a ready row; None if ElevenLabs says before the deadline that it is lost."""
        return None if row is None or row.state != "ready" else await self._confirmed(row, deadline)

    async def is_lost(self, row: VoiceRow | None, *, deadline: float) -> bool:
        """Whether ElevenLabs says that the voice of a ready row is gone; the registry then says so too."""
        return row is not None and row.state == "ready" and await self._seen(row, deadline) is False

    async def former_voice(self, marker: str | None, wanted: Wanted) -> Voice | None:
        """The voice that a call had, as it was then, even if it is gone by now. Raises ConsentMissing."""
        row = await self._store.read(voices.get, marker) if marker else None
        if row is None or not row.voice_id:
            return None
        await self._require(wanted, row)
        return voice_of(row)

    async def note_told(self, voice: Voice, wanted: Wanted) -> Voice:
        """Stores with the voice the consent, if it has none, and the reference. Returns it with both."""
        told, changed = wanted.caller, False
        if told.consent and not voice.consent:
            changed = True
            await self._store.write(voice_consents.take_in, voice.marker, told.consent, now=self._now())
        if told.reference and told.reference != voice.reference:
            changed = True
            await self._store.write(voices.set_reference, voice.marker, told.reference)
        return (await self.former_voice(voice.marker, wanted) if changed else None) or voice

    async def close(self) -> None:
        """Stops looking at clones of other processes."""
        await self._elsewhere.close()

    async def _answered(self, request: NamedRequest, deadline: float) -> tuple[Voice, bool] | None:
        """The answer that any process gave to the request before; None if the request counts as new.

        Waits for a voice that is on its way, and finishes the intent of a process that died.
        """
        while (answer := await self._store.read(requests.answer, request, now=self._now())) is not None:
            row = await self._store.read(voices.get, answer.marker)
            if row is not None and row.voice_id:
                return voice_of(row), answer.reused
            if row is not None:
                await self._found(row, deadline)
                await self._check_remembered(row.marker)
        return None

    async def _note_consent(self, row: VoiceRow | None, wanted: Wanted) -> None:
        """Stores the consent that a request brought, unless `row`, the caller's voice, has it already.

        It is stored before anything is done under it, so that a withdrawal which comes after it counts.
        """
        told, identity = wanted.caller.consent, wanted.identity
        if (row is not None and row.state == "ready" and row.consent == told) or not told:
            return
        if await self._store.write(
            consents.note, identity.person, told, number=identity.number, now=self._now()
        ):
            log.info("consent given")

    async def _made(self, clone: Clone, deadline: float) -> Voice | None:
        """Waits for a clone of this process; None if it was superseded."""
        try:
            async with asyncio.timeout_at(deadline):
                return await clone.made()
        except Superseded:
            return None
        except TimeoutError:
            raise clone.late_failure() from None

    async def _found(self, row: VoiceRow, deadline: float) -> Voice | None:
        """The voice of a row, ready or on its way; None if the registry must be read again."""
        if row.state == "ready":
            return await self._confirmed(row, deadline)
        if clone := self._cloning.clone_under_way(row.marker):
            if urgency().call:
                clone.urgency.hurry(urgency().until)
            get_current_span().add_link(clone.trace)
            with part("another_clone", links=[Link(clone.trace)]):
                return await self._made(clone, deadline)
        await self._elsewhere.settled(row, deadline)
        return None

    async def _confirmed(self, row: VoiceRow, deadline: float) -> Voice | None:
        """The voice of a ready row; None if the provider turns out to have lost it."""
        if self.must_ask(row):
            if urgency().call:
                deadline = min(deadline, asyncio.get_running_loop().time() + self._asking_seconds)
            if await self._seen(row, deadline) is False:
                return None
        return voice_of(row)

    async def _seen(self, row: VoiceRow, deadline: float) -> bool | None:
        """Asks whether ElevenLabs has the voice of a ready row, and stores the answer, if there is one."""
        try:
            found = await self._marked.is_there(row, deadline=deadline)
        except ProviderFailure as failure:
            log.warning("voice not checked", voice_id=row.voice_id, reason=failure.reason)
            self._ask_again_at[row.marker] = self._now() + AGAIN_SECONDS
            return None
        if found:
            await self._store.write(voices.note_checked, row.marker, now=self._now())
        elif await self._store.write(departures.note_gone, row.marker, now=self._now()):
            log.warning("voice lost", voice_id=row.voice_id)
        return found

    async def _check_remembered(self, marker: str) -> None:
        """Raises CallerForgotten if the caller was forgotten since this voice was found."""
        if await self._store.read(voices.is_forgotten, marker):
            raise CallerForgotten

    async def _require(self, wanted: Wanted, row: VoiceRow | None) -> None:
        """Raises ConsentMissing if one is required, and neither the request nor the registry has one."""
        if not self._require_consent or wanted.caller.consent or (row is not None and row.consent):
            return
        if await self._store.read(consents.standing, wanted.identity.person) is None:
            raise ConsentMissing

    async def _attach(self, wanted: Wanted, marker: str) -> bool:
        """Stores that the call has the voice; False if the voice was given up meanwhile."""
        if wanted.call_id is None:
            return True
        stated = wanted.identity.stated
        return await self._store.write(calls.attach, wanted.call_id, marker, stated=stated, now=self._now())
