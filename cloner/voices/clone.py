"""One clone, from its stored intent to its end; what has begun is finished, request or no request.

    intended ── create ──> created ── record ──> ready
       ^          │           ^         │
       │          │ no answer │ found   │ the caller has another by now, or was forgotten
       │          v           │         v
       │       look for the marker    deleted again
       │          │ not found
       └── a new marker, if it may be tried again; else failed

ElevenLabs has no idempotency key, so each voice carries a marker in its labels and its description, and the
intent is stored under that marker before ElevenLabs is asked. If a process is killed, another process looks
for voices with the markers of its intents. A voice without an intent is removed by the janitor.

While its call waits, the record also stores what the agent is to be given. The clone itself changes no agent.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import msgspec
import structlog
from opentelemetry.trace import get_current_span

from cloner.background import Background
from cloner.measures import Measures
from cloner.memory_budget import MemoryBudget
from cloner.provider import failures
from cloner.provider.elevenlabs import ElevenLabs, ListedVoice, NewVoice
from cloner.provider.failures import ProviderFailure
from cloner.provider.retry import retrying
from cloner.provider.turns import urgency, with_urgency
from cloner.refusals import Overloaded
from cloner.registry import (
    AgentIntended,
    RegistryUnavailable,
    Store,
    VoiceRow,
    agents,
    consents,
    deployment,
    reasons,
    requests,
    voices,
)
from cloner.voices.alive import ALIVE_SECONDS
from cloner.voices.intent import Intents, Wanted
from cloner.voices.marked import Marked, NotLookedFor, VoiceNeedsVerification
from cloner.voices.monthly_limit import monthly_limit, resets_at
from cloner.voices.removal import Removal, log_given_up
from cloner.voices.samples import Recording
from cloner.voices.voice import Voice, voice_of
from environment.memory import unraised
from telemetry.facts import note

__all__ = ["Clone", "Superseded", "Workshop"]

log = structlog.get_logger()

# So many slots are freed for one clone.
MOST_EVICTIONS = 4
# Between two tries to store what became of a clone; the last one again and again.
STORE_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
# How long a failure waits until its intent is closed, so that the caller may be tried again at once.
CLOSING_SECONDS = 1.0


class Superseded(Exception):
    """Another intent replaced this one while its voice was being made. Waiters read the registry again."""


FAILED = (ProviderFailure, VoiceNeedsVerification, RegistryUnavailable, Overloaded)
# No voice is wanted any more.
GIVEN_UP = (
    Superseded,
    consents.CallerForgotten,
    consents.ConsentWithdrawn,
    requests.RequestDiffers,
    requests.RequestForgotten,
)


class Workshop(NamedTuple):
    """What the clones of this process share. `now` tells the time, in Unix seconds.

    All `attempts` of a create together take `timeout_seconds` at most.
    """

    provider: ElevenLabs
    store: Store
    marked: Marked
    removal: Removal
    intents: Intents
    memory: MemoryBudget
    measures: Measures
    background: Background
    late: Callable[[], AbstractContextManager[None]]
    """The trace of work that goes on after its request was answered."""

    attempts: int
    timeout_seconds: float
    now: Callable[[], float]
    under_way: "set[Clone]"
    """Every clone whose intent is neither recorded nor closed."""


class Clone:
    """A clone under way in this process, and what to answer if time runs out while somebody waits for it."""

    _task: "asyncio.Task[Voice | Exception]"
    """Ends with the voice, or with the failure that came instead. It is not raised here, so that it does not
    refer to the calls that made the voice: those hold the sample, and the clone."""

    def __init__(
        self, workshop: Workshop, row: VoiceRow, wanted: Wanted | None, recording: Recording | None
    ) -> None:
        self._at = workshop
        self.row = row
        self._wanted = wanted
        """What was asked for; None for the intent of a process that died."""

        self._recording = recording
        """What is sent; None as soon as that has begun."""

        self._begun = self._ours_at = asyncio.get_running_loop().time()
        """When it began, and when its intent was last known to be ours."""

        self.trace = get_current_span().get_span_context()
        self._failure: ProviderFailure | RegistryUnavailable | None = None
        """What went wrong last, or OwnQueueFull while it waits for its turn."""

        self._asked = wanted is None
        """Whether ElevenLabs was asked, or may have been."""

        self._agent_update = None if wanted is None else wanted.agent_update
        """The update to store together with the voice; None once the call that began the clone has left."""

        self.agent_intended: AgentIntended | None = None
        """The update and whether the registry allowed it; None if it was never tried."""

        self._evictions = 0
        """How often a slot was freed for it. Another clone may be faster to take it."""

        self._unstored = 0
        """How often the registry could not store what became of it."""

        # A clone that was begun ahead of time becomes urgent when a call comes to need it.
        self.urgency = urgency()

    def begin(self) -> None:
        """Makes the voice and records it, or closes the intent, whoever waits for that."""
        self._at.under_way.add(self)
        self._task = self._at.background.begin_alone(self._run())

    async def made(self) -> Voice:
        """Waits for the voice. Raises the failure with which the clone ended, to each who waits a copy."""
        ended = await asyncio.shield(self._task)
        if isinstance(ended, Exception):
            raise unraised(ended)
        return ended

    def late_failure(self) -> Exception:
        """What to answer if time runs out now: what went wrong last, if anything did."""
        if self._failure is not None:
            return unraised(self._failure)
        return failures.TimedOut() if self._asked else failures.DeadlineTooShort()

    def leave(self) -> None:
        """Notes that the call that began the clone no longer waits for it, so no agent is changed for it."""
        self._agent_update = None
        if self.agent_intended is not None:
            self._unlock(self.agent_intended)

    async def _run(self) -> Voice | Exception:
        try:
            came = await self._came_to()
        except asyncio.CancelledError:
            self._at.under_way.discard(self)  # the intent is left to another process
            self._measure("abandoned")
            raise
        except Exception:
            self._measure("error", "INTERNAL")
            self._at.background.begin_alone(self._close(reasons.NOT_MADE))
            raise
        if isinstance(came, Voice):
            self._at.under_way.discard(self)
            self._measure("success")
            return came
        told, closed_with = came, reasons.NOT_MADE
        if isinstance(came, NotLookedFor):
            # Nobody knows whether there is a voice, so only another request may have one made.
            told, closed_with = self._failure or Superseded(), reasons.UNANSWERED
        elif isinstance(came, FAILED):
            closed_with = came.reason
        if isinstance(told, FAILED):
            self._measure("error", told.reason)
        else:
            self._measure("abandoned")
        closing = self._at.background.begin_alone(self._close(closed_with))
        await asyncio.wait({closing}, timeout=CLOSING_SECONDS)
        return told

    async def _came_to(self) -> Voice | Exception:
        """The recorded voice, or the failure, which refers to nothing that holds the sample."""
        try:
            with with_urgency(self.urgency):
                voice_id = await self._accepted(await self._make())
            while True:
                try:
                    return await self._record(voice_id)
                except RegistryUnavailable as failure:
                    await self._pause_unstored(failure)
        except (*FAILED, *GIVEN_UP, NotLookedFor) as failure:
            return unraised(failure)

    async def _make(self) -> NewVoice:
        wanted, recording, self._recording = self._wanted, self._recording, None
        if wanted is None or recording is None:
            return await self._make_out()
        deadline = asyncio.get_running_loop().time() + self._at.timeout_seconds

        async def attempt(resent: int) -> NewVoice:
            with self._at.late():
                return await self._attempt(wanted, recording, deadline=deadline, resent=resent)

        # Counted separately, because the clone may outlive the request that began it.
        with self._at.memory.holding(len(recording.sample)):
            return await retrying(
                attempt,
                (failures.Busy, failures.Unavailable),
                attempts=self._at.attempts,
                deadline=deadline,
                retried=partial(self._at.measures.provider_retried, "clone"),
                pausing=self._at.late,
            )

    async def _attempt(
        self, wanted: Wanted, recording: Recording, *, deadline: float, resent: int
    ) -> NewVoice:
        """The voice that was created, also by a create that got no answer."""
        try:
            return await self._create(wanted, recording, deadline=deadline, resent=resent)
        except failures.SlotsExhausted:
            # For a call, a voice that was made ahead of time may be deleted.
            if self._evictions == MOST_EVICTIONS or not await self._at.removal.evict(
                kept=wanted.call_id is not None, replaces=self.row.replaces, deadline=deadline
            ):
                log.error("no voice slot left")
                raise
            self._evictions += 1
            return await self._attempt(wanted, recording, deadline=deadline, resent=resent + 1)
        except failures.MonthlyLimit:
            again = await resets_at(self._at.provider, deadline=deadline, now=self._at.now)
            await self._at.store.write(deployment.close_month_until, again)
            raise monthly_limit(again, self._at.now()) from None
        except ProviderFailure as failure:
            self._failure = unraised(failure)
            log.warning("voice not created", reason=failure.reason, maybe_made=failure.maybe_done)
            found = await self._look_for() if failure.maybe_done else None
            if found is None:
                raise
            return NewVoice(found.voice_id, found.requires_verification)

    async def _create(
        self, wanted: Wanted, recording: Recording, *, deadline: float, resent: int
    ) -> NewVoice:
        """Sends one create under an intent of ours, once it has its turn."""
        if not resent and self._at.provider.full:
            self._failure = failures.OwnQueueFull()
        async with self._at.provider.turn(deadline, declinable=not resent):
            if resent or asyncio.get_running_loop().time() - self._ours_at > ALIVE_SECONDS:
                await self._renew(wanted)
            self._asked = True
            if not resent:  # else the failure of the earlier try is kept until the answer
                self._failure = None
            return await self._at.provider.create_voice(
                name=self.row.name,
                description=f"Made by Precall for one caller, {self.row.marker}",
                labels=self._at.marked.labels(self.row.marker),
                filename=recording.filename,
                media_type=recording.media_type,
                sample=recording.sample,
                deadline=deadline,
                resent=resent,
            )

    async def _renew(self, wanted: Wanted) -> None:
        """Continues under a new marker if the intent is no longer ours. Raises what storing one raises."""
        row = await self._at.store.read(voices.get, self.row.marker)
        if row is None or row.reason == reasons.FORGOTTEN:
            raise consents.CallerForgotten
        if row.state != "intended" or row.owner != self._at.intents.owner:
            row, new = await self._at.intents.store(wanted)
            if not new:
                raise Superseded
        self.row, self._ours_at = row, asyncio.get_running_loop().time()

    async def _look_for(self) -> ListedVoice | None:
        """The voice of a create that got no answer. Raises NotLookedFor."""
        with self._at.late():
            found = await self._at.marked.look_for(self.row.marker)
        if found is None:
            # Another create uses a new marker; reconciliation finds what this one made.
            await self._fail(reasons.UNANSWERED)
        else:
            log.info("voice found by its marker", voice_id=found.voice_id)
        return found

    async def _make_out(self) -> NewVoice:
        """The voice of an intent whose process died. Raises Superseded if none is found."""
        row = await self._at.store.read(voices.get, self.row.marker)
        found = None if row is None else await self._look_for()
        if row is None or found is None:
            raise Superseded
        self.row = row
        return NewVoice(found.voice_id, found.requires_verification)

    async def _accepted(self, made: NewVoice) -> str:
        """The id of a voice that may speak, and is nobody else's."""
        voice_id = made.voice_id
        if self._wanted is not None and voice_id == self._wanted.agent_voice_id:
            log.error("ElevenLabs names a voice of somebody else; it is left alone", voice_id=voice_id)
            raise failures.ProtocolBroken
        if made.requires_verification:
            with self._at.late():
                if await self._at.marked.belongs_elsewhere(voice_id, self.row.marker):
                    raise failures.ProtocolBroken
                self._discard(voice_id, VoiceNeedsVerification.reason)
            raise VoiceNeedsVerification
        return voice_id

    async def _record(self, voice_id: str) -> Voice:
        wanted = self._wanted
        call_id, stated = (None, None) if wanted is None else (wanted.call_id, wanted.identity.stated)
        with self._at.late():
            note(voice_id=voice_id)
            row, now = self.row, self._at.now()
            if self._agent_update is None:
                recorded = await self._at.store.write(
                    voices.record, row.marker, voice_id, now=now, call_id=call_id, stated=stated
                )
            else:
                update = self._agent_update.with_voice(row.marker, voice_id)
                recorded, obstacle = await self._at.store.write_at(
                    update.row.agent_id, agents.record_and_intend, update, stated=stated, now=now
                )
                self.agent_intended = AgentIntended(update, obstacle)
                if self._agent_update is None:
                    self._unlock(self.agent_intended)
            if recorded is None:
                if await self._at.marked.belongs_elsewhere(voice_id, row.marker):
                    raise failures.ProtocolBroken
                log.warning("voice no longer wanted", voice_id=voice_id)
                self._discard(voice_id, "no_longer_wanted")
                if wanted is not None and await self._at.store.read(voices.is_forgotten, row.marker):
                    raise consents.CallerForgotten
                raise Superseded
            log.info("voice created", voice_id=voice_id)
            if recorded.replaced is not None:
                log_given_up(recorded.replaced, reasons.REPLACED)
            return voice_of(msgspec.structs.replace(row, voice_id=voice_id))

    async def _close(self, reason: str) -> None:
        """Closes the intent, unless another process has taken it over."""
        try:
            await self._fail(reason, owner=self._at.intents.owner)
        finally:
            self._at.under_way.discard(self)

    async def _fail(self, reason: str, *, owner: str | None = None) -> None:
        while True:
            try:
                return await self._at.store.write(
                    voices.fail, self.row.marker, reason, owner=owner, now=self._at.now()
                )
            except RegistryUnavailable as failure:
                await self._pause_unstored(failure)

    async def _pause_unstored(self, failure: RegistryUnavailable) -> None:
        """Waits until what became of the clone is stored once more, for as long as that takes.

        An intent that stayed open would keep others waiting for as long as this process gives signs of life.
        """
        self._failure = unraised(failure)
        pause = STORE_PAUSES[min(self._unstored, len(STORE_PAUSES) - 1)]
        self._unstored += 1
        log.warning("clone not stored yet", reason=failure.reason, next_try_seconds=pause)
        await asyncio.sleep(pause)

    def _measure(self, outcome: str, reason: str = "") -> None:
        took = asyncio.get_running_loop().time() - self._begun
        self._at.measures.clone_ended(outcome, reason, seconds=took)

    def _unlock(self, intended: AgentIntended) -> None:
        """Unlocks an agent that will not be changed. If this fails, the lock ends at its own time."""
        if intended.obstacle is None:
            agent_id, holder = intended.update.row.agent_id, intended.update.holder
            self._at.background.begin_alone(self._at.store.write(agents.unlock, agent_id, holder=holder))

    def _discard(self, voice_id: str, reason: str) -> None:
        self._at.background.begin_alone(self._at.marked.discard(voice_id, self.row.marker, reason))
