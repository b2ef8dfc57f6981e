"""Why an agent was not given what a call wanted for it, as log and span say it."""

from enum import StrEnum

__all__ = ["Missed"]


class Missed(StrEnum):
    """Why nobody tried. Where ElevenLabs failed, it is the reason of its ProviderFailure instead."""

    NEVER = "never"
    """AGENT_UPDATE says so."""

    ANOTHER_CALL = "another_call"
    """Another caller's call is in progress at the agent."""

    NOT_FREE = "not_free"
    """Another caller's call was found only when the agent was to be changed, or this call is over."""

    CHANGED = "changed"
    """It was changed since it was read, or is being changed or put back, or an update may yet be done."""

    NOT_READ = "agent_not_read"
    NO_TIME_LEFT = "no_time_left"
    CALL_ENDED = "call_ended"
    HAS_OURS = "has_a_voice_of_ours"
    """What it had before our voice is stored nowhere."""

    CANNOT_BE_PUT_BACK = "cannot_be_put_back"
    """It has no voice or greeting at all."""

    NO_GREETING = "no_greeting_of_its_own"
    """Its voice or its greeting is empty, and an override cannot be."""
