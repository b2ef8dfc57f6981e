"""How the agent of a call speaks, as it was read at ElevenLabs."""

import msgspec

from cloner.provider.awaited import Awaited
from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import AgentRow, Noted
from environment.memory import unraised
from telemetry.tracing import traceparent

__all__ = ["BegunReading", "Reading", "intended_row", "result_of"]


class Reading(msgspec.Struct, frozen=True):
    """How the agent of a call speaks, and what the registry said of it before it was read."""

    now: AgentVoice
    noted: Noted
    ours: bool
    """Whether we made the voice that it has now, even if we never gave it to this agent."""


BegunReading = Awaited[Reading | Exception | None]
"""An agent that is being read, while the voice for it is looked for or made."""


async def result_of(reading: BegunReading) -> Reading | None:
    """The result of the reading, or None if it takes too long. Raises what the reading raised."""
    agent = await reading.result(until=reading.until)
    if isinstance(agent, Exception):
        raise unraised(agent)
    return agent


def intended_row(reading: Reading, wanted: AgentVoice, *, marker: str) -> AgentRow:
    """The row that is stored before an agent is changed.

    If the agent still has a value of ours, its original is the one stored with that value.
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
