"""Gives a voice to an agent, but never while somebody else's call there is known to be in progress.

An agent is shared by every call it takes: what it is given for one caller, all would hear.
"""

import asyncio
from typing import Literal

import msgspec
import structlog
from cachetools import TTLCache

from cloner import failures
from cloner.callers import Caller
from cloner.elevenlabs import AgentVoice, ElevenLabs

__all__ = ["Agents", "Call"]

log = structlog.get_logger()

KNOWN_AGENTS = 1_000
KNOWN_CALLS = 10_000  # at each agent
# What an update needs at the least: one that is begun with less would end after the answer left.
UPDATE_SECONDS = 0.5
LATER = (failures.Busy, failures.Unavailable, failures.TimedOut, failures.ProtocolBroken)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is about to start."""

    agent_id: str
    conversation_id: str
    caller: Caller


class Agents:
    """Reads and updates agents, and remembers the calls that this process was asked about.

    A call counts as in progress for `presumed_minutes` after its first request. `auto` updates an
    agent only while no other caller's call is in progress there; `always` and `never` do as they say.
    """

    def __init__(
        self, provider: ElevenLabs, *, mode: Literal["auto", "always", "never"], presumed_minutes: float
    ) -> None:
        self._provider = provider
        self._mode = mode
        self._presumed = presumed_minutes * 60
        self._calls: TTLCache[str, TTLCache[str, Caller]] = TTLCache(KNOWN_AGENTS, self._presumed)

    def begin(self, call: Call) -> None:
        """Notes that a call is in progress, whatever becomes of its voice."""
        calls = self._calls.get(call.agent_id) or TTLCache(KNOWN_CALLS, self._presumed)
        calls.setdefault(call.conversation_id, call.caller)
        # Stored again, so that an agent is known for as long as its newest call.
        self._calls[call.agent_id] = calls

    async def read(self, agent_id: str, *, deadline: float) -> AgentVoice | None:
        """How the agent speaks now, or None when ElevenLabs cannot tell at the moment.

        Raises AgentNotFound, and what an operator must act on.
        """
        try:
            return await self._provider.read_agent(agent_id, deadline=deadline)
        except LATER as failure:
            log.warning("agent not read", reason=type(failure).__name__)
            return None

    async def give(
        self, call: Call, before: AgentVoice | None, *, voice_id: str, first_message: str, deadline: float
    ) -> bool:
        """Whether the agent now speaks with the voice and the greeting.

        An update that fails for the moment is left out, because the answer's override carries the
        voice; AgentRejected and AgentNotFound are raised. Without knowing what was there before,
        nothing is changed.
        """
        if before is None or self._mode == "never":
            return False
        if self._mode == "auto" and self._others(call):
            return False
        if before == AgentVoice(voice_id, first_message):
            return True
        if deadline - asyncio.get_running_loop().time() < UPDATE_SECONDS:
            return False
        try:
            after = await self._provider.update_agent(
                call.agent_id, voice_id=voice_id, first_message=first_message, deadline=deadline
            )
        except LATER as failure:
            log.warning("agent not updated", reason=type(failure).__name__)
            return False
        return after == AgentVoice(voice_id, first_message)

    def _others(self, call: Call) -> bool:
        calls = self._calls.get(call.agent_id)
        return calls is not None and any(caller != call.caller for caller in calls.values())
