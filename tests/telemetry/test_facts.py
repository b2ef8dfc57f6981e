"""What is known of the work at hand is told on every span, and to nobody whom it does not concern."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import structlog
from opentelemetry.trace import StatusCode

from telemetry.facts import KEYS, add_log_context, log_context, note
from telemetry.parts import SCOPE, measured, part, traced_by


def test_spans_within_a_block(spans: Any) -> None:
    """A block's facts are on the span around it and on every span begun within, and on none after it."""
    provider = spans.provider("t")
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("around"):
        with log_context(agent_id="agent_1", method="/a/method"), tracer.start_as_current_span("within"):
            note(voice_id="voice_1", reason=None)
        with tracer.start_as_current_span("after"):
            pass

    told = {span.name: dict(span.attributes) for span in spans.finished()}
    assert {
        "within": {"gen_ai.agent.id": "agent_1", "precall.voice.id": "voice_1"},
        "after": {},
        "around": {"gen_ai.agent.id": "agent_1", "rpc.method": "/a/method"},
    } == told


async def test_tasks(spans: Any) -> None:
    """What a task learns, the tasks that it begins know, and nobody else."""
    tracer = spans.provider("t").get_tracer("t")

    async def work(name: str) -> None:
        with tracer.start_as_current_span(name):
            await asyncio.sleep(0)

    async def request() -> None:
        add_log_context(conversation_id="conv_1")
        await asyncio.create_task(work("mine"))

    await asyncio.create_task(request())
    await work("another's")

    assert {"mine": "conv_1", "another's": None} == {
        span.name: span.attributes.get("gen_ai.conversation.id") for span in spans.finished()
    }
    assert {} == structlog.contextvars.get_contextvars()


async def test_parts(spans: Any) -> None:
    """A part that two tasks spend at once counts once; each has its span, where the work is recorded."""
    provider = spans.provider("t")
    let_go = asyncio.Event()

    async def wait() -> None:
        with part("queue"):
            await let_go.wait()

    with traced_by(provider.get_tracer(SCOPE)), measured() as parts:
        with provider.get_tracer("t").start_as_current_span("request"):
            waiting = [asyncio.create_task(wait()) for _ in range(2)]
            await asyncio.sleep(0.2)
            so_far = parts.milliseconds["queue_ms"]
            let_go.set()
            await asyncio.gather(*waiting)
        with part("queue"):
            pass

    assert 150 < so_far <= parts.milliseconds["queue_ms"] < 2 * so_far
    assert 2 == len(spans.finished("wait for provider slot"))
    assert {f"{name}_ms" for name in ("queue", "provider", "registry")} <= KEYS.keys()


class Refused(Exception):
    """Names a reason."""

    reason = "TOO_MUCH"


@pytest.mark.parametrize(
    ("raised", "word"),
    [
        (Refused("marked secret"), "TOO_MUCH"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "marked secret"), "UnicodeDecodeError"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_part_that_fails(spans: Any, raised: BaseException, word: str) -> None:
    """Its span fails, with a word for it, and without the text of the exception."""
    provider = spans.provider("t")
    with (
        traced_by(provider.get_tracer(SCOPE)),
        provider.get_tracer("t").start_as_current_span("request"),
        suppress(type(raised)),
        part("registry", work="calls.begin"),
    ):
        raise raised
    (span,) = spans.finished("registry calls.begin")

    assert (word, StatusCode.ERROR, None, ()) == (
        span.attributes["error.type"],
        span.status.status_code,
        span.status.description,
        span.events,
    )
