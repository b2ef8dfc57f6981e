"""Traces of what is done for a call elsewhere, or after it."""

import asyncio
from typing import Any

import pytest
import structlog
from opentelemetry.trace import StatusCode
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from telemetry.logs import add_keys
from tests.cloner.clock import Clock
from tests.kit.failures import failure
from tests.kit.provider import spoken
from tests.kit.requests import CLONING, call, request

CREATE = "/v1/voices/add"
PREPARE, COMPLETE = (f"precall.v1.CloningService/{name}" for name in ("PrepareCall", "CompleteCall"))
AGENT, CONVERSATION, CALL = "gen_ai.agent.id", "gen_ai.conversation.id", "precall.call.id"


async def test_another_process_clones(cloning: Any, emulator: Emulator, spans: Any, speech: bytes) -> None:
    """Whoever waits for a clone of another process is led to the request that has it made."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as one, cloning() as other:
        first = asyncio.ensure_future(one.PrepareCall(call(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        again = call(speech)
        again.conversation_id = "conv_2"
        second = asyncio.ensure_future(other.PrepareCall(again, timeout=20))
        # It looks at the agent of its call before it waits.
        await emulator.requests.wait(2, method="GET", path="/v1/convai/agents/{agent_id}")
        emulator.faults.release()
        assert (await first).voice == (await second).voice

    of = {span.attributes[CONVERSATION]: span.context for span in spans.finished(PREPARE)}
    (wait,) = spans.finished("wait for another clone")
    assert ("conv_2", of["conv_2"].trace_id) == (wait.attributes[CONVERSATION], wait.context.trace_id)
    assert [(of["conv_1"].trace_id, of["conv_1"].span_id)] == [
        (link.context.trace_id, link.context.span_id) for link in wait.links
    ]


async def test_late_work_tells_its_call(cloning: Any, emulator: Emulator, spans: Any, speech: bytes) -> None:
    """Every span of what is done after the answer has the ids of its call."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=4))
        await emulator.requests.wait(path=CREATE, stage="held")
        await asyncio.wait({asked})
        emulator.faults.release()
        (late,) = await spans.wait("finish clone")

    assert asked.exception() is not None
    within = [span for span in spans.finished() if span.context.trace_id == late.context.trace_id]
    assert {"finish clone", "registry voices.record"} <= {span.name for span in within}
    assert {("agent_demo", "conv_1", True)} == {
        (
            span.attributes[AGENT],
            span.attributes[CONVERSATION],
            CALL in span.attributes,
        )
        for span in within
    }


async def test_work_of_a_dead_process_tells_its_call(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes
) -> None:
    """Whoever finishes a clone of a process that is taken for dead says for which call."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="after"))
    clock = Clock()
    clock.ahead = 20
    with capture_logs(processors=[structlog.contextvars.merge_contextvars, add_keys]) as lines:
        async with cloning() as cloner:
            asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
            await emulator.requests.wait(path=CREATE, stage="held")
            async with cloning(now=clock):
                (resumed,) = await spans.wait("resume clone")
            emulator.faults.release()
            await asyncio.gather(asked, return_exceptions=True)

    (found,) = [line for line in lines if line["event"] == "voice found by its marker"]
    for told in (resumed.attributes, found):
        assert ("agent_demo", "conv_1", True) == (told.get(AGENT), told.get(CONVERSATION), CALL in told)


async def test_late_work_tells_its_outcome(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes
) -> None:
    """A try after the answer ends its trace as it ends itself, and the pause before it has a span, too."""
    emulator.faults.set(
        Fault(method="POST", path=CREATE, hold="before", error="concurrent_limit_exceeded"),
        Fault(method="POST", path=CREATE, status=401),
    )
    async with cloning() as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        asked.cancel()
        await spans.wait(PREPARE)
        emulator.faults.release()
        pause, late = sorted(await spans.wait("finish clone", 2), key=lambda span: span.start_time)

    (paused,) = spans.finished("pause before next try")
    assert pause.context.span_id == paused.parent.span_id
    told = ("precall.outcome", "precall.reason", "error.type")
    assert [
        ("success", None, None, StatusCode.UNSET),
        ("error", "PROVIDER_UNAUTHORIZED", "PROVIDER_UNAUTHORIZED", StatusCode.ERROR),
    ] == [(*map(span.attributes.get, told), span.status.status_code) for span in (pause, late)]


async def test_pauses_between_looks(cloning: Any, emulator: Emulator, spans: Any, speech: bytes) -> None:
    """What a search for the voice of a create without an answer waits has spans, too."""
    emulator.faults.set(Fault(method="POST", path=CREATE, drop="before"))
    async with cloning(provider_attempts=1) as cloner:
        await failure(cloner.PrepareCall(call(speech), timeout=20))

    assert 2 == len(spans.finished("pause before next try"))


async def test_sample_that_is_refused(cloning: Any, spans: Any) -> None:
    """The span of a sample that is refused fails without the text of the exception."""
    async with cloning() as cloner:
        await failure(cloner.PrepareCall(call(b"no audio"), timeout=20))
    (inspected,) = spans.finished("inspect sample")

    assert ("SampleUnreadable", StatusCode.ERROR, None) == (
        inspected.attributes["error.type"],
        inspected.status.status_code,
        inspected.status.description,
    )


@pytest.mark.parametrize("method", CLONING)
async def test_sample_that_is_sent(cloning: Any, spans: Any, speech: bytes, method: str) -> None:
    """The span of every call that brings a sample says how large it is."""
    async with cloning() as cloner:
        await getattr(cloner, method)(request(method, speech), timeout=20)
    (span,) = spans.finished(f"precall.v1.CloningService/{method}")

    assert len(speech) == span.attributes["precall.sample.size"]


@pytest.mark.parametrize("why", ["changed_by_others", "nothing_to_put_back"])
async def test_agent_that_others_have_changed(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, why: str
) -> None:
    """The trace of work in the background says how it ended, and why nothing was to be done."""
    given = "voice_of_others", "Theirs."
    if why == "nothing_to_put_back":
        given = spoken(emulator)
    async with cloning() as cloner:
        prepared = await cloner.PrepareCall(call(speech), timeout=20)
        theirs = emulator.agents["agent_demo"]["conversation_config"]
        theirs["tts"]["voice_id"], theirs["agent"]["first_message"] = given
        await cloner.CompleteCall(
            pb.CompleteCallRequest(call_id=prepared.call_id, agent_id="agent_demo"), timeout=10
        )
        (restored,) = await spans.wait("restore agent")
        (reconciled,) = await spans.wait("reconcile")

    facts = [
        (span.attributes["precall.outcome"], span.attributes.get("precall.reason"))
        for span in (restored, reconciled)
    ]
    assert [("success", why), ("success", None)] == facts


@pytest.mark.parametrize(
    ("told", "conversation"),
    [("conv_1", "conv_1"), ("", "conv_1"), ("conv_of_elevenlabs", "conv_of_elevenlabs")],
)
async def test_the_end_tells_its_call(
    cloning: Any, spans: Any, speech: bytes, told: str, conversation: str
) -> None:
    """The event that ends a call tells which one, whatever it names it by, and keeps its own word for it."""
    async with cloning() as cloner:
        prepared = await cloner.PrepareCall(call(speech), timeout=20)
        with capture_logs(processors=[structlog.contextvars.merge_contextvars, add_keys]) as lines:
            end = pb.CompleteCallRequest(
                agent_id="agent_demo",
                conversation_id=told,
                call_id="" if told == "conv_1" else prepared.call_id,
            )
            assert (await cloner.CompleteCall(end, timeout=10)).found
    (span,) = spans.finished(COMPLETE)
    (given,) = spans.finished(PREPARE)

    ids = {
        AGENT: "agent_demo", CALL: prepared.call_id, CONVERSATION: conversation,
        "precall.origin.trace_id": f"{given.context.trace_id:032x}",
    }  # fmt: skip
    assert ids.items() <= span.attributes.items()
    (ended,), (answered,) = (
        [line for line in lines if line["event"] == event] for event in ("call ended", "request answered")
    )
    assert (ids | {CONVERSATION: "conv_1"}).items() <= ended.items()
    assert ids.items() <= answered.items()


async def test_the_end_of_an_unknown_call_tells_its_agent(cloning: Any, spans: Any) -> None:
    """An event about a call that nobody asked about is found by its agent as well."""
    async with cloning() as cloner:
        end = pb.CompleteCallRequest(agent_id="agent_demo", conversation_id="conv_9")
        assert not (await cloner.CompleteCall(end, timeout=10)).found

    (span,), (stored,) = (spans.finished(name) for name in (COMPLETE, "registry calls.complete"))
    assert [("agent_demo", "conv_9")] * 2 == [
        (one.attributes[AGENT], one.attributes[CONVERSATION]) for one in (span, stored)
    ]
