"""Work that is postponed: when it is tried again, and the ids to find it by in traces and logs.

Log and span say the same.
"""

import logging
from typing import Any

import structlog
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import StatusCode, get_current_span

from cloner.provider.failures import ProviderFailure
from cloner.registry import AgentRow, CallRow, VoiceRow
from telemetry.facts import note

__all__ = ["ids_of", "ids_of_agent", "log_postponed", "pause_after"]

log = structlog.get_logger()

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
# After so many tries, about half a minute, an operator should look at it.
MANY_TRIES = 5


def pause_after(tries: int, failure: ProviderFailure | None = None) -> float:
    """How many seconds to wait after so many tries, and no less than ElevenLabs asks for with the failure."""
    asked = 0.0 if failure is None else failure.retry_after or 0.0
    return max(PAUSES[min(tries, len(PAUSES)) - 1], asked)


def ids_of(call: CallRow | None, voice: VoiceRow | None) -> dict[str, str]:
    """The ids of a call and its voice, and the traces of the requests that began and ended the call.

    For a voice without a call, the trace of the request that had it made.
    """
    ids: dict[str, str] = {}
    if voice is not None:
        ids |= {"voice_id": voice.voice_id or "", "origin_trace_id": voice.traceparent[3:35]}
    if call is not None:
        ids |= {
            "agent_id": call.agent_id,
            "call_id": call.id,
            "conversation_id": call.conversation_id,
            "origin_trace_id": call.traceparent[3:35],
            "ended_by_trace_id": call.ended_by[3:35],
        }
    return {name: value for name, value in ids.items() if value}


def ids_of_agent(row: AgentRow) -> dict[str, str]:
    """The ids of an agent that was given a voice: of the call, and of the trace of the request."""
    ids = {
        "agent_id": row.agent_id,
        "voice_id": row.voice_id,
        "call_id": row.call_id,
        "origin_trace_id": row.traceparent[3:35],
    }
    return {name: value for name, value in ids.items() if value}


def log_postponed(
    event: str,
    failure: ProviderFailure,
    ids: dict[str, str],
    *,
    next_try_seconds: float,
    tries: int | None = None,
    urgent: bool = False,
) -> None:
    """Notes in the log and the current span that something was postponed.

    If it is `urgent`, it becomes an error after several tries.
    """
    facts: dict[str, Any] = {**ids, "reason": failure.reason, "next_try_seconds": next_try_seconds}
    if failure.code is not None:
        facts["provider_code"] = failure.code
    if tries is not None:
        facts["tries"] = tries
    get_current_span().set_status(StatusCode.ERROR)
    get_current_span().set_attribute(ERROR_TYPE, failure.reason)
    note(outcome="error", **facts)
    log.log(logging.ERROR if urgent and (tries or 0) >= MANY_TRIES else logging.WARNING, event, **facts)
