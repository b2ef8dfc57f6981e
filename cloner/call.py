"""What is known of a call at each stage: as it is told, noted, opened and prepared."""

from typing import TypeAlias

import msgspec

from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import Noted
from cloner.voices.callers import Caller, Identity
from cloner.voices.intent import Wanted
from cloner.voices.voice import Voice

__all__ = ["Begun", "Call", "DeliveryKey", "Opened", "Prepared", "agent_before"]

DeliveryKey: TypeAlias = tuple[str, str]
"""A call, and whom its delivery has stated: no delivery gets another caller's answer."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is about to start."""

    agent_id: str
    conversation_id: str
    caller: Caller


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is noted in the registry, and who is calling."""

    call: Call
    identity: Identity
    noted: Noted

    @property
    def call_id(self) -> str:
        """Our own name for the call."""
        return self.noted.call.id

    @property
    def key(self) -> DeliveryKey:
        """Deliveries under way with the same key get one answer."""
        return self.call_id, self.identity.stated

    @property
    def wanted(self) -> Wanted:
        """The voice that the call needs."""
        return Wanted(identity=self.identity, caller=self.call.caller, call_id=self.call_id)

    @property
    def agent_before(self) -> AgentVoice | None:
        """The agent's own voice and greeting, if it was given a caller's; else None."""
        return agent_before(self.noted)


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What is known for a call that came without a sample. `voice` is None where no caller was found."""

    call_id: str
    voice: Voice | None
    name: str
    first_message: str
    agent_before: AgentVoice | None
    refused_leaves: frozenset[str] | None
    """The overrides that the agent's own settings refuse; None where those were not seen."""

    persons: int | None
    """How many persons the call or its number stands for; 2 means several, None that it was not looked up."""

    agent_updated: bool
    """Whether the agent itself speaks with this voice now."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a call needs."""

    voice: Voice
    voice_reused: bool
    agent_missed: str | None
    """Why the agent was not updated, in a word; None where it was."""

    first_message: str
    call_id: str
    agent_before: AgentVoice | None
    refused_leaves: frozenset[str] | None
    """The overrides that the agent's own settings refuse; None where those were not seen."""

    @property
    def agent_updated(self) -> bool:
        """Whether the agent speaks with the voice now."""
        return self.agent_missed is None


def agent_before(noted: Noted) -> AgentVoice | None:
    """The own voice and greeting of a call's agent, if it was given a caller's; else None."""
    given = noted.agent.row
    return AgentVoice(given.before_voice_id, given.before_first_message) if given is not None else None
