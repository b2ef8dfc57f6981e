"""Gives a voice to an agent, but never while somebody else's call there is known to be in progress.

An agent is shared by every call it takes: what it is given for one caller, all would hear. What it
had before is written down before it is changed, and put back by `cloner.removal`.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog

from cloner import failures
from cloner.elevenlabs import AgentVoice, ElevenLabs
from cloner.overrides import Overrides
from cloner.registry import AgentRow, Noted, Store, agents

__all__ = ["Agents", "Reading"]

log = structlog.get_logger()

# What an update needs at the least: one that is begun with less would end after the answer left.
UPDATE_SECONDS = 0.5
# How much longer than its update an agent stays in our hands, where nobody knows what became of it.
AFTERMATH_SECONDS = 30.0
LATER = (failures.Busy, failures.Unavailable, failures.TimedOut, failures.ProtocolBroken)


class Reading(msgspec.Struct, frozen=True):
    """How an agent speaks, what we gave it, and how often we had changed it before it was read."""

    now: AgentVoice
    given: AgentRow | None
    turn: int


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
        overrides: Overrides,
        *,
        mode: Literal["auto", "always", "never"],
        presumed_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._overrides = overrides
        self._mode = mode
        self._presumed = presumed_seconds
        self._now = now

    async def read(self, noted: Noted, *, deadline: float) -> Reading | None:
        """How the agent of a call speaks now, or None when ElevenLabs cannot tell at the moment.

        Raises AgentNotFound, and what an operator must act on.
        """
        agent_id = noted.call.agent_id
        try:
            agent = await self._provider.read_agent(agent_id, deadline=deadline)
        except LATER as failure:
            log.warning("agent not read", reason=type(failure).__name__)
            return None
        self._overrides.saw(agent_id, agent.refused)
        return Reading(agent.voice, noted.given, noted.turn)

    async def give(
        self,
        agent_id: str,
        reading: Reading | None,
        wanted: AgentVoice,
        *,
        call_id: str,
        caller: str,
        marker: str,
        deadline: float,
    ) -> bool:
        """Whether the agent now speaks with the voice and the greeting.

        An update that fails for the moment is left out, because the answer's override carries the
        voice; AgentRejected and AgentNotFound are raised. Without knowing what was there before,
        nothing is changed.
        """
        left = deadline - asyncio.get_running_loop().time()
        if reading is None or self._mode == "never" or left < UPDATE_SECONDS:
            return False
        before = reading.now
        row = _intended(agent_id, reading, wanted, call_id=call_id, marker=marker)
        if self._mode == "auto" and not (row.before_voice_id and row.before_first_message):
            # Nothing empty can be an override: in other calls this caller's greeting would be heard.
            return False
        now, holder = self._now(), secrets.token_hex(8)
        until = now + left + AFTERMATH_SECONDS
        if not await self._store.write(
            agents.intend,
            row,
            turn=reading.turn,
            caller=caller,
            others_since=now - self._presumed if self._mode == "auto" else None,
            holder=holder,
            now=now,
            until=until,
        ):
            return False
        kept, given = 0.0, before == wanted
        try:
            if not given:
                after = await self._provider.update_agent(agent_id, wanted, deadline=deadline)
                given = after == wanted
        except LATER as failure:
            log.warning("agent not updated", reason=type(failure).__name__)
            if failure.maybe_done:
                kept = until
        except asyncio.CancelledError:
            kept = until
            raise
        finally:
            held = await asyncio.shield(self._let_go(row, holder, until=kept, given=given))
        return given and held

    async def _let_go(self, row: AgentRow, holder: str, *, until: float, given: bool) -> bool:
        """False if the hold had run out, as when the clock is set or the machine was suspended."""
        held = await self._store.write(agents.let_go, row.agent_id, holder=holder, until=until, given=given)
        if not held and (given or until):
            log.warning("agent updated too late", agent_id=row.agent_id)
            await self._store.write(agents.strayed, row)
        return held


def _intended(agent_id: str, reading: Reading, wanted: AgentVoice, *, call_id: str, marker: str) -> AgentRow:
    """What is written down before an agent is changed.

    Where a value of ours still stands, what it had before that is what it had.
    """
    now, given = reading.now, reading.given
    ours = given is not None and given.gave_voice(now.voice_id)
    greets = given is not None and given.gave_message(now.first_message)
    former = None
    if given is not None and ours and now.voice_id != wanted.voice_id:
        former = given.marker if now.voice_id == given.voice_id else given.former_marker
    return AgentRow(
        agent_id=agent_id,
        marker=marker,
        call_id=call_id,
        voice_id=wanted.voice_id or "",
        first_message=wanted.first_message or "",
        before_voice_id=given.before_voice_id if given and ours else now.voice_id,
        before_first_message=given.before_first_message if given and greets else now.first_message,
        former_marker=former,
        former_voice_id=now.voice_id if ours else None,
        former_first_message=now.first_message if greets else None,
    )
