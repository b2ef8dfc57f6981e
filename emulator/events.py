"""What the provider posts when a conversation is over, and how it signs it."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from emulator.agents import Json, merged
from emulator.conversation import Conversation

AUDIO = "post_call_audio"
CALL_SECONDS = 22
MEGABYTE = 1_000_000
ATTRIBUTE_BYTES = 4096
"""Longer attributes of a span are cut."""
BLOCK_BYTES = 49_152
"""A multiple of three, so that blocks of base64 can be joined."""

SOURCES = {"twilio": "twilio", "sip": "sip_trunk", "whatsapp": "whatsapp"}
SAID = {"agent": "agent_response", "user": "user_transcript"}
OVERRIDES = {
    "asr": None,
    "turn": None,
    "tts": {"voice_id": None, "model_id": None, "stability": None, "speed": None, "similarity_boost": None},
    "conversation": None,
    "agent": {"first_message": None, "language": None, "prompt": None},
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event as it goes over the wire; going through it twice gives the same bytes."""

    head: bytes
    recording: bytes = b""
    """A block of sound, which is repeated."""
    recording_bytes: int = 0
    tail: bytes = b""

    def __iter__(self) -> Iterator[bytes]:
        """The body, in pieces of at most 64 KiB beside the head."""
        yield self.head
        block = base64.b64encode(self.recording)
        for _ in range(self.recording_bytes // BLOCK_BYTES):
            yield block
        if rest := self.recording_bytes % BLOCK_BYTES:
            yield base64.b64encode(self.recording[:rest])
        if self.tail:
            yield self.tail


def event(
    kind: str, conversation: Conversation, agent: Json, *, stamp: int | str, echo: bool, audio_mb: float
) -> Event:
    """The event of that type; one whose shape is not documented only names agent and conversation.

    Without echo, a transcription leaves out what the conversation was started with.
    """
    ids = {"agent_id": conversation.agent_id, "conversation_id": conversation.conversation_id}
    match kind:
        case "post_call_transcription":
            data = _transcription(conversation, agent, echo=echo)
        case "post_call_transcription_otel":
            data = {**ids, "otlp_traces": _traces(conversation)}
        case "call_initiation_failure":
            data = {**ids, "failure_reason": "no-answer", "metadata": _failure(conversation)}
        case "post_call_audio":
            data = {**ids, "full_audio": ""}
        case _:
            data = ids
    body = msgspec.json.encode({"type": kind, "event_timestamp": stamp, "data": data})
    if kind != AUDIO:
        return Event(head=body)
    end = len(body) - len('"}}')
    return Event(
        head=body[:end],
        recording=b"ID3\x04" + hashlib.shake_256(ids["conversation_id"].encode()).digest(BLOCK_BYTES - 4),
        recording_bytes=round(audio_mb * MEGABYTE),
        tail=body[end:],
    )


def signature(secret: str, content: Event, *, now: int) -> str:
    """The value of `ElevenLabs-Signature`."""
    digest = hmac.new(secret.encode(), f"{now}.".encode(), hashlib.sha256)
    for piece in content:
        digest.update(piece)
    return f"t={now},v0={digest.hexdigest()}"


def _transcription(conversation: Conversation, agent: Json, *, echo: bool) -> Json:
    data = conversation.client_data or {}
    turns = _turns(conversation)
    found: Json = {
        "agent_id": conversation.agent_id,
        "agent_name": agent.get("name"),
        "conversation_id": conversation.conversation_id,
        "status": conversation.status,
        "user_id": data.get("user_id"),
        "branch_id": agent.get("branch_id"),
        "version_id": agent.get("version_id"),
        "environment": data.get("environment", "production"),
        "has_audio": bool(turns),
        "has_user_audio": bool(turns),
        "has_response_audio": bool(turns),
        "has_auxiliary_audio": False,
        "transcript": [
            {
                "role": role,
                "message": message,
                "tool_calls": [],
                "tool_results": [],
                "feedback": None,
                "time_in_call_secs": seconds,
                "conversation_turn_metrics": None,
            }
            for role, message, seconds in turns
        ],
        "metadata": _metadata(conversation),
        "analysis": _analysis(conversation),
    }
    return found | {"conversation_initiation_client_data": _echo(conversation)} if echo else found


def _turns(conversation: Conversation) -> list[tuple[str, str, int]]:
    """Who said what and when; empty for a conversation that failed."""
    if conversation.first_message is None:
        return []
    names = [value for value in conversation.dynamic_variables.values() if isinstance(value, str)]
    number = conversation.external_number
    return [
        ("agent", conversation.first_message, 0),
        ("user", f"Hi, {' and '.join(['this is me', *names])}. You can call me back on {number}.", 4),
        ("agent", f"Thank you. I have written down {number}.", 11),
    ]


def _metadata(conversation: Conversation) -> Json:
    start = int(conversation.started_at)
    return {
        "start_time_unix_secs": start,
        "accepted_time_unix_secs": start,
        "call_duration_secs": CALL_SECONDS if conversation.voice_id else 0,
        "cost": 296 if conversation.voice_id else 0,
        "termination_reason": " ".join(conversation.faults),
        "main_language": "en",
        "conversation_initiation_source": SOURCES[conversation.kind],
        "phone_call": _phone_call(conversation),
        "whatsapp": {
            "direction": conversation.direction,
            "whatsapp_phone_number_id": conversation.whatsapp_phone_number_id,
            "whatsapp_user_id": conversation.whatsapp_user_id,
        }
        if conversation.kind == "whatsapp"
        else None,
    }


def _phone_call(conversation: Conversation) -> Json | None:
    if conversation.kind == "whatsapp":
        return None
    call = {
        "direction": conversation.direction,
        "phone_number_id": "phnum_emulator",
        "agent_number": conversation.agent_number,
        "external_number": conversation.external_number,
        "call_sid": conversation.call_sid,
    }
    if conversation.kind == "twilio":
        return {"type": "twilio", **call, "stream_sid": f"MZ{conversation.call_sid.removeprefix('CA')}"}
    return {
        "type": "sip_trunking",
        **call,
        "call_id": conversation.call_id,
        "sip_header_dynamic_variables": conversation.sip_variables,
    }


def _analysis(conversation: Conversation) -> Json | None:
    if conversation.first_message is None:
        return None
    return {
        "call_successful": "success",
        "transcript_summary": f"The person left the number {conversation.external_number}.",
        "evaluation_criteria_results": {},
        "data_collection_results": {},
    }


def _echo(conversation: Conversation) -> Json:
    """What the conversation was started with: every leaf that was not overridden is null."""
    data = conversation.client_data or {}
    return {
        "conversation_config_override": merged(OVERRIDES, data.get("conversation_config_override", {})),
        "custom_llm_extra_body": data.get("custom_llm_extra_body", {}),
        "user_id": data.get("user_id"),
        "source_info": {"source": SOURCES[conversation.kind], "version": None},
        "branch_id": data.get("branch_id"),
        "environment": data.get("environment"),
        "starting_workflow_node_id": data.get("starting_workflow_node_id"),
        "dynamic_variables": conversation.dynamic_variables,
    }


def _failure(conversation: Conversation) -> Json:
    if conversation.kind == "twilio":
        body = {
            "From": conversation.caller_id,
            "To": conversation.called_number,
            "Caller": conversation.caller_id,
            "Called": conversation.called_number,
            "CallSid": conversation.call_sid,
            "CallStatus": "no-answer",
            "CallDuration": "0",
            "Direction": "outbound-api",
            "SipResponseCode": "480",
        }
        return {"type": "twilio", "body": body}
    return {
        "type": "sip",
        "body": {
            "from_number": conversation.caller_id,
            "to_number": conversation.called_number,
            "sip_status_code": 480,
            "error_reason": "Temporarily Unavailable",
            "call_sid": conversation.call_sid,
            "sip_status": "480 Temporarily Unavailable",
        },
    }


def _traces(conversation: Conversation) -> Json:
    trace_id = hashlib.sha256(conversation.conversation_id.encode()).hexdigest()[:32]
    start = int(conversation.started_at)
    resource = {
        "service.name": "elevenlabs-convai",
        "elevenlabs.conversation_id": conversation.conversation_id,
    }
    spans = [
        _span(trace_id, 1, "elevenlabs.conversation", start, {}),
        *(
            _span(trace_id, number, f"elevenlabs.recv.{SAID[role]}", start + seconds, {"message": message})
            for number, (role, message, seconds) in enumerate(_turns(conversation), start=2)
        ),
    ]
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [{"scope": {"name": "elevenlabs.convai", "version": "1.0.0"}, "spans": spans}],
            }
        ]
    }


def _span(trace_id: str, number: int, name: str, start: int, facts: dict[str, str]) -> Json:
    return {
        "traceId": trace_id,
        "spanId": f"{number:016x}",
        "parentSpanId": "" if number == 1 else f"{1:016x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": f"{start}000000000",
        "endTimeUnixNano": f"{start + 3}000000000",
        "attributes": _attributes(facts),
        "status": {"code": 0},
    }


def _attributes(facts: dict[str, str]) -> list[dict[str, Any]]:
    cut = {name: value.encode()[:ATTRIBUTE_BYTES].decode(errors="ignore") for name, value in facts.items()}
    return [{"key": name, "value": {"stringValue": value}} for name, value in cut.items()]
