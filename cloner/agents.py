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
from cachetools import LRUCache

from cloner import failures
from cloner.elevenlabs import AgentVoice, ElevenLabs
from cloner.failures import ProviderFailure, Unauthorized
from cloner.notices import Notices
from cloner.overrides import Overrides
from cloner.registry import AgentRow, Noted, Store, agents, voices

__all__ = ["Agents", "Reading"]

log = structlog.get_logger()

# What an update needs at the least: one that is begun with less would end after the answer left.
UPDATE_SECONDS = 0.5
# How much longer than its update an agent stays in our hands, where nobody knows what became of it.
AFTERMATH_SECONDS = 30.0
# Voices of agents that are known not to be ours, so that nobody looks them up for each call.
OTHERS = 10_000


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
        self._notices = Notices(now=now)
        self._others: LRUCache[str, bool] = LRUCache(OTHERS)

    async def read(self, noted: Noted, *, deadline: float) -> Reading | None:
        """How the agent of a call speaks now, or None when nobody can tell: the call goes on without.

        Raises AgentNotFound and nothing else of the provider's.
        """
        agent_id = noted.call.agent_id
        try:
            agent = await self._provider.read_agent(agent_id, deadline=deadline)
        except failures.AgentNotFound:
            raise
        except ProviderFailure as failure:
            self._overrides.missed(agent_id, failure)
            return None
        self._overrides.saw(agent_id, agent.refused)
        if agent.voice is None:
            self._overrides.missed(agent_id, failures.ProtocolBroken())
            return None
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

        An update that fails is left out, because the answer's override carries the voice; of the
        provider's failures AgentRejected and AgentNotFound alone are raised, as no override can mend
        those. Without knowing what was there before, nothing is changed.
        """
        left = deadline - asyncio.get_running_loop().time()
        if reading is None or self._mode == "never" or left < UPDATE_SECONDS:
            return False
        before = reading.now
        ours = await self._is_ours(reading)
        if ours and reading.given is None:
            # What it had before that voice is not written down anywhere, so it cannot be put back either.
            if self._notices.due(agent_id, "left alone"):
                log.warning(
                    "agent left alone", agent_id=agent_id, voice_id=before.voice_id, reason="OursAlready"
                )
            return False
        row = _intended(agent_id, reading, wanted, ours=ours, call_id=call_id, marker=marker)
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
        kept, given = 0.0, False
        try:
            updated = await self._updated(agent_id, before, wanted, deadline)
            given, kept = bool(updated), until if updated is None else 0.0
        except asyncio.CancelledError:
            kept = until
            raise
        finally:
            held = await asyncio.shield(self._let_go(row, holder, until=kept, given=given))
        return given and held

    async def _updated(
        self, agent_id: str, before: AgentVoice, wanted: AgentVoice, deadline: float
    ) -> bool | None:
        """Whether the agent has what is wanted now; None if nobody knows."""
        if before == wanted:
            return True
        try:
            return await self._provider.update_agent(agent_id, wanted, deadline=deadline) == wanted
        except (failures.AgentRejected, failures.AgentNotFound):
            raise
        except ProviderFailure as failure:
            self._missed(agent_id, failure)
            return None if failure.maybe_done else False

    async def _is_ours(self, reading: Reading) -> bool:
        """Whether the voice that the agent has is one that we made, given to it or not."""
        voice_id = reading.now.voice_id
        if voice_id is None or voice_id in self._others:
            return False
        if reading.given is not None and reading.given.gave_voice(voice_id):
            return True
        if await self._store.read(voices.marker_of, voice_id) is not None:
            return True
        self._others[voice_id] = True
        return False

    def _missed(self, agent_id: str, failure: ProviderFailure) -> None:
        if self._notices.due(agent_id, type(failure).__name__):
            needed = {"permission_needed": "convai_write"} if isinstance(failure, Unauthorized) else {}
            log.warning("agent not updated", agent_id=agent_id, reason=type(failure).__name__, **needed)

    async def _let_go(self, row: AgentRow, holder: str, *, until: float, given: bool) -> bool:
        """False if the hold had run out, as when the clock is set or the machine was suspended."""
        held = await self._store.write(agents.let_go, row.agent_id, holder=holder, until=until, given=given)
        if not held and (given or until):
            log.warning("agent updated too late", agent_id=row.agent_id)
            await self._store.write(agents.strayed, row)
        return held


def _intended(
    agent_id: str, reading: Reading, wanted: AgentVoice, *, ours: bool, call_id: str, marker: str
) -> AgentRow:
    """What is written down before an agent is changed.

    Where a value of ours still stands, what it had before that is what it had. `ours` says so of its voice.
    """
    now, given = reading.now, reading.given
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
