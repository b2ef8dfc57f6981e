"""Gives a voice to an agent, but never while somebody else's call there is known to be in progress.

An agent is shared by every call it takes: what it is given for one caller, all would hear. What it
had before is written down before it is changed, and put back by `cloner.voices.removal`.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog
from cachetools import LRUCache

from cloner.agents.agent_settings import AgentSettings
from cloner.agents.notices import Notices
from cloner.provider import failures
from cloner.provider.elevenlabs import AgentVoice, ElevenLabs
from cloner.provider.failures import ProviderFailure, Unauthorized
from cloner.registry import (
    AgentIntended,
    AgentRow,
    AgentState,
    AgentUpdate,
    Noted,
    RegistryUnavailable,
    Store,
    agents,
    is_ours,
)
from telemetry.tracing import traceparent

__all__ = ["Agents", "Reading"]

log = structlog.get_logger()

# An update that begins with less time than this would end after the answer has left.
UPDATE_SECONDS = 0.5
# How much longer than its update an agent stays locked when nobody knows whether the update was made.
AFTERMATH_SECONDS = 30.0
# Why an agent is not updated, as log and span say it.
NEVER, ANOTHER_CALL, NOT_FREE = "never", "another_call", "not_free"
NOT_READ, NO_TIME_LEFT = "agent_not_read", "no_time_left"
# How long a repeated delivery is answered as the one before, without asking ElevenLabs again.
DECIDED_SECONDS = 10.0
# Voices of agents that are known not to be ours are cached, so that they are not looked up for each call.
OTHERS = 10_000


class Reading(msgspec.Struct, frozen=True):
    """How the agent of a call speaks, and what we had given it before it was read."""

    now: AgentVoice
    noted: Noted
    ours: bool
    """Whether the voice that it has now is one that we made, given to it or not."""


class Decision(msgspec.Struct, frozen=True):
    """What an agent was to be given for a call, and why it was not (None: it was). It holds until `until`."""

    until: float
    wanted: AgentVoice
    missed: str | None


class Agents:
    """Reads and updates agents.

    A call counts as in progress for `presumed_seconds` after its first request, until it is reported
    as ended. `auto` updates an agent only while no other caller's call is in progress there; `always`
    and `never` do as they say. `now` tells the time, in Unix seconds.
    """

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        agent_settings: AgentSettings,
        *,
        mode: Literal["auto", "always", "never"],
        presumed_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._agent_settings = agent_settings
        self._mode = mode
        self._presumed = presumed_seconds
        self._now = now
        self._notices = Notices(now=now)
        self._others: LRUCache[str, bool] = LRUCache(OTHERS)
        self._decided: LRUCache[str, Decision] = LRUCache(OTHERS)
        self._unlocking: dict[str, asyncio.Task[None]] = {}

    def others_since(self) -> float | None:
        """Since when other callers' open calls at an agent count; None in the modes that ignore them."""
        return self._now() - self._presumed if self._mode == "auto" else None

    def decided(self, noted: Noted, wanted: AgentVoice) -> Decision | None:
        """The decision on this voice and greeting for a call; None where ElevenLabs must be asked.

        It need not be asked for a moment after it was, where that did not fail, nor while others' calls are
        in progress.
        """
        if self._mode == "never" or noted.shared:
            return Decision(self._now(), wanted, NEVER if self._mode == "never" else ANOTHER_CALL)
        found = self._decided.get(noted.call.id)
        if found is None or found.wanted != wanted or found.until < self._now():
            return None
        return found

    async def close(self) -> None:
        """Waits until every finished update is recorded."""
        await asyncio.gather(*self._unlocking.values())

    async def read(self, noted: Noted, *, deadline: float) -> Reading | None:
        """How the agent of a call speaks now; None if that cannot be read, and the call goes on without.

        Raises AgentNotFound, nothing else of the provider's, and RegistryUnavailable.
        """
        agent_id = noted.call.agent_id
        try:
            agent = await self._provider.read_agent(agent_id, deadline=deadline)
        except failures.AgentNotFound:
            raise
        except ProviderFailure as failure:
            self._agent_settings.missed(agent_id, failure)
            return None
        self._agent_settings.saw(agent_id, agent.refused)
        if agent.voice is None:
            self._agent_settings.missed(agent_id, failures.ProtocolBroken())
            return None
        # Asked here, while the caller's voice is looked for or made, so that nothing waits for it.
        ours = self._mode != NEVER and await self._is_ours(agent.voice.voice_id, noted.agent)
        return Reading(agent.voice, noted, ours=ours)

    async def plan(
        self,
        reading: Reading | None,
        wanted: AgentVoice,
        *,
        caller: str,
        marker: str = "",
        deadline: float,
    ) -> AgentUpdate | str:
        """What is to be stored before the agent is changed; where it may not be, why, in a word.

        It is not changed where it is not known what it had before. A voice that is yet to be made has neither
        marker nor id.
        """
        left = deadline - asyncio.get_running_loop().time()
        if self._mode == "never":
            return NEVER
        if reading is None or left < UPDATE_SECONDS:
            return NOT_READ if reading is None else NO_TIME_LEFT
        row = _intended(reading, wanted, marker=marker)
        if (obstacle := self._obstacle(row, reading)) is not None:
            return obstacle
        if (earlier := self._unlocking.get(row.agent_id)) is not None:
            await asyncio.shield(earlier)
        return AgentUpdate(
            row=row,
            changes=reading.noted.agent.changes,
            caller=caller,
            others_since=self.others_since(),
            holder=secrets.token_hex(8),
            until=self._now() + left + AFTERMATH_SECONDS,
        )

    async def give(
        self,
        reading: Reading | None,
        wanted: AgentVoice,
        *,
        caller: str,
        marker: str,
        deadline: float,
        intended: AgentIntended | None = None,
    ) -> str | None:
        """Gives the agent voice and greeting; None if it has them, else why it does not, in a word.

        What was `intended` when the voice was recorded is not stored again. An update that fails is only
        reported, because the answer's override carries the voice. AgentRejected and AgentNotFound are raised,
        because no override helps there.
        """
        if intended is None:
            planned = await self.plan(reading, wanted, caller=caller, marker=marker, deadline=deadline)
            if isinstance(planned, str):
                return planned
            may = await self._store.write(agents.intend, planned, now=self._now())
            intended = AgentIntended(planned, may)
        update, decided_until = intended.update, self._now() + DECIDED_SECONDS
        agent_id, call_id = update.row.agent_id, update.row.call_id
        if not intended.may:
            self._decided[call_id] = Decision(decided_until, wanted, NOT_FREE)
            return NOT_FREE
        kept, given = 0.0, False
        try:
            if deadline - asyncio.get_running_loop().time() < UPDATE_SECONDS:
                return NO_TIME_LEFT
            has = reading is not None and reading.now == wanted
            failure = None if has else await self._updated(agent_id, wanted, deadline)
            given = failure is None
            if failure is not None:
                kept = update.until if failure.maybe_done else 0.0
                return failure.reason
            self._decided[call_id] = Decision(decided_until, wanted, None)
            log.info("agent given", agent_id=agent_id, voice_id=wanted.voice_id, call_id=call_id)
        except asyncio.CancelledError:
            kept = update.until
            raise
        finally:
            # The answer does not wait for this; the next update of the agent does.
            unlocking = asyncio.create_task(self._unlock(update, until=kept, given=given))
            self._unlocking[agent_id] = unlocking
            unlocking.add_done_callback(lambda done: self._forget_unlocking(agent_id, done))
        return None

    def _obstacle(self, row: AgentRow, reading: Reading) -> str | None:
        """Why an agent with these settings may not be changed, in a word; None where it may."""
        before = reading.now
        if reading.ours and reading.noted.agent.row is None:
            # What it had before our voice is stored nowhere, so it cannot be put back either.
            if self._notices.due(row.agent_id, "left alone"):
                log.warning(
                    "agent left alone", agent_id=row.agent_id, voice_id=before.voice_id, reason="ours already"
                )
            return "has_a_voice_of_ours"
        if before.voice_id is None or before.first_message is None:
            # What is missing cannot be put back; an empty text can.
            return "cannot_be_put_back"
        if self._mode == "auto" and not (row.before_voice_id and row.before_first_message):
            # An override cannot be empty, so in other calls this caller's greeting would be heard.
            return "no_greeting_of_its_own"
        return None

    async def _updated(self, agent_id: str, wanted: AgentVoice, deadline: float) -> ProviderFailure | None:
        """The failure after which the agent may not have what is wanted; None if it has it."""
        try:
            after = await self._provider.update_agent(agent_id, wanted, deadline=deadline)
        except (failures.AgentRejected, failures.AgentNotFound):
            raise
        except ProviderFailure as failure:
            self._missed(agent_id, failure)
            return failure
        return None if after == wanted else failures.ProtocolBroken()

    async def _is_ours(self, voice_id: str | None, before: AgentState) -> bool:
        """Whether a voice that an agent has is one that we made, given to it or not."""
        if voice_id is None or voice_id in self._others:
            return False
        ours = await is_ours(self._store, voice_id, before.row)
        if not ours:
            self._others[voice_id] = True
        return ours

    def _missed(self, agent_id: str, failure: ProviderFailure) -> None:
        if self._notices.due(agent_id, failure.reason):
            needed = {"permission_needed": "convai_write"} if isinstance(failure, Unauthorized) else {}
            log.warning("agent not updated", agent_id=agent_id, reason=failure.reason, **needed)

    async def _unlock(self, update: AgentUpdate, *, until: float, given: bool) -> None:
        """Ends the lock of an agent. It may have expired, when the clock was set or the machine suspended."""
        row = update.row
        try:
            held = await self._store.write(
                agents.unlock, row.agent_id, holder=update.holder, until=until, given=given
            )
            if not held and (given or until):
                log.warning("agent updated too late", agent_id=row.agent_id)
                await self._store.write(agents.note_late_update, row)
        except RegistryUnavailable as failure:
            # The lock expires by itself; then an agent whose state nobody knows is put back.
            log.warning("agent still held", agent_id=row.agent_id, reason=failure.reason)

    def _forget_unlocking(self, agent_id: str, done: "asyncio.Task[None]") -> None:
        if self._unlocking.get(agent_id) is done:
            del self._unlocking[agent_id]


def _intended(reading: Reading, wanted: AgentVoice, *, marker: str) -> AgentRow:
    """The row that is stored before an agent is changed.

    Where a value of ours still stands, what the agent had before is what was stored with that value.
    """
    noted, now, ours = reading.noted, reading.now, reading.ours
    given = noted.agent.row
    greets = given is not None and given.gave_message(now.first_message)
    former = None
    if given is not None and ours and now.voice_id != wanted.voice_id:
        former = given.marker if now.voice_id == given.voice_id else given.former_marker
    return AgentRow(
        agent_id=noted.call.agent_id,
        marker=marker,
        call_id=noted.call.id,
        voice_id=wanted.voice_id or "",
        first_message=wanted.first_message or "",
        before_voice_id=given.before_voice_id if given and ours else now.voice_id,
        before_first_message=given.before_first_message if given and greets else now.first_message,
        former_marker=former,
        former_voice_id=now.voice_id if ours else None,
        former_first_message=now.first_message if greets else None,
        traceparent=traceparent(),
    )
