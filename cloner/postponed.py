"""What could not be done yet: when it is tried again, and the ids by which its story is found.

Log and span say the same, under the names that each has for it.
"""

from typing import Any

import structlog
from opentelemetry.trace import StatusCode, get_current_span

from cloner.registry import CallRow, VoiceRow

__all__ = ["ids_of", "pause_after", "put_off"]

log = structlog.get_logger()

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
ATTRIBUTES = {
    "agent_id": "gen_ai.agent.id",
    "conversation_id": "gen_ai.conversation.id",
    "voice_id": "precall.voice.id",
    "call_id": "precall.call.id",
    "origin_trace_id": "precall.origin.trace_id",
    "tries": "precall.tries",
    "next_try_seconds": "precall.next_try_seconds",
    "reason": "error.type",
}


def pause_after(tries: int) -> float:
    """How many seconds after so many tries the next one may begin."""
    return PAUSES[min(tries, len(PAUSES)) - 1]


def ids_of(call: CallRow | None, voice: VoiceRow | None) -> dict[str, str]:
    """The ids of a call, of its voice, and of the trace of the delivery that made the voice."""
    ids: dict[str, str] = {}
    if call is not None:
        ids |= {"agent_id": call.agent_id, "call_id": call.id, "conversation_id": call.conversation_id}
    if voice is not None:
        ids |= {"voice_id": voice.voice_id or "", "origin_trace_id": voice.traceparent[3:35]}
    return {name: value for name, value in ids.items() if value}


def put_off(
    event: str, reason: str, ids: dict[str, str], *, tries: int | None = None, next_try_seconds: float
) -> None:
    """Tells log and current span that something was put off."""
    told: dict[str, Any] = {**ids, "reason": reason, "next_try_seconds": next_try_seconds}
    if tries is not None:
        told["tries"] = tries
    span = get_current_span()
    span.set_status(StatusCode.ERROR)
    span.set_attributes({ATTRIBUTES[name]: value for name, value in told.items()})
    log.warning(event, **told)
