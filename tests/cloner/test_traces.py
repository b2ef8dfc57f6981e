"""Traces of what is done for a call elsewhere, or after it."""

import asyncio
from typing import Any

from emulator import Emulator, Fault
from tests.cloner.test_door import call

CREATE = "/v1/voices/add"
PREPARE = "precall.v1.CloningService/PrepareCall"
CONVERSATION = "gen_ai.conversation.id"


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
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=2))
        await emulator.requests.wait(path=CREATE, stage="held")
        await asyncio.wait({asked})
        emulator.faults.release()
        (late,) = await spans.wait("finish clone")

    assert asked.exception() is not None
    within = [span for span in spans.finished() if span.context.trace_id == late.context.trace_id]
    assert {"finish clone", "registry voices.record"} <= {span.name for span in within}
    assert {("agent_demo", "conv_1", True)} == {
        (
            span.attributes["gen_ai.agent.id"],
            span.attributes[CONVERSATION],
            "precall.call.id" in span.attributes,
        )
        for span in within
    }
