"""Makes one voice, from the intent to the record; what has begun is finished, request or no request.

    intended ── create ──> created ── record ──> ready
       ^          │           ^         │
       │          │ no answer │ found   │ the caller has another by now, or was forgotten
       │          v           │         v
       │       look for the marker    deleted again
       │          │ not found
       └── a new marker, if it may be tried again; else failed

ElevenLabs has no idempotency key, so each voice carries a marker in its labels and its description, and the
intent is stored under that marker before ElevenLabs is asked. If a process is killed, another process looks
for voices with the markers of its intents (`adopt`). A voice without an intent is removed by the janitor.

While its call waits, the record also stores what the agent is to be given. The clone itself changes no agent.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
import structlog
from opentelemetry.sdk.trace import TracerProvider

from cloner.background import Background
from cloner.measures import Measures
from cloner.memory_budget import MemoryBudget
from cloner.provider import failures
from cloner.provider.elevenlabs import ElevenLabs, ListedVoice, NewVoice
from cloner.provider.failures import ProviderFailure
from cloner.provider.retry import retrying
from cloner.provider.turns import with_urgency
from cloner.registry import AgentIntended, Store, VoiceRow, agents, consents, deployment, reasons, voices
from cloner.voices.alive import ALIVE_SECONDS, STALE_SECONDS, SignsOfLife
from cloner.voices.clone import MOST_EVICTIONS, Clone, Superseded, Wanted, new_row
from cloner.voices.ending import ENDINGS, ending_of
from cloner.voices.marked import DEPLOYMENT_LABEL, MARKER_LABEL, Marked, VoiceNeedsVerification
from cloner.voices.monthly_limit import monthly_limit, resets_at
from cloner.voices.removal import Removal, log_given_up
from cloner.voices.samples import Recording
from cloner.voices.voice import Voice, voice_of
from environment.memory import unraised
from telemetry.facts import note
from telemetry.tracing import outliving

__all__ = ["Cloning"]

log = structlog.get_logger()

# How long a failure waits until its intent is closed, so that the caller may be tried again at once.
CLOSING_SECONDS = 1.0


class Cloning:
    """Makes voices for the deployment of the store. `now` tells the time, in Unix seconds.

    All `attempts` of a create together take `timeout_seconds` at most. A voice that is made ahead of time is
    kept for `keep_seconds` at least.
    """

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        marked: Marked,
        removal: Removal,
        *,
        memory: MemoryBudget,
        tracing: TracerProvider,
        measures: Measures,
        timeout_seconds: float,
        attempts: int,
        keep_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._marked = marked
        self._removal = removal
        self._memory = memory
        # The trace of work that goes on after its request was answered.
        self._late = partial(outliving, tracing.get_tracer("precall.cloning"), "finish clone")
        self._measures = measures
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._keep_seconds = keep_seconds
        self._now = now
        self._clones: dict[str, Clone] = {}
        self._alive = SignsOfLife(store, needed=lambda: self._clones, now=now)
        self._owner = self._alive.owner
        self._background = Background()

    def clone_under_way(self, marker: str) -> Clone | None:
        """The clone that this process makes under the marker."""
        return self._clones.get(marker)

    def clone_of(self, caller: str) -> Clone | None:
        """The clone that this process makes for the caller, unless it replaces a voice."""
        return next((clone for clone in self._clones.values() if clone.row.caller == caller), None)

    async def begin(self, wanted: Wanted, recording: Recording) -> tuple[VoiceRow, Clone | None]:
        """Stores the intent and begins the clone, unless the caller has a voice or a clone by now.

        Returns the row that counts, and the clone if there is a new one. Raises MonthlyLimit, and what
        `voices.intend` raises. If the call is cancelled meanwhile, the clone still starts: a stored intent
        without a worker would block the next call.
        """
        beginning = self._background.begin(self._intend_and_start(wanted, recording))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._leave_begun)
            raise
        finally:
            # A failure refers to this call, and its task to the failure: such a cycle would keep the sample.
            del beginning

    async def _intend_and_start(self, wanted: Wanted, recording: Recording) -> tuple[VoiceRow, Clone | None]:
        # Counted here too, because the call that counts the sample may be gone before the intent is stored.
        with self._memory.holding(len(recording.sample)):
            row, new = await self._intend(wanted)
            if not new:
                return row, None
            clone = Clone(row, wanted)
            self._start(clone, self._make(clone, wanted, recording))
            return row, clone

    def _leave_begun(self, beginning: "asyncio.Task[tuple[VoiceRow, Clone | None]]") -> None:
        if not beginning.cancelled() and beginning.exception() is None and (clone := beginning.result()[1]):
            self.leave(clone)

    def leave(self, clone: Clone) -> None:
        """Notes that the call that began a clone no longer waits for it, so no agent is changed for it."""
        clone.agent_update = None
        if clone.agent_intended is not None:
            self._let_go(clone.agent_intended)

    async def adopt(self, row: VoiceRow) -> None:
        """Finishes an intent whose process died, unless another process does.

        If this process itself works at the intent, it goes on: it was only too busy to give a sign of life.
        """
        now = self._now()
        taken = await self._store.write(
            voices.take_over,
            row.marker,
            dead=row.owner,
            owner=self._owner,
            stale=now - STALE_SECONDS,
            now=now,
        )
        if taken and not self.clone_under_way(row.marker):
            clone = Clone(row, None)
            self._start(clone, self._resume(clone))
            try:
                await clone.made()
            except Superseded:
                note(outcome="abandoned")
            except (ProviderFailure, VoiceNeedsVerification) as failure:
                note(outcome="error", reason=failure.reason)

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what is under way, and abandons what is left after the grace.

        An abandoned intent is found by its marker, by another process or at the next start.
        """
        await self._background.wait(grace_seconds)
        if self._clones:
            log.warning("stopped with clones under way at the provider", clones=len(self._clones))
        await self._background.finish(0.0)
        await self._alive.stop()

    async def _intend(self, wanted: Wanted) -> tuple[VoiceRow, bool]:
        """The row of the caller's voice, and whether it is a new intent, which this process works at."""
        now = self._now()
        new = new_row(
            wanted, deployment=self._store.name, owner=self._owner, keep_seconds=self._keep_seconds, now=now
        )
        intent = await self._store.write(
            voices.intend,
            new,
            call_id=wanted.call_id,
            stated=wanted.identity.stated,
            request=wanted.request,
            now=now,
        )
        if intent.row is None:
            raise monthly_limit(intent.month_resets_at, now)
        return intent.row, intent.row.marker == new.marker

    async def _make(self, clone: Clone, wanted: Wanted, recording: Recording) -> str:
        """Creates the voice, and returns its id."""
        deadline = asyncio.get_running_loop().time() + self._timeout

        async def attempt(resent: int) -> str:
            with self._late():
                return await self._attempt(clone, wanted, recording, deadline=deadline, resent=resent)

        # Counted separately, because the clone may outlive the request that began it.
        with self._memory.holding(len(recording.sample)):
            return await retrying(
                attempt,
                (failures.Busy, failures.Unavailable),
                attempts=self._attempts,
                deadline=deadline,
                retried=partial(self._measures.provider_retried, "clone"),
                pausing=self._late,
            )

    async def _attempt(
        self, clone: Clone, wanted: Wanted, recording: Recording, *, deadline: float, resent: int
    ) -> str:
        """The id of the voice that was created, also by a create that got no answer."""
        try:
            created = await self._create(clone, wanted, recording, deadline=deadline, resent=resent)
        except failures.SlotsExhausted:
            # For a call, a voice that was made ahead of time may be deleted.
            if clone.evictions == MOST_EVICTIONS or not await self._removal.evict(
                kept=wanted.call_id is not None, replaces=clone.row.replaces, deadline=deadline
            ):
                log.error("no voice slot left")
                raise
            clone.evictions += 1
            return await self._attempt(clone, wanted, recording, deadline=deadline, resent=resent + 1)
        except failures.MonthlyLimit:
            again = await resets_at(self._provider, deadline=deadline, now=self._now)
            await self._store.write(deployment.close_month_until, again)
            raise monthly_limit(again, self._now()) from None
        except ProviderFailure as failure:
            clone.failure = unraised(failure)
            log.warning("voice not created", reason=failure.reason, maybe_made=failure.maybe_done)
            found = await self._look_for(clone) if failure.maybe_done else None
            if found is None:
                raise
            created = NewVoice(found.voice_id, found.requires_verification)
        if created.voice_id == wanted.agent_voice_id:
            log.error(
                "ElevenLabs names a voice of somebody else; it is left alone", voice_id=created.voice_id
            )
            raise failures.ProtocolBroken
        if created.requires_verification:
            if await self._marked.belongs_elsewhere(created.voice_id, clone.row.marker):
                raise failures.ProtocolBroken
            self._discard(created.voice_id, clone.row.marker, VoiceNeedsVerification.reason)
            raise VoiceNeedsVerification
        return created.voice_id

    async def _look_for(self, clone: Clone) -> ListedVoice | None:
        """The voice of a create that got no answer. Raises NotLookedFor."""
        with self._late():
            found = await self._marked.look_for(clone.row.marker)
        if found is None:
            # Another create uses a new marker; reconciliation finds what this one made.
            await self._fail(clone, reasons.UNANSWERED)
        else:
            log.info("voice found by its marker", voice_id=found.voice_id)
        return found

    async def _create(
        self, clone: Clone, wanted: Wanted, recording: Recording, *, deadline: float, resent: int
    ) -> NewVoice:
        """Sends one create under an intent of ours, once it has its turn."""
        if not resent and self._provider.full:
            clone.failure = failures.OwnQueueFull()
        async with self._provider.turn(deadline, declinable=not resent):
            if resent or asyncio.get_running_loop().time() - clone.ours_at > ALIVE_SECONDS:
                await self._renew(clone, wanted)
            clone.sent(again=resent > 0)
            row = clone.row
            return await self._provider.create_voice(
                name=row.name,
                description=f"Made by Precall for one caller, {row.marker}",
                labels={MARKER_LABEL: row.marker, DEPLOYMENT_LABEL: self._store.name},
                filename=recording.filename,
                media_type=recording.media_type,
                sample=recording.sample,
                deadline=deadline,
                resent=resent,
            )

    async def _renew(self, clone: Clone, wanted: Wanted) -> None:
        """Continues under a new marker if the intent is no longer ours. Raises what `_intend` raises, too."""
        row = await self._store.read(voices.get, clone.row.marker)
        if row is None or row.reason == reasons.FORGOTTEN:
            raise consents.CallerForgotten
        if row.state != "intended" or row.owner != self._owner:
            row, new = await self._intend(wanted)
            if not new:
                raise Superseded
            self._clones[row.marker] = self._clones.pop(clone.row.marker, clone)
        clone.row, clone.ours_at = row, asyncio.get_running_loop().time()

    async def _resume(self, clone: Clone) -> str:
        """The id of the voice of an intent whose process died.

        Raises Superseded if none is found, and VoiceNeedsVerification.
        """
        row = await self._store.read(voices.get, clone.row.marker)
        found = None if row is None else await self._look_for(clone)
        if row is None or found is None:
            raise Superseded
        if found.requires_verification:
            self._discard(found.voice_id, row.marker, VoiceNeedsVerification.reason)
            raise VoiceNeedsVerification
        clone.row = row
        return found.voice_id

    async def _record(self, clone: Clone, voice_id: str) -> Voice:
        wanted = clone.wanted
        call_id, stated = (None, None) if wanted is None else (wanted.call_id, wanted.identity.stated)
        with self._late():
            note(voice_id=voice_id)
            row, now = clone.row, self._now()
            if clone.agent_update is None:
                recorded = await self._store.write(
                    voices.record, row.marker, voice_id, now=now, call_id=call_id, stated=stated
                )
            else:
                update = clone.agent_update.with_voice(row.marker, voice_id)
                recorded, obstacle = await self._store.write_at(
                    update.row.agent_id, agents.record_and_intend, update, stated=stated, now=now
                )
                clone.agent_intended = AgentIntended(update, obstacle)
                if clone.agent_update is None:
                    self._let_go(clone.agent_intended)
            if recorded is None:
                if await self._marked.belongs_elsewhere(voice_id, row.marker):
                    raise failures.ProtocolBroken
                log.warning("voice no longer wanted", voice_id=voice_id)
                self._discard(voice_id, row.marker, "no_longer_wanted")
                if wanted is not None and await self._store.read(voices.is_forgotten, row.marker):
                    raise consents.CallerForgotten
                raise Superseded
            log.info("voice created", voice_id=voice_id)
            if recorded.replaced is not None:
                log_given_up(recorded.replaced, reasons.REPLACED)
            return voice_of(msgspec.structs.replace(row, voice_id=voice_id))

    def _start(self, clone: Clone, work: Coroutine[Any, Any, str]) -> None:
        """Begins the task of a clone. Its intent is closed if nothing comes of it."""
        self._clones[clone.row.marker] = clone
        clone.task = self._background.begin_alone(self._finished(clone, work))
        self._alive.begin()

    async def _finished(self, clone: Clone, work: Coroutine[Any, Any, str]) -> Voice | Exception:
        """The voice, or the failure that came instead."""
        try:
            came = await self._came_to(clone, work)
        except asyncio.CancelledError:
            self._clones.pop(clone.row.marker, None)  # the intent is left to another process
            self._measure(clone, "abandoned")
            raise
        except Exception:
            self._measure(clone, "error", "INTERNAL")
            self._background.begin_alone(self._give_up(clone, reasons.NOT_MADE))
            raise
        ending = ending_of(came, clone.failure)
        self._measure(clone, ending.outcome, ending.reason)
        if ending.closed_with is None:
            self._clones.pop(clone.row.marker, None)
        else:
            closing = self._background.begin_alone(self._give_up(clone, ending.closed_with))
            await asyncio.wait({closing}, timeout=CLOSING_SECONDS)
        return ending.told

    async def _came_to(self, clone: Clone, work: Coroutine[Any, Any, str]) -> Voice | Exception:
        """The recorded voice, or the failure, which refers to nothing that holds the sample."""
        try:
            with with_urgency(clone.urgency):
                voice_id = await work
            return await clone.stored(lambda: self._record(clone, voice_id))
        except ENDINGS as failure:
            return unraised(failure)

    async def _give_up(self, clone: Clone, reason: str) -> None:
        """Closes the intent of a clone, unless another process has taken it over."""
        try:
            await self._fail(clone, reason, owner=self._owner)
        finally:
            self._clones.pop(clone.row.marker, None)

    async def _fail(self, clone: Clone, reason: str, *, owner: str | None = None) -> None:
        await clone.stored(
            lambda: self._store.write(voices.fail, clone.row.marker, reason, owner=owner, now=self._now())
        )

    def _measure(self, clone: Clone, outcome: str, reason: str = "") -> None:
        seconds = asyncio.get_running_loop().time() - clone.begun
        self._measures.clone_ended(outcome, reason, seconds=seconds)

    def _let_go(self, intended: AgentIntended) -> None:
        """Unlocks an agent that will not be changed. If this fails, the lock ends at its own time."""
        if intended.obstacle is None:
            row, holder = intended.update.row, intended.update.holder
            self._background.begin_alone(self._store.write(agents.unlock, row.agent_id, holder=holder))

    def _discard(self, voice_id: str, marker: str, reason: str) -> None:
        self._background.begin_alone(self._marked.discard(voice_id, marker, reason))
