"""Removes a voice: from the agents that have it first, then from ElevenLabs."""

import asyncio
import contextlib
import math
import secrets
from collections.abc import Callable, Iterator

import structlog
from cachetools import LRUCache

from cloner.provider import failures
from cloner.provider.elevenlabs import AgentVoice, ElevenLabs
from cloner.provider.turns import Urgency, urgency, with_urgency
from cloner.registry import (
    AgentRow,
    ClaimedAgent,
    RegistryUnavailable,
    Store,
    VoiceRow,
    agents,
    calls,
    departures,
    is_ours,
    reasons,
    voices,
)
from cloner.registry.holding import LATE_SECONDS, renewing
from cloner.voices.marked import Marked
from cloner.voices.postponed import ids_of, ids_of_agent, log_postponed, pause_after
from telemetry.facts import log_context
from telemetry.tracing import traceparent

__all__ = ["Removal", "log_given_up"]

log = structlog.get_logger()

# The longest pause before an agent is tried again, and the longest that `Retry-After` can make of it.
# Meanwhile the agent stays locked, and has a caller's voice and name.
LONGEST_AGENT_SECONDS, LONGEST_ASKED_SECONDS = 60.0, 300.0
AGENTS = 10_000
# So long after its intent was stored, a create has made its voice, and lists have it, or never will.
MADE_SECONDS = 300.0
# After a deletion that failed, no other voice is given up for a slot for so long.
UNDELETED_SECONDS = 60.0
# How long a deletion waits for an agent that is being put back, and how often it looks.
SOON_SECONDS, LOOK_SECONDS = 2.0, 0.1


class Removal:
    """Removes voices and restores agents. `now` tells the time, in Unix seconds.

    A voice is not evicted if an open call that has it began less than `call_seconds` ago.
    """

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        marked: Marked,
        *,
        call_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._marked = marked
        self._call_seconds = call_seconds
        self._now = now
        # How often in a row each agent could not be put back.
        self._tries: LRUCache[str, int] = LRUCache(AGENTS)
        self._undeleted: tuple[VoiceRow, float] | None = None
        """The voice that was to be deleted last, if ElevenLabs did not do it, and until when that counts."""

        self._deleted_at = -math.inf
        # The agents that are being put back, and the voices that are being deleted.
        self._restoring: list[Urgency] = []
        self._deleting: list[Urgency] = []

    async def remove(self, row: VoiceRow, *, deadline: float) -> bool:
        """Deletes a voice that was given up. False if an agent may still have it: then it is not deleted.

        May be repeated after any failure. Raises a ProviderFailure or RegistryUnavailable.
        """
        await self._store.write(agents.plan_restore, marker=row.marker)
        while (agent := await self.claim(marker=row.marker)) is not None:
            try:
                await self.restore(agent, deadline=deadline)
            except failures.ProviderFailure as failure:
                # The pause is the agent's, which is postponed by itself. The voice is due as soon as the
                # agent is put back.
                failure.retry_after = None
                raise
        if await self._store.read(agents.has_voice, row.marker):
            return False
        voice_id = row.voice_id or await self._unrecorded(row, deadline)
        if voice_id is not None:
            # Under a load of new callers no voice would go, and those that are to go would take all slots.
            with self._one_urgent(self._deleting), self._noting_undeleted(row):
                await self._provider.delete_voice(voice_id, deadline=deadline)
            log.info("voice deleted", voice_id=voice_id, reason=row.reason or "unknown")
        await self._store.write(departures.note_gone, row.marker, now=self._now())
        return True

    async def _unrecorded(self, row: VoiceRow, deadline: float) -> str | None:
        """The id of a voice that was given up while it was being made; None if none was made.

        Raises VoiceNotFound while it may still be.
        """
        found = await self._marked.find(row.marker, deadline=deadline)
        if found is None:
            if self._now() < row.created_at + MADE_SECONDS:
                raise failures.VoiceNotFound
            return None
        if await self._marked.belongs_elsewhere(found.voice_id, row.marker):
            return None
        log.info("voice found by its marker", voice_id=found.voice_id)
        return found.voice_id

    async def remove_now(self, row: VoiceRow, *, deadline: float) -> bool:
        """Deletes a voice that was given up. False if that takes too long or fails: it is deleted later.

        Raises RegistryUnavailable.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + SOON_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                # Another process may be putting back the agent that has the voice.
                while not await self.remove(row, deadline=deadline):
                    if loop.time() > ends:
                        return False
                    await asyncio.sleep(LOOK_SECONDS)
                    current = await self._store.read(voices.get, row.marker)
                    if current is None or current.state == "gone":
                        return True
        except failures.ProviderFailure as failure:
            if failure.retry_after is not None:
                # The janitor would ask again at its next tick.
                due_at = self._now() + failure.retry_after
                await self._store.write(departures.postpone_deletion, row.marker, due_at=due_at)
            return False
        except TimeoutError:
            return False
        return True

    async def remove_all(self, rows: list[VoiceRow], reason: str, *, deadline: float) -> tuple[int, int]:
        """Deletes voices that were given up for the reason, one after the other, as `remove_now` does.

        Returns how many were deleted, and how many will be deleted later.
        """
        deleted = 0
        for row in rows:
            log_given_up(row.voice_id, reason)
            deleted += await self.remove_now(row, deadline=deadline)
        return deleted, len(rows) - deleted

    async def evict(self, *, kept: bool, replaces: str | None, deadline: float) -> bool:
        """Frees a slot: deletes the voice that was used the longest ago and is in no call.

        A kept voice is deleted only with `kept`, or, where no other can go, if it is the voice of the caller
        `replaces` and the month has room for the new one. Without any such voice, one that is leaving anyway
        is waited for. False if no slot came free. Raises a ProviderFailure or RegistryUnavailable.
        """
        if self._undeleted is not None and asyncio.get_running_loop().time() < self._undeleted[1]:
            # To give up another one, too, would free nothing, and its caller would be unknown.
            return await self.remove_now(self._undeleted[0], deadline=deadline)
        row = await self._make_room(kept=kept, replaces=None)
        if row is None and replaces is not None and await self._month_has_room(deadline):
            row = await self._make_room(kept=kept, replaces=replaces)
        if row is None:
            leaving = await self._store.read(departures.leaving)
            if leaving is None:
                # Since the slots were full, one may have gone.
                return asyncio.get_running_loop().time() < self._deleted_at + SOON_SECONDS
            return await self.remove_now(leaving, deadline=deadline)
        log_given_up(row.voice_id, reasons.EVICTED)
        # After a call that ended a moment ago, its agent may still be being put back.
        return await self.remove_now(row, deadline=deadline)

    async def _make_room(self, *, kept: bool, replaces: str | None) -> VoiceRow | None:
        now = self._now()
        return await self._store.write(
            departures.make_room,
            busy_since=now - self._call_seconds,
            now=now,
            kept=kept,
            replaces=replaces,
            traceparent=traceparent(),
        )

    async def _month_has_room(self, deadline: float) -> bool:
        account = await self._provider.subscription(deadline=deadline)
        used, limit = account.month_used, account.month_limit
        return used is None or limit is None or used < limit

    async def claim(self, *, marker: str | None = None) -> ClaimedAgent | None:
        """Claims an agent that must be put back; None if there is none."""
        return await self._store.write(
            agents.claim_restore, holder=secrets.token_hex(8), now=self._now(), marker=marker
        )

    async def restore(self, row: ClaimedAgent, *, deadline: float) -> str | None:
        """Puts a claimed agent back, as urgently as a call: until then the next callers hear our voice.

        Of several, one at a time is that urgent: agents that do not answer must leave calls their turns.

        Returns why nothing was changed, in a word; None where it was.

        Raises a ProviderFailure, after which the agent is tried again later; the log says when.
        """
        try:
            with (
                log_context(agent_id=row.agent_id, voice_id=row.voice_id, call_id=row.call_id),
                self._one_urgent(self._restoring),
                renewing(self._store, row.agent_id, holder=row.holder, now=self._now),
            ):
                unchanged = await self._restore(row, deadline)
        except failures.ProviderFailure as failure:
            await self._postpone(row, failure)
            raise
        except asyncio.CancelledError:
            # Somebody else can go on; if this cannot be stored, once the lock has run out.
            with contextlib.suppress(RegistryUnavailable):
                await self._unlock(row, pause=LATE_SECONDS)
            raise
        self._tries.pop(row.agent_id, None)
        await self._store.write(agents.note_restored, row, now=self._now())
        return unchanged

    @contextlib.contextmanager
    def _noting_undeleted(self, row: VoiceRow) -> Iterator[None]:
        """Notes whether ElevenLabs deletes voices at present, by the one that the block deletes."""
        try:
            yield
        except failures.ProviderFailure:
            self._undeleted = (row, asyncio.get_running_loop().time() + UNDELETED_SECONDS)
            raise
        self._undeleted, self._deleted_at = None, asyncio.get_running_loop().time()

    @contextlib.contextmanager
    def _one_urgent(self, line: list[Urgency]) -> Iterator[None]:
        """A block of work that is urgent once all such blocks in the line have ended that began before it."""
        mine = Urgency(call=urgency().call)
        line.append(mine)
        line[0].hurry()
        try:
            with with_urgency(mine):
                yield
        finally:
            line.remove(mine)
            if line:
                line[0].hurry()

    async def _unlock(self, row: ClaimedAgent, *, pause: float) -> None:
        """Lets an agent go that is not put back yet; it may be tried again after the pause."""
        until = self._now() + pause
        await self._store.write(
            agents.unlock, row.agent_id, holder=row.holder, until=until, unanswered=row.unsure
        )

    async def _postpone(self, row: ClaimedAgent, failure: failures.ProviderFailure) -> None:
        tries = self._tries[row.agent_id] = self._tries.get(row.agent_id, 0) + 1
        asked = min(failure.retry_after or 0.0, LONGEST_ASKED_SECONDS)
        pause = max(min(pause_after(tries), LONGEST_AGENT_SECONDS), asked)
        await self._unlock(row, pause=pause)
        call = await self._store.read(calls.latest, call_id=row.call_id)
        voice = await self._store.read(voices.get, row.marker)
        ids = ids_of(call, voice) | ids_of_agent(row)
        log_postponed(
            "agent not put back yet", failure, ids, tries=tries, next_try_seconds=pause, urgent=True
        )

    async def _restore(self, row: AgentRow, deadline: float) -> str | None:
        """Gives each leaf its former value back, where our value still stands; says why where none does."""
        try:
            current = (await self._provider.read_agent(row.agent_id, deadline=deadline)).voice
        except failures.AgentNotFound:
            log.warning("agent is gone", agent_id=row.agent_id)
            return "agent_gone"
        if current is None:
            raise failures.ProtocolBroken
        changed = current.voice_id != row.before_voice_id
        ours = changed and await is_ours(self._store, current.voice_id, row)
        voice_id = row.before_voice_id if ours else None
        first_message = row.before_first_message if row.gave_message(current.first_message) else None
        if voice_id is None and first_message is None:
            untouched = current == AgentVoice(row.before_voice_id, row.before_first_message)
            reason = "nothing_to_put_back" if untouched else "changed_by_others"
            log.info("agent restored", agent_id=row.agent_id, reason=reason)
            return reason
        before = AgentVoice(voice_id, first_message)
        try:
            after, _ = await self._provider.update_agent(row.agent_id, before, deadline=deadline)
        except failures.AgentRejected:
            if voice_id is not None and first_message is not None:
                # If the voice cannot be put back, put back the greeting at least: it names the caller.
                await self._provider.update_agent(
                    row.agent_id, AgentVoice(None, first_message), deadline=deadline
                )
            raise
        if voice_id is not None and after.voice_id != voice_id and row.gave_voice(after.voice_id):
            raise failures.ProtocolBroken
        log.info("agent restored", agent_id=row.agent_id)
        return None


def log_given_up(voice_id: str | None, reason: str) -> None:
    """Logs that a voice was given up, and why: nobody uses it from now on, and it is deleted next."""
    log.info("voice given up", voice_id=voice_id, reason=reason)
