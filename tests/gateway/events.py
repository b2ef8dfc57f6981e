"""Events after a call, in the shapes that ElevenLabs documents."""

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
from precall.v1.cloning_pb2 import CompleteCallRequest

SECRET = "test-webhook-secret-0001"
MIB = 1_048_576
PATH = "/webhook/post-call"

# Whatever of these shows up anywhere is a leak.
MARKS = ("Zyxwvut", "+31655511122", "hunter2", "Summaryword", "QUJDREVG")

TWILIO = {
    "type": "twilio", "direction": "inbound", "phone_number_id": "phnum_1", "agent_number": "+15550001111",
    "external_number": MARKS[1], "stream_sid": "MZ1", "call_sid": "CA1",
}  # fmt: skip
SIP = {
    "type": "sip_trunking", "direction": "inbound", "phone_number_id": "phnum_2", "agent_number": "+15550001111",
    "external_number": MARKS[1], "call_id": "sip-1", "sip_header_dynamic_variables": {"sip_x_name": MARKS[0]},
}  # fmt: skip
ECHOED = {
    "conversation_config_override": {
        "agent": {"first_message": f"Hallo {MARKS[0]}!", "language": None, "prompt": None},
        "tts": {"voice_id": "c38k", "stability": None},
    },
    "custom_llm_extra_body": {},
    "user_id": MARKS[0],
    "dynamic_variables": {"user_name": MARKS[0], "precall_call_id": "call_1", "system__call_sid": "CA1"},
}


def event(kind: str, data: Any, **fields: Any) -> bytes:
    """An event as ElevenLabs sends it."""
    return json.dumps({"type": kind, "event_timestamp": 1739537297, "data": data} | fields).encode()


def transcription(phone_call: Any = TWILIO, **changes: Any) -> bytes:
    """`post_call_transcription`, with all that it has."""
    data = {
        "agent_id": "agent_x", "agent_name": "Desk", "conversation_id": "conv_y", "status": "done",
        "user_id": MARKS[0], "branch_id": "agtbrch_z", "version_id": "agtvrsn_w", "environment": "production",
        "has_audio": True, "has_user_audio": True, "has_response_audio": True,
        "transcript": [
            {"role": "agent", "message": "Hi", "tool_calls": [], "tool_results": [], "feedback": None,
             "time_in_call_secs": 0, "conversation_turn_metrics": None},
            {"role": "user", "message": f"my password is {MARKS[2]}", "tool_calls": None, "tool_results": None,
             "feedback": None, "time_in_call_secs": 4, "conversation_turn_metrics": None},
        ],
        "metadata": {"start_time_unix_secs": 1739537297, "call_duration_secs": 22, "cost": 296,
                     "termination_reason": "", "phone_call": phone_call},
        "analysis": {"call_successful": "success", "transcript_summary": MARKS[3],
                     "evaluation_criteria_results": {}, "data_collection_results": {}},
        "conversation_initiation_client_data": ECHOED,
    }  # fmt: skip
    return event("post_call_transcription", data | changes)


TRACES = {
    "resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": [{"name": MARKS[2]}]}]}]
}
OTEL = event(
    "post_call_transcription_otel",
    {"conversation_id": "conv_y", "agent_id": "agent_x", "otlp_traces": TRACES},
)
FAILED_TWILIO = event(
    "call_initiation_failure",
    {"agent_id": "agent_x", "conversation_id": "conv_y", "failure_reason": "busy",
     "metadata": {"type": "twilio", "body": {"Called": MARKS[1], "CallStatus": "busy", "CallSid": "CA1"}}},
)  # fmt: skip
FAILED_SIP = event(
    "call_initiation_failure",
    {"agent_id": "agent_x", "conversation_id": "conv_y", "failure_reason": "no-answer",
     "metadata": {"type": "sip", "body": {
         "from_number": "+15550001111", "to_number": MARKS[1], "sip_status_code": 480,
         "error_reason": MARKS[3], "call_sid": "CA1", "twirp_code": "unavailable", "sip_status": "gone"}}},
)  # fmt: skip

BARE = CompleteCallRequest(conversation_id="conv_y", agent_id="agent_x")
ALL = CompleteCallRequest(conversation_id="conv_y", call_id="call_1", agent_id="agent_x", voice_id="c38k")
ENDING = {
    "transcription of a Twilio call": (transcription(), ALL),
    "transcription of a SIP call": (transcription(SIP), ALL),
    "transcription without analysis": (transcription(analysis=None, transcript=[], status="failed"), ALL),
    "transcription without an echo": (transcription(conversation_initiation_client_data=None), BARE),
    "transcription as traces": (OTEL, BARE),
    "failure with Twilio": (FAILED_TWILIO, BARE),
    "failure with SIP": (FAILED_SIP, BARE),
}


def recording(size: int, *, last: bool = False) -> Iterable[bytes]:
    """The pieces of a recording of this size, its type first or last."""
    kind = b'"type":"post_call_audio"'
    yield b"{" + (b"" if last else kind + b',"event_timestamp":1739537297,')
    yield b'"data":{"agent_id":"agent_x","conversation_id":"conv_y","full_audio":"'
    piece = MARKS[4].encode() * 8_192
    for _ in range(size // len(piece)):
        yield piece
    yield b'"}' + (b"," + kind if last else b"") + b"}"


def signature(pieces: Iterable[bytes]) -> str:
    """The header for a body that is too large to be joined."""
    stamp = str(int(time.time()))
    digest = hmac.new(SECRET.encode(), f"{stamp}.".encode(), hashlib.sha256)
    for piece in pieces:
        digest.update(piece)
    return f"t={stamp},v0={digest.hexdigest()}"


async def streamed(
    client: httpx.AsyncClient, url: str, size: int, *, last: bool = False, signed: str | None = None
) -> httpx.Response:
    """The answer to a recording that is sent in chunks, without a Content-Length."""
    header = signed or signature(recording(size, last=last))

    async def pieces() -> AsyncIterator[bytes]:
        for piece in recording(size, last=last):
            yield piece

    request = client.build_request(
        "POST", url + PATH, content=pieces(), headers={"ElevenLabs-Signature": header}, timeout=40
    )
    assert "chunked" == request.headers["Transfer-Encoding"]
    return await client.send(request)


def head(signed: str, *lines: str) -> bytes:
    """The head of an event."""
    given = [f"POST {PATH} HTTP/1.1", "Host: x", f"ElevenLabs-Signature: {signed}", *lines, "", ""]
    return "\r\n".join(given).encode()
