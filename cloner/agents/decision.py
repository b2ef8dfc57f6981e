"""What a call wishes for its agent, and what came of it, for the call and for its repeated deliveries."""

import msgspec

from cloner.agents.missed import Missed
from cloner.agents.reading import Reading
from cloner.provider.elevenlabs import AgentVoice

__all__ = ["Decision", "Given", "Wish"]


class Wish(msgspec.Struct, frozen=True):
    """What the agent of a call is to be given, for which caller, and until when, on the event loop's clock.

    `stated` is the caller that a delivery has stated. A voice that is not made yet has no marker and no id.
    """

    call_id: str
    caller: str
    stated: str | None
    voice: AgentVoice
    marker: str
    deadline: float


class Given(msgspec.Struct, frozen=True):
    """How the agent of a call spoke before the change, and why the change was not made.

    `missed` is a Missed or ElevenLabs' reason; None if the agent has what was wanted.
    """

    reading: Reading | None
    missed: str | None


class Decision(msgspec.Struct, frozen=True):
    """What an agent was to be given for a call, and why it was not given it; valid until `until`.

    The reason is None if the agent was given it.
    """

    until: float
    wanted: AgentVoice
    missed: Missed | None
