"""Gives a voice to an agent, but never while somebody else's call there is known to be in progress.

An agent is shared by every call it takes: all callers would hear what it is given for one of them. Its own
voice and greeting are stored before it is changed, and put back by `cloner.voices.removal`.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog
from cachetools import LRUCache

from cloner.agents.agent_settings import AgentSettings
from cloner.agents.decision import Decision, Given, Wish
from cloner.agents.missed import Missed
from cloner.agents.notices import Notices
from cloner.agents.reading import Reading, intended_row
from cloner.agents.unlocking import Unlocking
from cloner.provider import failures
from cloner.provider.elevenlabs import AgentVoice, ElevenLabs
from cloner.provider.failures import ProviderFailure
from cloner.registry import (
    AgentIntended,
    AgentRow,
    AgentState,
    AgentUpdate,
    Noted,
    Obstacle,
    RegistryUnavailable,
    Store,
    agents,
    is_ours,
    was_given_up,
)
from cloner.registry.holding import renewing
from telemetry.parts import part

__all__ = ["Agents"]

log = structlog.get_logger()

# An update that begins with less time than this would end after the answer has left.
UPDATE_SECONDS = 0.5
# How often a call looks whether an agent that is being changed or put back is free.
LOOK_SECONDS = 0.05
# An update that took longer may have met the end of its voice.
LONG_SECONDS = 1.0
# How long a repeated delivery gets the same decision, without another request to ElevenLabs.
DECIDED_SECONDS = 10.0
# How many agents' own voices are cached as not ours, so that they are not looked up for each call.
OTHERS = 10_000


class Agents:
    """Reads and updates agents.

    A call counts as in progress for `presumed_seconds` after its first request, until it is reported
    as ended. `auto` updates an agent only while no other caller's call is in progress there; `always`
    and `never` do as they say. A call waits `asking_seconds` at most until nobody else is changing its agent,
    and as long until it is read anew. `now` tells the time, in Unix seconds.
    """

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        agent_settings: AgentSettings,
        *,
        mode: Literal["auto", "always", "never"],
        presumed_seconds: float,
        asking_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._agent_settings = agent_settings
        self._mode = mode
        self._presumed = presumed_seconds
        self._asking_seconds = asking_seconds
        self._now = now
        self._notices = Notices(now=now)
        self._others: LRUCache[str, bool] = LRUCache(OTHERS)
        self._decided: LRUCache[str, Decision] = LRUCache(OTHERS)
        self._unlocking = Unlocking(store, now=now)

    def others_since(self) -> float | None:
        """Since when other callers' open calls at an agent count; None in the modes that ignore them."""
        return self._now() - self._presumed if self._mode == "auto" else None

    def decided(self, noted: Noted, wanted: AgentVoice) -> Decision | None:
        """The decision on this voice and greeting for a call; None if ElevenLabs must be asked.

        An earlier decision holds for DECIDED_SECONDS, unless the agent was given something else since. While
        another caller's call is in progress at the agent, it is not updated, so ElevenLabs need not be asked.
        """
        if self._mode == "never" or noted.shared:
            return Decision(
                self._now(), wanted, Missed.NEVER if self._mode == "never" else Missed.ANOTHER_CALL
            )
        found = self._decided.get(noted.call.id)
        if found is None or found.wanted != wanted or found.until < self._now():
            return None
        given = noted.agent.row
        has = given is not None and AgentVoice(given.voice_id, given.first_message) == wanted
        return found if has or found.missed is not None else None

    async def close(self) -> None:
        """Waits until every finished update is recorded."""
        await self._unlocking.close()

    async def read(self, noted: Noted, *, deadline: float) -> Reading | None:
        """How the agent of a call speaks now; None if it cannot be read.

        Raises AgentNotFound, but no other ProviderFailure, and RegistryUnavailable.
        """
        agent_id = noted.call.agent_id
        if await self._unlocking.has_ended_since(agent_id, noted.agent.changes):
            # What was read of the registry during the lock would forbid every change.
            state = await self._store.read(agents.state, agent_id)
            noted = msgspec.structs.replace(noted, agent=state)
        try:
            agent = await self._provider.read_agent(agent_id, deadline=deadline)
        except failures.AgentNotFound:
            raise
        except ProviderFailure as failure:
            self._agent_settings.log_unread(agent_id, failure)
            return None
        self._agent_settings.saw(agent_id, agent.refused_leaves)
        if agent.voice is None:
            self._agent_settings.log_unread(agent_id, failures.ProtocolBroken())
            return None
        # Looked up here, while the caller's voice is looked for or made, so that nothing waits for it.
        ours = self._mode != "never" and await self._is_ours(agent.voice.voice_id, noted.agent)
        if ours and noted.agent.row is None:
            # It may have been given the voice for another call, since this one was noted.
            state = await self._store.read(agents.state, agent_id)
            if state.changes != noted.agent.changes:
                return await self.read(msgspec.structs.replace(noted, agent=state), deadline=deadline)
        return Reading(agent.voice, noted, ours=ours)

    def plan(self, reading: Reading | None, wish: Wish) -> AgentUpdate | Missed:
        """The update to store before the agent is changed, or the reason why it must not be changed.

        An agent must not be changed if its own voice and greeting are not known.
        """
        left = wish.deadline - asyncio.get_running_loop().time()
        if self._mode == "never":
            return Missed.NEVER
        if reading is None or left < UPDATE_SECONDS:
            return Missed.NOT_READ if reading is None else Missed.NO_TIME_LEFT
        row = intended_row(reading, wish.voice, marker=wish.marker)
        if (obstacle := self._obstacle(row, reading)) is not None:
            return obstacle
        return AgentUpdate(
            row=row,
            changes=reading.noted.agent.changes,
            caller=wish.caller,
            others_since=self.others_since(),
            holder=secrets.token_hex(8),
        )

    async def give(
        self,
        reading: Reading | None,
        wish: Wish,
        *,
        recorded: bool,
        intended: AgentIntended | None = None,
    ) -> Given | None:
        """Gives the agent voice and greeting. If it was changed since it was read, tries once more.

        None if the voice was given up since it was found: then no answer may carry it. Raises CallerForgotten
        if the caller was forgotten. A voice `recorded` a moment ago is not checked again.

        An update that was `intended` when the voice was recorded is not stored again. If an update fails, the
        reason is told, because the answer's override carries the voice. AgentRejected and AgentNotFound
        are raised, because no override helps there.
        """
        stored = intended or await self._intend(reading, wish)
        if reading is not None and not isinstance(stored, Missed) and stored.obstacle is Obstacle.CHANGES:
            reading, stored = await self._intend_anew(reading.noted, wish)
            recorded = False
        if isinstance(stored, Missed):
            gone = not recorded and await self._was_given_up(wish)
            return None if gone else Given(reading, stored)
        if stored.obstacle is Obstacle.VOICE:
            return None
        began = asyncio.get_running_loop().time()
        missed = await self._give(reading, wish, stored)
        took = asyncio.get_running_loop().time() - began
        if took > LONG_SECONDS and await self._was_given_up(wish):
            return None
        return Given(reading, missed)

    async def _was_given_up(self, wish: Wish) -> bool:
        return await was_given_up(
            self._store, wish.marker, call_id=wish.call_id, stated=wish.stated, deadline=wish.deadline
        )

    async def _intend(self, reading: Reading | None, wish: Wish) -> AgentIntended | Missed:
        planned = self.plan(reading, wish)
        if isinstance(planned, Missed):
            return planned
        at, now = planned.row.agent_id, self._now()
        obstacle = await self._store.write_at(at, agents.intend, planned, stated=wish.stated, now=now)
        return AgentIntended(planned, obstacle)

    async def _intend_anew(self, noted: Noted, wish: Wish) -> tuple[Reading | None, AgentIntended | Missed]:
        """Reads the agent once more, and stores what it is to be given.

        No failure of the registry, and no wait for it, is a reason to withhold the voice.
        """
        try:
            again = await self._read_once_free(noted, wish)
            if isinstance(again, Missed):
                return None, again
            async with asyncio.timeout_at(wish.deadline - UPDATE_SECONDS):
                return again, await self._intend(again, wish)
        except (RegistryUnavailable, TimeoutError):
            return None, Missed.CHANGED

    async def _read_once_free(self, noted: Noted, wish: Wish) -> Reading | Missed:
        """How the agent of a call speaks once nobody else is changing it, or why it is not to be changed."""
        loop, since = asyncio.get_running_loop(), self.others_since()
        agent_id, call_id = noted.call.agent_id, noted.call.id
        latest = wish.deadline - UPDATE_SECONDS
        with part("another_change"):
            try:
                async with asyncio.timeout_at(min(loop.time() + self._asking_seconds, latest)):
                    while True:
                        state = await self._store.read(
                            agents.state_for,
                            agent_id,
                            call_id=call_id,
                            caller=wish.caller,
                            others_since=since,
                        )
                        if state is None or not state.being_changed:
                            break
                        await asyncio.sleep(LOOK_SECONDS)
            except TimeoutError:
                return Missed.CHANGED
        if state is None:
            return Missed.NOT_FREE
        if not state.is_free(self._now()):
            return Missed.CHANGED
        anew = msgspec.structs.replace(noted, agent=state)
        try:
            async with asyncio.timeout_at(min(loop.time() + self._asking_seconds, latest)):
                return await self.read(anew, deadline=wish.deadline) or Missed.NOT_READ
        except TimeoutError:
            return Missed.NOT_READ

    async def _give(self, reading: Reading | None, wish: Wish, intended: AgentIntended) -> str | None:
        """Makes the stored change. None if the agent has it now, else a Missed or ElevenLabs' reason."""
        update, decided_until = intended.update, self._now() + DECIDED_SECONDS
        wanted, deadline = wish.voice, wish.deadline
        agent_id, call_id = update.row.agent_id, update.row.call_id
        if intended.obstacle is not None:
            if intended.obstacle is Obstacle.CHANGES:
                return Missed.CHANGED
            self._decided[call_id] = Decision(decided_until, wanted, Missed.NOT_FREE)
            return Missed.NOT_FREE
        late = unanswered = given = False
        try:
            if deadline - asyncio.get_running_loop().time() < UPDATE_SECONDS:
                return Missed.NO_TIME_LEFT
            has = reading is not None and reading.now == wanted
            with renewing(self._store, agent_id, holder=update.holder, now=self._now):
                failure, unanswered = (
                    (None, False) if has else await self._updated(agent_id, wanted, deadline)
                )
            given = failure is None
            if failure is not None:
                late = failure.maybe_done
                return failure.reason
            self._decided[call_id] = Decision(decided_until, wanted, None)
            log.info("agent given", agent_id=agent_id, voice_id=wanted.voice_id, call_id=call_id)
        except (failures.AgentRejected, failures.AgentNotFound) as failure:
            # An earlier try may have been done, or may be yet.
            late, unanswered = failure.maybe_done, failure.unanswered
            raise
        except asyncio.CancelledError:
            late = unanswered = True
            raise
        finally:
            self._unlocking.begin(update, late=late, given=given, unanswered=unanswered)
        return None

    def _obstacle(self, row: AgentRow, reading: Reading) -> Missed | None:
        """Why an agent with these settings may not be changed; None where it may."""
        before = reading.now
        if reading.ours and reading.noted.agent.row is None:
            # The agent's own voice is stored nowhere, so it could not be put back.
            if self._notices.due(row.agent_id, "left alone"):
                log.warning(
                    "agent left alone", agent_id=row.agent_id, voice_id=before.voice_id, reason="ours already"
                )
            return Missed.HAS_OURS
        if before.voice_id is None or before.first_message is None:
            # A missing value cannot be put back; an empty text can.
            return Missed.CANNOT_BE_PUT_BACK
        if self._mode == "auto" and not (row.before_voice_id and row.before_first_message):
            # An override cannot be empty, so other callers would hear this caller's greeting.
            return Missed.NO_GREETING
        return None

    async def _updated(
        self, agent_id: str, wanted: AgentVoice, deadline: float
    ) -> tuple[ProviderFailure | None, bool]:
        """Updates the agent. Returns the failure after which it may lack what is wanted, or None.

        Also returns whether a try got no answer.
        """
        try:
            after, unanswered = await self._provider.update_agent(agent_id, wanted, deadline=deadline)
        except (failures.AgentRejected, failures.AgentNotFound):
            raise
        except ProviderFailure as failure:
            if facts := self._notices.facts(agent_id, failure, permission="convai_write"):
                log.warning("agent not updated", **facts)
            return failure, failure.unanswered
        return None if after == wanted else failures.ProtocolBroken(), unanswered

    async def _is_ours(self, voice_id: str | None, before: AgentState) -> bool:
        """Whether we made the voice that an agent has, even if we never gave it to this agent."""
        if voice_id is None or voice_id in self._others:
            return False
        ours = await is_ours(self._store, voice_id, before.row)
        if not ours:
            self._others[voice_id] = True
        return ours
