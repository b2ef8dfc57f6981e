"""The rows of voices and calls, as they are read, and as they are written first."""

import msgspec

from cloner.registry.agent import AgentState
from cloner.registry.reasons import LOST

__all__ = ["NOBODY", "CallRow", "NewCall", "NewVoiceRow", "Noted", "VoiceRow"]

NOBODY = "-"
"""The `stated` of a call that failed after a delivery had stated its caller."""


class VoiceRow(msgspec.Struct, frozen=True):
    """One voice, or the intent to make one."""

    marker: str
    state: str
    caller: str
    person: str
    replaces: str | None
    greeting_name: str
    voice_id: str | None
    name: str
    created_at: float
    checked_at: float
    owner: str
    alive_at: float
    tries: int
    reason: str | None
    traceparent: str
    """The span of the request that had it made."""

    consent: str
    consent_at: float | None
    client_reference: str
    given_up_by: str
    """The span of the request that gave it up."""

    @property
    def is_lost(self) -> bool:
        """Whether ElevenLabs said that there is no such voice, and nobody had given it up."""
        return self.state == "gone" and self.reason == LOST


class NewVoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A voice that is about to be made. `consent` is empty if none came with the request."""

    marker: str
    caller: str
    replaces: str | None
    number: str | None
    person: str
    greeting_name: str
    name: str
    owner: str
    traceparent: str
    consent: str
    kept_until: float
    client_reference: str = ""


class CallRow(msgspec.Struct, frozen=True):
    """One call."""

    id: str
    agent_id: str
    conversation_id: str
    caller: str
    marker: str | None
    number: str | None
    stated: str
    """The caller that a delivery has stated. Without one, `caller` is whoever the number found, or nobody."""

    begun_at: float
    ended_at: float | None
    traceparent: str
    """The span of the request that asked about it first."""

    ended_by: str
    """The span of the request that ended it."""


class NewCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is about to be noted."""

    id: str
    agent_id: str
    conversation_id: str
    caller: str
    number: str | None = None
    stated: str = ""
    """Who is calling, where a delivery says so."""

    person: str = ""
    """The same, as voices and consents have it, which stays if the delivery fails."""

    begun_at: float
    confirmed: bool = False
    """Whether ElevenLabs has used this conversation id itself, or only a delivery has."""

    traceparent: str = ""
    """The span of the request."""


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """A call in progress: its voice, ready or on its way, and what its agent was given by then.

    Of two calls that are noted at the same time, one sees the other.
    """

    call: CallRow
    voice: VoiceRow | None
    agent: AgentState
    again: bool = False
    """Whether a delivery had asked about this call before, for the same caller, and got a voice."""

    consented: bool = False
    """Whether the delivery brought a consent that was not known before."""

    shared: bool = False
    """Whether another caller's call is in progress at the agent, where that counts."""

    persons: int | None = None
    """How many persons the call or its number stands for; 2 means several, None that it was not looked up."""
