"""The answer to a delivery whose call may start: with the caller's voice, or with the agent's own."""

from typing import Literal

from msgspec import Struct, field, structs
from precall.v1.cloning_pb2 import PrepareCallResponse

from gateway.conversation.overrides import NOT_ACTIVATED, VOICE, Overrides, Speech, remember
from gateway.conversation.start_data import Facts, StartData, build_start_data, nobodys_voice
from gateway.settings import Settings

__all__ = ["FallbackCall", "PreparedCall", "fallback", "prepared"]


class CallerInfo(Struct, frozen=True, kw_only=True):
    """What the sender said of the caller; null where it said nothing."""

    name: str | None = field(name="Name")
    date_of_birth: str | None = field(name="DateOfBirth")


class PreparedCall(Struct, frozen=True, kw_only=True):
    """The JSON of an answer with the caller's own voice."""

    status: Literal["success"] = "success"
    conversation_id: str
    voice_id: str
    voice_name: str
    agent_updated: bool
    caller_info: CallerInfo
    processing_time_ms: int
    voice_reused: bool
    conversation_initiation_client_data: StartData


class FallbackCall(Struct, frozen=True, kw_only=True):
    """The JSON of an answer with the agent's own voice."""

    status: Literal["fallback"] = "fallback"
    reason: str
    conversation_id: str
    voice_id: None = None
    voice_name: None = None
    agent_updated: Literal[False] = False
    caller_info: CallerInfo
    processing_time_ms: int
    voice_reused: Literal[False] = False
    conversation_initiation_client_data: StartData


def prepared(
    response: PrepareCallResponse, facts: Facts, settings: Settings, overrides: Overrides, duration_ms: int
) -> PreparedCall | FallbackCall:
    """The answer to what the cloner prepared.

    It names a voice only if that will be heard: if the agent has it, or an override carries it.
    """
    agent_id = facts.agent_id or ""
    remember(overrides, agent_id, response)
    # The id that ends the call, whoever is heard in it.
    facts = structs.replace(facts, call_id=response.call_id)
    leaves = overrides.allowed(agent_id)
    if not response.agent_updated and VOICE not in leaves:
        return fallback(NOT_ACTIVATED, facts, settings, overrides, duration_ms)
    return PreparedCall(
        conversation_id=facts.conversation_id or "",
        voice_id=response.voice.voice_id,
        voice_name=response.voice.name,
        agent_updated=response.agent_updated,
        caller_info=_info(facts),
        processing_time_ms=duration_ms,
        voice_reused=response.voice_reused,
        conversation_initiation_client_data=build_start_data(
            structs.replace(facts, voice_id=response.voice.voice_id),
            variables=settings.dynamic_variables,
            leaves=leaves,
            speech=Speech(voice_id=response.voice.voice_id, first_message=response.first_message),
        ),
    )


def fallback(
    reason: str, facts: Facts, settings: Settings, overrides: Overrides, duration_ms: int
) -> FallbackCall:
    """The answer for a call without the caller's voice, and with nobody else's."""
    return FallbackCall(
        reason=reason,
        conversation_id=facts.conversation_id or "",
        caller_info=_info(facts),
        processing_time_ms=duration_ms,
        conversation_initiation_client_data=nobodys_voice(facts, settings, overrides),
    )


def _info(facts: Facts) -> CallerInfo:
    return CallerInfo(name=facts.name, date_of_birth=facts.date_of_birth)
