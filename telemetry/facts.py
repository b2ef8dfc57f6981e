"""Facts about the current work, the same in every log line and every span about it.

    log_context(agent_id="x")       within a block: its lines and spans, and the current span
    add_log_context(agent_id="x")   the same, for the rest of the task, such as one request
    note(outcome="success")         only the current span; a log line gets such facts as its own arguments

Code says `agent_id`; lines and spans say `gen_ai.agent.id`. `KEYS` is the one table between the two.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as RecordedSpan
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import get_current_span

__all__ = [
    "KEYS",
    "FactsOnSpans",
    "add_log_context",
    "forget",
    "keyed",
    "log_context",
    "note",
    "remove_log_context",
]

# The keys of OpenTelemetry's semantic conventions where there is one, else our own.
KEYS: Mapping[str, str] = {
    "agent_id": "gen_ai.agent.id",
    "conversation_id": "gen_ai.conversation.id",
    "voice_id": "precall.voice.id",
    "call_id": "precall.call.id",
    "outcome": "precall.outcome",
    "reason": "precall.reason",
    "client": "precall.client",
    "origin_trace_id": "precall.origin.trace_id",
    "ended_by_trace_id": "precall.ended_by.trace_id",
    "fallback": "precall.fallback",
    "voice_reused": "precall.voice.reused",
    "agent_updated": "precall.agent.updated",
    "agent_not_updated": "precall.agent.not_updated",
    "sample_bytes": "precall.sample.size",
    "sample_format": "precall.sample.format",
    "sample_seconds": "precall.sample.duration",
    "sample_rate": "precall.sample.rate",
    "event_type": "precall.event.type",
    "limit": "precall.limit",
    "duration_ms": "precall.duration_ms",
    "receive_ms": "precall.receive_ms",
    "cloner_ms": "precall.cloner_ms",
    "queue_ms": "precall.queue_ms",
    "provider_ms": "precall.provider_ms",
    "pause_ms": "precall.pause_ms",
    "another_clone_ms": "precall.another_clone_ms",
    "another_change_ms": "precall.another_change_ms",
    "registry_ms": "precall.registry_ms",
    "audio_ms": "precall.audio_ms",
    "operation": "precall.provider.operation",
    "provider_code": "precall.provider.code",
    "queue": "precall.queue",
    "provider_status": "precall.provider.status",
    "permission": "precall.provider.permission",
    "retry_after_seconds": "precall.retry_after_seconds",
    "tries": "precall.tries",
    "next_try_seconds": "precall.next_try_seconds",
    "route": "http.route",
    "path": "url.path",
    "http_method": "http.request.method",
    "status": "http.response.status_code",
    "client_address": "client.address",
    "method": "rpc.method",
    "code": "rpc.response.status_code",
    "service": "service.name",
}


# Only facts under these keys go onto every span; the others are on the span of the call itself, in its trace.
EVERYWHERE = ("gen_ai.", "precall.")


def keyed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts under the keys that log lines and spans use."""
    return {KEYS.get(name, name): value for name, value in facts.items()}


@contextmanager
def log_context(**facts: str) -> Iterator[None]:
    """Adds the facts to every log line and every span begun within the block, and to the current span."""
    note(**facts)
    with structlog.contextvars.bound_contextvars(**facts):
        yield


def add_log_context(**facts: str) -> None:
    """Adds the facts to the current span, and to all later lines and spans of this task and its subtasks."""
    note(**facts)
    structlog.contextvars.bind_contextvars(**facts)


def remove_log_context(*names: str) -> None:
    """Keeps facts of these names from all later lines and spans of this task, since they hold no more."""
    structlog.contextvars.unbind_contextvars(*names)


def forget() -> None:
    """Drops all facts of this task, inherited ones included, because it begins other work."""
    structlog.contextvars.clear_contextvars()


def note(**facts: Any) -> None:
    """Adds the facts to the current span alone. A fact that is None is left out."""
    span = get_current_span()
    if span.is_recording():
        span.set_attributes(keyed({name: value for name, value in facts.items() if value is not None}))


class FactsOnSpans(SpanProcessor):
    """Adds to each span, as it begins, the facts about the work at hand."""

    def on_start(self, span: RecordedSpan, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK passes it
        facts = keyed(structlog.contextvars.get_contextvars())
        if facts:
            span.set_attributes({key: value for key, value in facts.items() if key.startswith(EVERYWHERE)})
