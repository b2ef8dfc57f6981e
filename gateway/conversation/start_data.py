"""Builds the data that ElevenLabs receives at the start of a conversation.

The conversation fails if an override is not switched on at the agent, or is null or empty. So only overrides
that the operator named are sent, and only with content.
"""

import secrets
from collections.abc import Collection, Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from callerid import e164, spoken
from gateway.conversation.overrides import GREETING, VOICE, Overrides, Speech
from gateway.settings import PLACEHOLDER, RESERVED, Settings

__all__ = ["Facts", "StartData", "build_start_data", "nobodys_voice", "unknown_call"]

Value = str | int | float | bool

# A variable that is empty may fail the conversation, as a missing one does.
UNKNOWN = "unknown"

# What somebody says of the caller.
OF_THE_CALLER = frozenset({"name", "date_of_birth", "phone_number"})
# What is dropped from that: an agent reads `{{...}}` as a variable of its own.
BRACES = str.maketrans("", "", "{}")


class Facts(Struct, frozen=True, kw_only=True):
    """What the templates of dynamic variables may use. None where it is not known."""

    name: str | None
    date_of_birth: str | None
    number: str | None
    """As it was written."""

    region: str | None = None
    """The country for numbers in national form."""

    agent_id: str | None
    conversation_id: str | None
    call_id: str
    """The cloner's id of the call. Until the cloner has answered, an id that no other call has."""

    voice_id: str | None = None
    """The caller's voice, if it will be heard."""

    @property
    def phone_number(self) -> str | None:
        """The number in E.164 form, or as it was written where it has no such form. Few templates use it."""
        return None if self.number is None else e164(self.number, self.region) or self.number


class AgentOverride(Struct, frozen=True, kw_only=True):
    """Overrides of the agent's settings."""

    first_message: str


class SpeechOverride(Struct, frozen=True, kw_only=True):
    """Overrides of the agent's voice."""

    voice_id: str


class Override(Struct, frozen=True, kw_only=True):
    """Overrides for one conversation; what is not overridden is absent."""

    agent: AgentOverride | UnsetType = UNSET
    tts: SpeechOverride | UnsetType = UNSET


class StartData(Struct, frozen=True, kw_only=True):
    """`conversation_initiation_client_data` as ElevenLabs documents it."""

    type: Literal["conversation_initiation_client_data"] = "conversation_initiation_client_data"
    dynamic_variables: dict[str, Value]
    conversation_config_override: Override | UnsetType = UNSET


def build_start_data(
    facts: Facts,
    *,
    variables: Mapping[str, Value],
    leaves: Collection[str],
    speech: Speech,
) -> StartData:
    """The data for one conversation: every configured variable, and the allowed part of the speech."""
    values = {name: _filled(value, facts) for name, value in variables.items()}
    values[RESERVED] = facts.call_id
    agent: AgentOverride | UnsetType = UNSET
    tts: SpeechOverride | UnsetType = UNSET
    if speech.first_message and GREETING in leaves:
        agent = AgentOverride(first_message=speech.first_message)
    if speech.voice_id and VOICE in leaves:
        tts = SpeechOverride(voice_id=speech.voice_id)
    overrides = agent is not UNSET or tts is not UNSET
    return StartData(
        dynamic_variables=values,
        conversation_config_override=Override(agent=agent, tts=tts) if overrides else UNSET,
    )


def nobodys_voice(facts: Facts, settings: Settings, overrides: Overrides) -> StartData:
    """The data without a caller's voice: with the agent's own, even if it has a caller's just now."""
    return build_start_data(
        facts,
        variables=settings.dynamic_variables,
        leaves=overrides.allowed(facts.agent_id),
        speech=overrides.speech_before(facts.agent_id),
    )


def unknown_call() -> str:
    """A new unique id for a call to which the cloner has given none."""
    return f"call_{secrets.token_hex(12)}"


def _filled(value: Value, facts: Facts) -> Value:
    """The variable's value, its placeholders replaced; never an empty text."""
    if not isinstance(value, str):
        return value
    # In one pass, so that a caller called "{phone_number}" does not become that.
    text = PLACEHOLDER.sub(lambda found: _known(facts, found[1]) or found[2] or "", value)
    return text if spoken(text) else UNKNOWN


def _known(facts: Facts, name: str) -> str:
    """What is known of that name; empty where nothing of it can be seen."""
    text = getattr(facts, name) or ""
    # Ids are given back as they are.
    return spoken(text.translate(BRACES)) if name in OF_THE_CALLER else text
