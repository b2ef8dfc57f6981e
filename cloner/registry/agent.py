"""What is known of one agent: what it had before, what it was given, and who is at work at it."""

from enum import Enum, auto
from typing import NamedTuple

import msgspec

__all__ = [
    "LOOKED_AT",
    "UNANSWERED",
    "AgentIntended",
    "AgentRow",
    "AgentState",
    "AgentUpdate",
    "ClaimedAgent",
    "Obstacle",
]

# Values of `holder` when no process holds the agent, but it may not be changed yet. UNANSWERED: an update, or
# one of its tries, got no answer and may still be done. LOOKED_AT: the agent was put back after such an
# update, and is checked once more.
UNANSWERED, LOOKED_AT = "unanswered", "looked at"


class AgentRow(msgspec.Struct, frozen=True):
    """An agent that was given a caller's voice, or was about to be.

    Until the change is known to have succeeded, `former_*` hold what the agent was given before that.
    """

    agent_id: str
    marker: str
    call_id: str
    voice_id: str
    first_message: str
    before_voice_id: str | None
    before_first_message: str | None
    former_marker: str | None
    former_voice_id: str | None
    former_first_message: str | None
    traceparent: str
    """The span of the request that gave it the voice."""

    def gave_voice(self, voice_id: str | None) -> bool:
        """Whether a voice that the agent has is one that we gave it."""
        return voice_id is not None and voice_id in (self.voice_id, self.former_voice_id)

    def gave_message(self, first_message: str | None) -> bool:
        """Whether a greeting that the agent has is one that we gave it."""
        return first_message is not None and first_message in (self.first_message, self.former_first_message)


class ClaimedAgent(AgentRow, frozen=True, kw_only=True):
    """An agent that is being put back by its holder."""

    holder: str
    unsure: bool
    """Whether an update that got no answer may yet be done, after the agent is put back."""


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent was given and has not given back, and how often it was changed so far."""

    row: AgentRow | None
    changes: int
    restoring: bool = False
    """Whether it is to be put back, or just is."""

    holder: str = ""
    held_until: float = 0.0

    @property
    def being_changed(self) -> bool:
        """Whether somebody is at work at the agent, unless that process died meanwhile."""
        return self.holder not in {"", UNANSWERED, LOOKED_AT}

    def is_free(self, now: float) -> bool:
        """Whether the agent may be changed, as far as that depends on earlier changes."""
        return self.holder == "" and self.held_until <= now


class AgentUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an agent, stored before it is made. It locks the agent for `holder`."""

    row: AgentRow
    """Without marker and voice id as long as the voice is not made."""

    changes: int
    """How often the agent had been changed when it was read."""

    caller: str
    others_since: float | None
    """An open call of another caller forbids the change if it began since then. If None, no call does."""

    holder: str

    @property
    def changes_unlocked(self) -> int:
        """How often the agent will have been changed when the lock has ended: beginning and end count."""
        return self.changes + 2

    def with_voice(self, marker: str, voice_id: str) -> "AgentUpdate":
        """The same, once its voice is made."""
        row = msgspec.structs.replace(self.row, marker=marker, voice_id=voice_id)
        return msgspec.structs.replace(self, row=row)


class Obstacle(Enum):
    """Why an agent may not be changed for a call."""

    CALLS = auto()
    """The call is over or another caller's, or another caller's call is in progress at the agent."""

    VOICE = auto()
    """The voice was given up since it was found."""

    CHANGES = auto()
    """The agent was changed since it was read, or is being changed: read once more, it may be free."""


class AgentIntended(NamedTuple):
    """The change that was passed to `intend`, and what forbids it, if anything does."""

    update: AgentUpdate
    obstacle: Obstacle | None
