"""The path of one call, from who is calling to what the call needs."""

import asyncio
import hashlib

import msgspec

from cloner import callers
from cloner.agents import Agents, Call
from cloner.elevenlabs import AgentVoice
from cloner.voices import Voice, Voices

__all__ = ["Preparation", "Prepared"]

# How long anything waits to hear from the agent before it goes on without.
AGENT_SECONDS = 1.0


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a call needs."""

    voice: Voice
    voice_reused: bool
    agent_updated: bool
    first_message: str
    call_id: str


class Preparation:
    """Prepares calls with the agents and voices that it is given."""

    def __init__(self, agents: Agents, voices: Voices, *, first_message: str) -> None:
        self._agents = agents
        self._voices = voices
        self._first_message = first_message

    async def prepare(self, call: Call, sample: bytes, *, deadline: float) -> Prepared:
        """Finds or clones the caller's voice and gives it to the agent where that harms no other call.

        The agent is read while the sample is looked at, so that one that does not exist costs no
        voice. Raises what Agents and Voices raise.
        """
        self._agents.begin(call)
        reading = asyncio.create_task(self._agents.read(call.agent_id, deadline=deadline))
        # A sample that is refused ends this before anybody asks what became of the reading.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            voice, reused = await self._voices.of(
                call.caller, sample, deadline=deadline, permit=lambda: _told(reading)
            )
            before = await _told(reading)
        finally:
            reading.cancel()
        first_message = callers.greeting(self._first_message, call.caller.name)
        updated = await self._agents.give(
            call, before, voice_id=voice.voice_id, first_message=first_message, deadline=deadline
        )
        return Prepared(
            voice=voice,
            voice_reused=reused,
            agent_updated=updated,
            first_message=first_message,
            call_id=_call_id(call),
        )


async def _told(reading: "asyncio.Task[AgentVoice | None]") -> AgentVoice | None:
    """What the reading of the agent found, or None if that takes long. Raises what it raised."""
    done, _ = await asyncio.wait({reading}, timeout=AGENT_SECONDS)
    return reading.result() if done else None


def _call_id(call: Call) -> str:
    """One id for one agent and conversation, in every process and after every restart."""
    text = f"{call.agent_id}\0{call.conversation_id}"
    return f"call_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
