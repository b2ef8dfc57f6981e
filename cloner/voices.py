"""Finds a caller's voice or clones it: one voice for one caller, and none that nobody knows of.

A clone that has begun is finished whatever becomes of the request that wanted it. What was found or
made is remembered for ten minutes in this process, so that a repeated delivery gets the same voice.
"""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from cachetools import TTLCache
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanContext, get_current_span

from cloner import failures
from cloner.audio import InspectionUnavailable, Inspector
from cloner.callers import Caller, identity, voice_label
from cloner.elevenlabs import ElevenLabs, ListedVoice, NewVoice, retrying
from cloner.failures import ProviderFailure, TimedOut
from cloner.samples import Limits, SampleTooLarge, judge

__all__ = ["Overloaded", "Voice", "VoiceNeedsVerification", "Voices"]

log = structlog.get_logger()

MARKER_LABEL = "precall"
REMEMBERED_SECONDS = 600.0
REMEMBERED_VOICES = 10_000
# When the marker of a create that got no answer is looked for, in seconds after it failed: at once
# and soon after, while the caller waits, and then for as long as the provider may still be at it.
LOOKS_WITHIN = (0.0, 0.5, 1.5)
LOOKS_LATER = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
LOOK_SECONDS = 20.0
DELETE_SECONDS = 60.0


class VoiceNeedsVerification(Exception):
    """The provider made a voice that may not speak before somebody verifies it. It is removed again."""

    def __init__(self) -> None:
        super().__init__("ElevenLabs wants this voice verified before it may speak; it was removed again.")


class Overloaded(Exception):
    """The samples in memory are as many as may be. Nothing is wrong with this one."""

    def __init__(self) -> None:
        super().__init__("Too many samples are being handled; try again later.")


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's voice at the provider."""

    voice_id: str
    name: str
    created: datetime | None = None


class _Clone:
    """A clone under way. Its task outlives the request that began it."""

    task: "asyncio.Task[Voice]"

    def __init__(
        self, who: tuple[str, ...], name: str, sample: bytes, filename: str, media_type: str
    ) -> None:
        self.who = who
        self.name = name
        self.sample = sample
        self.filename = filename
        self.media_type = media_type
        self.trace = get_current_span().get_span_context()
        self.failure: ProviderFailure | None = None  # the last one, while it is being tried again


class Voices:
    """Finds or clones voices. `now` tells the time in UTC."""

    def __init__(
        self,
        provider: ElevenLabs,
        inspector: Inspector,
        tracing: TracerProvider,
        *,
        limits: Limits,
        timeout_seconds: float,
        attempts: int,
        max_held_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        self._provider = provider
        self._inspector = inspector
        self._tracer = tracing.get_tracer("precall.voices")
        self._limits = limits
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._now = now
        self._known: TTLCache[tuple[str, ...], Voice] = TTLCache(REMEMBERED_VOICES, REMEMBERED_SECONDS)
        self._clones: dict[tuple[str, ...], _Clone] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._finishing = asyncio.Event()
        self._max_held = max_held_bytes
        self._held = 0

    async def of(
        self,
        caller: Caller,
        sample: bytes,
        *,
        deadline: float,
        permit: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[Voice, bool]:
        """The caller's voice, and whether it was there already.

        `permit` is waited for just before a clone would begin, and stops it by raising.

        Raises Overloaded, a SampleRefused, what the Inspector raises, a ProviderFailure or
        VoiceNeedsVerification. When the deadline passes, the last known failure or TimedOut is
        raised and the clone goes on by itself.
        """
        who = await self._identify(caller, sample)
        if voice := self._known.get(who):
            return voice, True
        if who not in self._clones:
            with self._holding(sample):
                filename, media_type = await self._inspect(sample, deadline)
                if permit is not None:
                    await permit()
            # Others may have begun or even finished while the sample was looked at.
            if voice := self._known.get(who):
                return voice, True
        if clone := self._clones.get(who):
            get_current_span().add_link(clone.trace)
            return await self._wait(clone, deadline), True
        clone = self._clones[who] = _Clone(who, caller.name, sample, filename, media_type)
        clone.task = self._begin(self._clone(clone))
        return await self._wait(clone, deadline), False

    async def get(self, voice_id: str, *, deadline: float) -> Voice:
        """A voice of ours; VoiceNotFound if there is none."""
        listed = await self._provider.get_voice(voice_id, deadline=deadline)
        if not _is_ours(listed):
            raise failures.VoiceNotFound
        return _voice(listed)

    async def list(self, *, page_size: int, page_token: str, deadline: float) -> tuple[list[Voice], str]:
        """One page of our voices, newest first, and the token of the next page."""
        page = await self._provider.search_voices(
            MARKER_LABEL, page_size=page_size, page_token=page_token or None, deadline=deadline
        )
        token = page.next_page_token if page.has_more else None
        return [_voice(listed) for listed in page.voices if _is_ours(listed)], token or ""

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what is under way, and gives up what is left after the grace.

        A marker that is still looked for is looked for once more.
        """
        self._finishing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                while self._background:
                    await asyncio.wait(self._background)
        left = list(self._background)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if left:
            log.warning("stopped with work under way at the provider", tasks=len(left))

    async def _identify(self, caller: Caller, sample: bytes) -> tuple[str, ...]:
        if caller.phone_number.strip():
            return identity(caller, "")
        # 10 MB take 5 ms; hashing releases the GIL, so the loop goes on meanwhile.
        return identity(caller, await asyncio.to_thread(lambda: hashlib.sha256(sample).hexdigest()))

    @contextlib.contextmanager
    def _holding(self, sample: bytes) -> Iterator[None]:
        """Counts the sample among those in memory; raises Overloaded when they are too many."""
        if self._held + len(sample) > self._max_held:
            raise Overloaded
        self._held += len(sample)
        try:
            yield
        finally:
            self._held -= len(sample)

    async def _inspect(self, sample: bytes, deadline: float) -> tuple[str, str]:
        """The file name and the media type for the upload, if the sample will do."""
        if len(sample) > self._limits.max_bytes:
            allowed = self._limits.max_bytes / 1_048_576
            raise SampleTooLarge(f"Voice sample too large: more than the {allowed:.1f} MB allowed")
        with self._tracer.start_as_current_span("inspect sample", record_exception=False):
            try:
                async with asyncio.timeout_at(deadline):
                    audio = await self._inspector.inspect(sample)
            except TimeoutError:
                raise InspectionUnavailable from None
            get_current_span().set_attributes(
                {
                    "precall.sample.format": audio.format,
                    "precall.sample.duration": audio.duration_seconds,
                    "precall.sample.rate": audio.sample_rate,
                }
            )
            judge(audio, self._limits)
        return f"sample.{audio.extension}", audio.media_type

    async def _wait(self, clone: _Clone, deadline: float) -> Voice:
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(clone.task)
        except TimeoutError:
            raise clone.failure or TimedOut from None

    async def _clone(self, clone: _Clone) -> Voice:
        """Creates the voice and remembers it; the whole of it is one try after another."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            with self._holding(clone.sample):
                voice = await retrying(
                    lambda resent: self._create(clone, resent, deadline),
                    (failures.Busy, failures.Unavailable),
                    attempts=self._attempts,
                    deadline=deadline,
                )
            self._known[clone.who] = voice
            return voice
        finally:
            del self._clones[clone.who]

    async def _create(self, clone: _Clone, resent: int, deadline: float) -> Voice:
        """One create under a marker of its own, and the look for that marker if no answer came."""
        marker = f"{MARKER_LABEL}-{uuid.uuid4().hex}"
        name = f"{voice_label(clone.name)}_Clone_{self._now():%Y%m%d_%H%M%S}_{marker[-6:]}"
        try:
            created = await self._provider.create_voice(
                name=name,
                description=f"Made by Precall for one caller, {marker}",
                labels={MARKER_LABEL: marker},
                filename=clone.filename,
                media_type=clone.media_type,
                sample=clone.sample,
                deadline=deadline,
                resent=resent,
            )
        except ProviderFailure as failure:
            clone.failure = failure
            log.warning("voice not created", reason=type(failure).__name__, maybe_made=failure.maybe_done)
            if not failure.maybe_done:
                raise
            if (found := await self._look(marker, LOOKS_WITHIN)) is None:
                self._begin(self._look_later(clone.who, clone.trace, marker))
                raise
            log.info("voice found by its marker", voice_id=found.voice_id)
            created = NewVoice(found.voice_id, found.requires_verification)
        if created.requires_verification:
            self._begin(self._remove(created.voice_id))
            raise VoiceNeedsVerification
        return Voice(voice_id=created.voice_id, name=name, created=self._now())

    async def _look(self, marker: str, pauses: tuple[float, ...]) -> ListedVoice | None:
        """The voice that carries the marker, if the provider has it by the end of the pauses."""
        for pause in pauses:
            await asyncio.sleep(pause)
            try:
                deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
                page = await self._provider.search_voices(marker, deadline=deadline)
            except ProviderFailure as failure:
                log.warning("marker not looked for", reason=type(failure).__name__)
                continue
            for voice in page.voices:
                if (voice.labels or {}).get(MARKER_LABEL) == marker or marker in (voice.description or ""):
                    return voice
        return None

    async def _look_later(self, who: tuple[str, ...], origin: SpanContext, marker: str) -> None:
        """Takes in a voice that turns up late, or removes it if the caller got another meanwhile."""
        for pause in LOOKS_LATER:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._finishing.wait(), pause)
            with self._tracer.start_as_current_span(
                "look for voice", context=Context(), links=[Link(origin)], record_exception=False
            ):
                if (found := await self._look(marker, (0.0,))) is None:
                    if self._finishing.is_set():
                        break
                    continue
                if who in self._known or who in self._clones or found.requires_verification:
                    await self._remove(found.voice_id)
                else:
                    self._known[who] = _voice(found)
                    log.info("voice found by its marker", voice_id=found.voice_id)
                return
        log.warning("no voice found by its marker", marker=marker)

    async def _remove(self, voice_id: str) -> None:
        try:
            deadline = asyncio.get_running_loop().time() + DELETE_SECONDS
            await self._provider.delete_voice(voice_id, deadline=deadline)
            log.info("voice deleted", voice_id=voice_id)
        except ProviderFailure as failure:
            log.error("voice not deleted", voice_id=voice_id, reason=type(failure).__name__)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        # Whoever waits is told by the task; nobody waiting is no reason for a complaint at exit.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task


def _is_ours(voice: ListedVoice) -> bool:
    return ((voice.labels or {}).get(MARKER_LABEL) or "").startswith(f"{MARKER_LABEL}-")


def _voice(listed: ListedVoice) -> Voice:
    made = listed.created_at_unix
    return Voice(
        voice_id=listed.voice_id,
        name=listed.name or "",
        created=datetime.fromtimestamp(made, UTC) if made else None,
    )
