"""Creates one voice at ElevenLabs, and finds out what became of a create that got no answer.

ElevenLabs has no idempotency key, so each voice carries a marker in its labels and description. A
marker holds the name of the deployment, which tells our voices from everybody else's.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from cloner import failures
from cloner.elevenlabs import ElevenLabs, ListedVoice, NewVoice
from cloner.failures import ProviderFailure
from cloner.registry import RegistryUnavailable, Store, VoiceRow, deployment, voices
from cloner.removal import Removal
from cloner.retry import retrying

__all__ = ["Creation", "VoiceNeedsVerification", "marker_in"]

log = structlog.get_logger()

MARKER_LABEL = "precall"
DEPLOYMENT_LABEL = "precall_deployment"
# When the marker of a create that got no answer is looked for, in seconds after it failed.
LOOKS = (0.0, 0.5, 1.5)
LOOK_SECONDS = 20.0
DELETE_SECONDS = 60.0
# How long the monthly counter counts as used up where ElevenLabs does not say until when.
MONTH_UNKNOWN_SECONDS = 3600.0
# Credits of a plan that is paid by the year may start again later than the counter, which is a month's.
MONTH_SECONDS = 31 * 86_400.0
LONGEST_PERIOD_SECONDS = 367 * 86_400.0


class VoiceNeedsVerification(Exception):
    """The provider made a voice that may not speak before somebody verifies it. It is removed again."""

    def __init__(self) -> None:
        super().__init__("ElevenLabs wants this voice verified before it may speak; it was removed again.")


class _RoomMade(Exception):
    """There was no slot left, and now there is one."""


class Creation:
    """Creates voices for the deployment of that name. `now` tells the time, in Unix seconds."""

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        removal: Removal,
        *,
        name: str,
        timeout_seconds: float,
        attempts: int,
        call_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._removal = removal
        self._deployment = name
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._call_seconds = call_seconds
        self._now = now
        self._discards: set[asyncio.Task[None]] = set()

    def marker(self, token: str) -> str:
        """The marker of a voice that is about to be created. The token must be used once only."""
        return f"precall-{self._deployment}-{token}"

    async def create(
        self,
        intent: Callable[[], Awaitable[VoiceRow]],
        tell: Callable[[ProviderFailure | None], None],
        *,
        sample: bytes,
        filename: str,
        media_type: str,
        for_call: bool,
    ) -> tuple[VoiceRow, str]:
        """The row under which a voice was created, and the voice.

        `intent` returns the row to create it under, each time that a create is about to be sent;
        `tell` hears what went wrong last. `for_call` says that somebody is calling, for whom a voice
        that was taken ahead of time may have to go. Raises a ProviderFailure or VoiceNeedsVerification.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        made_room = False

        async def attempt(resent: int) -> tuple[VoiceRow, str]:
            row = await intent()
            if not resent and self._provider.full:
                tell(failures.Busy())
            try:
                created = await self._provider.create_voice(
                    name=row.name,
                    description=f"Made by Precall for one caller, {row.marker}",
                    labels={MARKER_LABEL: row.marker, DEPLOYMENT_LABEL: self._deployment},
                    filename=filename,
                    media_type=media_type,
                    sample=sample,
                    deadline=deadline,
                    resent=resent,
                    # What was said before stays what is known, until there is an answer.
                    sending=lambda: None if resent else tell(None),
                )
            except failures.SlotsExhausted as failure:
                if made_room or not await self._make_room(deadline, kept=for_call, replaces=row.replaces):
                    raise
                raise _RoomMade from failure
            except failures.MonthlyLimit:
                resets_at = await self._month_resets_at(deadline)
                await self._store.write(deployment.month_used_up, resets_at)
                raise failures.MonthlyLimit(retry_after=max(1.0, resets_at - self._now())) from None
            except ProviderFailure as failure:
                tell(failure)
                log.warning("voice not created", reason=type(failure).__name__, maybe_made=failure.maybe_done)
                found = await self._made_all_the_same(row) if failure.maybe_done else None
                if found is None:
                    raise
                created = found
            await self._may_speak(created, row.marker)
            return row, created.voice_id

        # Not by calling itself: a function in a circle keeps the sample until somebody looks for circles.
        async def with_room(resent: int) -> tuple[VoiceRow, str]:
            nonlocal made_room
            try:
                return await attempt(resent)
            except _RoomMade:
                made_room = True
                return await attempt(resent + 1)

        return await retrying(
            with_room, (failures.Busy, failures.Unavailable), attempts=self._attempts, deadline=deadline
        )

    async def _made_all_the_same(self, row: VoiceRow) -> NewVoice | None:
        """What a create made that failed, if anything."""
        found = await self._look(row.marker)
        if found is None:
            # The next create goes under a new marker; what this one made is found by reconciling.
            await self._store.write(voices.fail, row.marker, "Unanswered", now=self._now())
            return None
        log.info("voice found by its marker", voice_id=found.voice_id)
        return NewVoice(found.voice_id, found.requires_verification)

    async def look(self, marker: str) -> str | None:
        """The voice that carries the marker, if the provider has it and it may speak."""
        found = await self._look(marker)
        if found is not None and found.requires_verification:
            self._discard(found.voice_id, marker)
            return None
        return found.voice_id if found else None

    async def still_there(self, row: VoiceRow, *, deadline: float) -> bool:
        """Whether the provider has the voice of a ready row."""
        try:
            await self._provider.get_voice(row.voice_id or "", deadline=deadline)
        except failures.VoiceNotFound:
            return False
        return True

    async def is_anothers(self, voice_id: str, marker: str) -> bool:
        """Whether a voice that ElevenLabs names as the one of this marker is known as another's."""
        known = await self._store.read(voices.marker_of, voice_id)
        if known in (None, marker):
            return False
        log.error("ElevenLabs names another caller's voice; it is left alone", voice_id=voice_id)
        return True

    async def discard(self, voice_id: str, marker: str) -> None:
        """Deletes a voice that nobody will use. One that stays is found by reconciling."""
        try:
            if await self.is_anothers(voice_id, marker):
                return
            deadline = asyncio.get_running_loop().time() + DELETE_SECONDS
            await self._provider.delete_voice(voice_id, deadline=deadline)
            log.info("voice deleted", voice_id=voice_id)
        except (ProviderFailure, RegistryUnavailable) as failure:
            log.warning("voice not deleted yet", voice_id=voice_id, reason=type(failure).__name__)

    async def finish(self) -> None:
        """Waits for deletions that nobody waits for."""
        if self._discards:
            await asyncio.wait(self._discards)

    def _discard(self, voice_id: str, marker: str) -> None:
        task = asyncio.create_task(self.discard(voice_id, marker))
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def _may_speak(self, created: NewVoice, marker: str) -> None:
        if created.requires_verification:
            if await self.is_anothers(created.voice_id, marker):
                raise failures.ProtocolBroken
            self._discard(created.voice_id, marker)
            raise VoiceNeedsVerification

    async def _make_room(self, deadline: float, *, kept: bool, replaces: str | None) -> bool:
        """Deletes the voice that was used the longest ago and is in no call, if there is one."""
        now = self._now()
        busy_since = now - self._call_seconds
        row = await self._store.read(
            voices.least_recently_used, busy_since=busy_since, now=now, kept=kept, replaces=replaces
        )
        if row is None or not await self._store.write(
            voices.release, row.marker, "evicted", busy_since=busy_since, now=self._now()
        ):
            return False
        log.info("voice given up for its slot", voice_id=row.voice_id)
        try:
            return await self._removal.remove(row, deadline=deadline)
        except ProviderFailure:
            return False

    async def _month_resets_at(self, deadline: float) -> float:
        try:
            at = await self._provider.month_resets_at(deadline=deadline)
        except ProviderFailure:
            at = None
        now = self._now()
        if at is None or not now < at < now + LONGEST_PERIOD_SECONDS:
            return now + MONTH_UNKNOWN_SECONDS
        return min(float(at), now + MONTH_SECONDS)

    async def _look(self, marker: str) -> ListedVoice | None:
        for pause in LOOKS:
            await asyncio.sleep(pause)
            try:
                deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
                page = await self._provider.search_voices(marker, deadline=deadline)
            except ProviderFailure as failure:
                log.warning("marker not looked for", reason=type(failure).__name__)
                continue
            for voice in page.voices:
                if marker_in(voice) == marker or marker in (voice.description or ""):
                    return voice
        return None


def marker_in(voice: ListedVoice, deployment: str | None = None) -> str | None:
    """The marker that a voice carries; with `deployment`, only if it is that deployment's."""
    labels = voice.labels or {}
    if deployment is not None and labels.get(DEPLOYMENT_LABEL) != deployment:
        return None
    return labels.get(MARKER_LABEL)
