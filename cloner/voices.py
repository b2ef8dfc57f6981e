"""Finds a caller's voice or clones it: one voice for one caller, and none that nobody knows of.

The intent to clone is written down before ElevenLabs is asked, under a marker that the voice will
carry. Whatever happens then, somebody finishes the story: this process, whoever needs that voice
next, or the janitor. A clone that has begun is finished whatever becomes of the request.
"""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from cloner import failures
from cloner.callers import Caller, Identities, Identity, voice_label
from cloner.clones import STALE_SECONDS, Clone, Clones
from cloner.creation import Creation, VoiceNeedsVerification
from cloner.failures import DeadlineTooShort, ProviderFailure, TimedOut
from cloner.registry import NewVoiceRow, Store, VoiceRow, calls, deployment, voices
from cloner.room import Room
from cloner.samples import Recording, Samples
from cloner.turns import urgency
from cloner.voice import Voice, voice_of

__all__ = ["ConsentMissing", "Voices"]

log = structlog.get_logger()

WATCH_SECONDS = 0.2
# How often one request looks again for what others changed under its hands, and how many voices it may
# have made. Nobody needs as many; without a bound, whoever tells us nonsense could have us clone for ever.
ROUNDS = 10
CLONES = 3


class ConsentMissing(Exception):
    """The caller's consent is required, and nobody has told of one. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The caller's consent is required: send its reference as `consent`.")


class Superseded(Exception):
    """The intent was given up for another while it was worked at. Whoever waits looks again."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be cloned: for whom, for which call, and whether in the place of the voice that there is."""

    identity: Identity
    caller: Caller
    call_id: str | None = None
    replaces: bool = False


class Voices:
    """Finds or clones voices. `now` tells the time, in Unix seconds.

    Voices that are taken ahead of time are kept for `keep_seconds` at the least. With
    `require_consent`, no voice is made or used without a consent.
    """

    def __init__(
        self,
        creation: Creation,
        samples: Samples,
        store: Store,
        *,
        identities: Identities,
        room: Room,
        check_seconds: float,
        keep_seconds: float,
        require_consent: bool,
        now: Callable[[], float],
    ) -> None:
        self._creation = creation
        self._samples = samples
        self._store = store
        self._identities = identities
        self._room = room
        self._check_seconds = check_seconds
        self._keep_seconds = keep_seconds
        self._require_consent = require_consent
        self._now = now
        self._clones = Clones(store, now=now)
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def identify(self, caller: Caller, sample: bytes, *, call_id: str = "") -> Identity:
        """Who the caller is."""
        digest = ""
        if self._identities.needs_sample(caller):
            # 10 MB take 5 ms; hashing releases the GIL, so the loop goes on meanwhile.
            digest = await asyncio.to_thread(lambda: hashlib.sha256(sample).hexdigest())
        return self._identities.of(caller, sample_digest=digest, call_id=call_id)

    async def of(
        self,
        identity: Identity,
        caller: Caller,
        sample: bytes,
        *,
        deadline: float,
        call_id: str | None = None,
        row: VoiceRow | None = None,
        permit: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[Voice, bool]:
        """The caller's voice, and whether it was there already.

        `row` is what is known of it. `permit` is waited for just before a clone would begin, and
        stops it by raising. Raises ConsentMissing, what Samples raise, a
        ProviderFailure, VoiceNeedsVerification or RegistryUnavailable. When the deadline passes, the
        last known failure or TimedOut is raised and the clone goes on by itself.
        """
        recording: Recording | None = None
        row = row or await self._store.read(voices.of_caller, identity.caller)
        clones = 0
        for _ in range(ROUNDS):
            clone = None
            self._require(caller, row)
            if row is None:
                if clones == CLONES:
                    break
                clones += 1
                if recording is None:
                    recording = await self._samples.inspect(sample, deadline=deadline)
                    if permit is not None:
                        await permit()
                wanted = Wanted(identity=identity, caller=caller, call_id=call_id)
                row, clone = await self._intend(wanted, recording)
            voice = await (self._made(clone, deadline) if clone else self._found(row, deadline))
            if voice is not None and await self._attached(call_id, voice.marker):
                if caller.consent and not voice.consent:
                    await self._store.write(voices.consented, voice.marker, caller.consent, now=self._now())
                    voice = await self.formerly(voice.marker, caller) or voice
                return voice, clone is None
            row = await self._store.read(voices.of_caller, identity.caller)
        log.warning("voice given up", clones=clones)
        raise failures.Busy

    async def ahead(
        self, identity: Identity, caller: Caller, sample: bytes, *, deadline: float
    ) -> tuple[Voice, bool]:
        """As `of`, for a caller who may call some day, and whose voice is kept until then."""
        for _ in range(CLONES):
            voice, reused = await self.of(identity, caller, sample, deadline=deadline)
            if await self._store.write(voices.keep, voice.marker, until=self._now() + self._keep_seconds):
                return voice, reused
        raise failures.Busy

    async def still(self, row: VoiceRow, *, deadline: float) -> Voice | None:
        """The voice of a row, if it is ready, and not known by the deadline to be lost."""
        return await self._confirmed(row, deadline) if row.state == "ready" else None

    async def lost(self, row: VoiceRow, *, deadline: float) -> bool:
        """Whether ElevenLabs says that the voice of a row is gone; then it is nobody's any more."""
        return row.state == "ready" and await self._seen(row, deadline) is False

    async def formerly(self, marker: str | None, caller: Caller) -> Voice | None:
        """The voice that a call had, even if it is gone by now. Raises ConsentMissing."""
        row = await self._store.read(voices.get, marker) if marker else None
        if row is None or not row.voice_id:
            return None
        self._require(caller, row)
        return voice_of(row)

    async def replace(self, identity: Identity, caller: Caller, sample: bytes, *, deadline: float) -> Voice:
        """A new voice for the caller, kept as by `ahead`. Once it is there, the one that there was goes."""
        self._require(caller, None)
        recording = await self._samples.inspect(sample, deadline=deadline)
        for _ in range(ROUNDS):
            old = await self._store.read(voices.of_caller, identity.caller)
            if old is not None and old.state == "intended":
                await self._found(old, deadline)
                continue
            wanted = Wanted(identity=identity, caller=caller, replaces=old is not None)
            _, clone = await self._intend(wanted, recording)
            if clone is not None and (voice := await self._made(clone, deadline)) is not None:
                return voice
        raise failures.Busy

    async def take_over(self, row: VoiceRow) -> None:
        """Finishes the story of an intent whose process died, unless somebody else does."""
        now = self._now()
        if await self._store.write(
            voices.take_over,
            row.marker,
            dead=row.owner,
            owner=self._clones.owner,
            stale=now - STALE_SECONDS,
            now=now,
        ):
            clone = Clone(row.marker)
            clone.asked = True  # by the process that died
            self._clones.start(clone, self._resume(clone))
            with contextlib.suppress(Superseded, ProviderFailure, VoiceNeedsVerification):
                await asyncio.shield(clone.task)

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what is under way, and gives up what is left after the grace."""
        await self._clones.finish(grace_seconds)
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def _made(self, clone: Clone, deadline: float) -> Voice | None:
        """What this process's clone makes; None if that is not wanted any more."""
        try:
            return await self._wait(clone, deadline)
        except Superseded:
            return None

    async def _found(self, row: VoiceRow, deadline: float) -> Voice | None:
        """The voice of a row, ready or on its way; None when what there is must be looked up again."""
        if row.state == "ready":
            return await self._confirmed(row, deadline)
        if clone := self._clones.get(row.marker):
            if urgency().call:
                clone.urgency.hurry(urgency().until)
            get_current_span().add_link(clone.trace)
            return await self._made(clone, deadline)
        await self._settled(row, deadline)
        return None

    async def _confirmed(self, row: VoiceRow, deadline: float) -> Voice | None:
        """The voice of a ready row; None if the provider turns out to have lost it."""
        if self._now() - row.checked_at > self._check_seconds and await self._seen(row, deadline) is False:
            return None
        return voice_of(row)

    async def _seen(self, row: VoiceRow, deadline: float) -> bool | None:
        """Whether ElevenLabs has the voice of a ready row, noted as such; None if nobody can tell."""
        try:
            found = await self._creation.still_there(row, deadline=deadline)
        except ProviderFailure as failure:
            log.warning("voice not checked", voice_id=row.voice_id, reason=type(failure).__name__)
            return None
        if found:
            await self._store.write(voices.checked, row.marker, now=self._now())
        else:
            log.warning("voice lost at the provider", voice_id=row.voice_id)
            await self._store.write(voices.lost, row.marker, now=self._now())
        return found

    def _require(self, caller: Caller, row: VoiceRow | None) -> None:
        if self._require_consent and not caller.consent and not (row is not None and row.consent):
            raise ConsentMissing

    async def _attached(self, call_id: str | None, marker: str) -> bool:
        """Whether the call has that voice now; False if the voice was given up meanwhile."""
        return call_id is None or await self._store.write(calls.attach, call_id, marker, now=self._now())

    async def _settled(self, row: VoiceRow, deadline: float) -> None:
        """Waits for another process's clone. Raises what it failed for."""
        watch = self._watches.get(row.marker)
        if watch is None:
            watch = self._watches[row.marker] = asyncio.create_task(self._watch(row.marker))
            watch.add_done_callback(lambda _: self._watches.pop(row.marker, None))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(watch)
        except TimeoutError:
            raise TimedOut from None
        settled = await self._store.read(voices.get, row.marker)
        if settled is not None and settled.state == "failed" and settled.reason in JOINED_FAILURES:
            raise JOINED_FAILURES[settled.reason]

    async def _watch(self, marker: str) -> None:
        """Returns when another process's intent is settled, by it or in its place."""
        while (row := await self._store.read(voices.get, marker)) is not None and row.state == "intended":
            if row.alive_at < self._now() - STALE_SECONDS:
                await self.take_over(row)
            else:
                await asyncio.sleep(WATCH_SECONDS)

    async def _wait(self, clone: Clone, deadline: float) -> Voice:
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(clone.task)
        except TimeoutError:
            raise clone.failure or (TimedOut() if clone.asked else DeadlineTooShort()) from None

    async def _intend(self, wanted: Wanted, recording: Recording) -> tuple[VoiceRow, Clone | None]:
        """Writes down the intent and begins the clone, unless the caller has one by now."""
        if (left := await self._store.read(deployment.month_resets_at) - self._now()) > 0:
            raise failures.MonthlyLimit(retry_after=left)
        row, new = await self._new_row(wanted)
        if not new:
            return row, None
        clone = Clone(row.marker)
        self._clones.start(clone, self._clone(clone, wanted, recording))
        return row, clone

    async def _new_row(self, wanted: Wanted) -> tuple[VoiceRow, bool]:
        """The row of the caller's voice, and whether it is a new one, which is ours to work at."""
        now, token = self._now(), uuid.uuid4().hex
        marker = self._creation.marker(token)
        made = datetime.fromtimestamp(now, UTC)
        span = get_current_span().get_span_context()
        identity, caller = wanted.identity, wanted.caller
        new = NewVoiceRow(
            marker=marker,
            # Until it is there, the caller has the voice that it replaces.
            caller=token if wanted.replaces else identity.caller,
            replaces=identity.caller if wanted.replaces else None,
            number=identity.number,
            person=identity.person,
            greeting_name=caller.name,
            name=f"{voice_label(caller.name)}_Clone_{made:%Y%m%d_%H%M%S}_{token[-6:]}",
            owner=self._clones.owner,
            traceparent=f"00-{format_trace_id(span.trace_id)}-{format_span_id(span.span_id)}-01",
            consent=caller.consent,
            kept_until=0.0 if wanted.call_id is not None else now + self._keep_seconds,
        )
        row = await self._store.write(voices.intend, new, call_id=wanted.call_id, now=now)
        return row, row.marker == marker

    async def _clone(self, clone: Clone, wanted: Wanted, recording: Recording) -> Voice:
        """Creates the voice and records it, under a new marker for each create that may have been lost."""

        async def intent() -> VoiceRow:
            row = await self._store.read(voices.get, clone.marker)
            if row is None or row.state != "intended" or row.owner != self._clones.owner:
                row, new = await self._new_row(wanted)
                if not new:
                    raise Superseded
                self._clones.move(clone, row.marker)
            return row

        def tell(failure: ProviderFailure | None) -> None:
            clone.failure = failure
            clone.asked |= failure is None

        # Counted by itself, because it may outlive the request that began it.
        with self._room.holding(len(recording.sample)):
            row, voice_id = await self._creation.create(
                intent, tell, sample=recording.sample, filename=recording.filename,
                media_type=recording.media_type, for_call=wanted.call_id is not None,
            )  # fmt: skip
        return await self._recorded(row, voice_id)

    async def _resume(self, clone: Clone) -> Voice:
        """Looks for the voice of an intent whose process died, and records what became of it."""
        row = await self._store.read(voices.get, clone.marker)
        if row is None:
            raise Superseded
        voice_id = await self._creation.look(row.marker)
        if voice_id is None:
            raise Superseded
        log.info("voice found by its marker", voice_id=voice_id)
        return await self._recorded(row, voice_id)

    async def _recorded(self, row: VoiceRow, voice_id: str) -> Voice:
        if not await self._store.write(voices.record, row.marker, voice_id, now=self._now()):
            if await self._creation.is_anothers(voice_id, row.marker):
                raise failures.ProtocolBroken
            log.warning("voice no longer wanted", voice_id=voice_id)
            self._clones.begin(self._creation.discard(voice_id, row.marker))
            raise Superseded
        return voice_of(msgspec.structs.replace(row, voice_id=voice_id))


# What is raised for a request that waited for another process's clone, by the reason in its row.
JOINED_FAILURES: dict[str, type[Exception]] = {
    **{
        kind.__name__: kind
        for kind in (
            failures.Unauthorized, failures.PlanLimit, failures.SlotsExhausted, failures.MonthlyLimit,
            failures.SampleRejected, failures.ProtocolBroken, failures.Busy, failures.Unavailable,
            failures.TimedOut,
        )
    },
    VoiceNeedsVerification.__name__: VoiceNeedsVerification,
}  # fmt: skip
