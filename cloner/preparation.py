"""The path of one call, from who is calling to what the call needs, and its end."""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from cloner import callers
from cloner.agents import Agents, Reading
from cloner.callers import Caller
from cloner.elevenlabs import AgentVoice
from cloner.registry import Agents as AgentRows
from cloner.registry import Calls
from cloner.voices import Voice, Voices

__all__ = ["Call", "Preparation", "Prepared"]

# How long anything waits to hear from the agent before it goes on without.
AGENT_SECONDS = 1.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is about to start."""

    agent_id: str
    conversation_id: str
    caller: Caller


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a call needs."""

    voice: Voice
    voice_reused: bool
    agent_updated: bool
    first_message: str
    call_id: str


class Preparation:
    """Prepares calls and ends them. `ended` is called after each end; `now` tells Unix seconds."""

    def __init__(
        self,
        agents: Agents,
        voices: Voices,
        calls: Calls,
        agent_rows: AgentRows,
        *,
        first_message: str,
        ended: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._agents = agents
        self._voices = voices
        self._calls = calls
        self._agent_rows = agent_rows
        self._first_message = first_message
        self._ended = ended
        self._now = now

    async def prepare(self, call: Call, sample: bytes, *, deadline: float) -> Prepared:
        """Finds or clones the caller's voice and gives it to the agent where that harms no other call.

        The agent is read while the voice is looked for, so that one that does not exist costs no
        voice. Raises what Agents and Voices raise.
        """
        call_id = _call_id(call)
        identity = await self._voices.identify(call.caller, sample, call_id=call_id)
        noted, row = await self._calls.begin(
            call_id=call_id,
            agent_id=call.agent_id,
            conversation_id=call.conversation_id,
            caller=identity.caller,
            now=self._now(),
        )
        if noted.ended_at is not None and (voice := await self._voices.formerly(noted.marker)) is not None:
            # A delivery that comes again after its call: nothing is made or changed for it any more.
            return Prepared(
                voice=voice,
                voice_reused=True,
                agent_updated=False,
                first_message=callers.greeting(self._first_message, call.caller.name),
                call_id=call_id,
            )
        reading = asyncio.create_task(self._agents.read(call.agent_id, deadline=deadline))
        # A sample that is refused ends this before anybody asks what became of the reading.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            voice, reused = await self._voices.of(
                identity, call.caller, sample, deadline=deadline, call_id=call_id, row=row,
                permit=lambda: _told(reading),
            )  # fmt: skip
            agent = await _told(reading)
        finally:
            reading.cancel()
        first_message = callers.greeting(self._first_message, call.caller.name)
        updated = await self._agents.give(
            call.agent_id,
            agent,
            AgentVoice(voice.voice_id, first_message),
            call_id=call_id,
            caller=identity.caller,
            marker=voice.marker,
            deadline=deadline,
        )
        return Prepared(
            voice=voice,
            voice_reused=reused,
            agent_updated=updated,
            first_message=first_message,
            call_id=call_id,
        )

    async def complete(self, *, conversation_id: str, call_id: str, agent_id: str, voice_id: str) -> bool:
        """Ends a call, so that its agent gets back what it had; False if no such call is known."""
        call = await self._calls.end(
            conversation_id=conversation_id,
            call_id=call_id,
            agent_id=agent_id,
            voice_id=voice_id,
            now=self._now(),
        )
        if call is None:
            return False
        await self._agent_rows.withdraw(call_id=call.id)
        self._ended()
        return True


async def _told(reading: "asyncio.Task[Reading | None]") -> Reading | None:
    """What the reading of the agent found, or None if that takes long. Raises what it raised."""
    done, _ = await asyncio.wait({reading}, timeout=AGENT_SECONDS)
    return reading.result() if done else None


def _call_id(call: Call) -> str:
    """One id for one agent and conversation, in every process and after every restart."""
    text = f"{call.agent_id}\0{call.conversation_id}"
    return f"call_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
