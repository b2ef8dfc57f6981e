"""Calls that follow each other at one agent: each gets it, though it is put back after the call before."""

import asyncio
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.kit.provider import AGENT, CREATE, spoken
from tests.kit.requests import call, end

MARIA = pb.Caller(name="Maria", phone_number="+31612345679")
# The first look of a call at an agent that is being put back.
LOOKED = "registry agents.state_for"


def own(answer: pb.PrepareCallResponse) -> tuple[str, str]:
    """How the agent speaks by itself, as an answer tells it."""
    return answer.agent_before.voice_id, answer.agent_before.first_message


async def test_put_back_while_the_next_voice_is_made(
    cloning: Any, emulator: Emulator, speech: bytes, eventually: Any
) -> None:
    """An agent that had the caller before when it was read, and is put back since, is read anew and given."""
    before = spoken(emulator)
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=20)
        emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=20))
        await emulator.requests.wait(2, path=CREATE)
        await end(cloner)
        await eventually(lambda: before == spoken(emulator))
        emulator.faults.release()
        second = await asked
        given = spoken(emulator)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))

    assert (True, True) == (first.agent_updated, second.agent_updated)
    assert (second.voice.voice_id, second.first_message) == given
    assert before == own(first) == own(second)


async def test_while_it_is_put_back(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, eventually: Any
) -> None:
    """A call that comes while the agent is put back waits for that, and gets it."""
    before = spoken(emulator)
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=20)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        await end(cloner)
        await eventually(lambda: emulator.faults.held == 1)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=20))
        await spans.wait(LOOKED)
        emulator.faults.release()
        second = await asked
        given = spoken(emulator)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))

    assert (True, True) == (first.agent_updated, second.agent_updated)
    assert (second.voice.voice_id, second.first_message) == given
    assert before == own(second)


@pytest.mark.parametrize("seconds", [20.0, 1.2])
async def test_put_back_that_takes_long(
    cloning: Any, emulator: Emulator, speech: bytes, eventually: Any, seconds: float
) -> None:
    """A call waits a second at most and is answered in time; the agent is left to be put back."""
    before = spoken(emulator)
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech), timeout=20)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        await end(cloner)
        await eventually(lambda: emulator.faults.held == 1)
        with capture_logs() as logs:
            second = await cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=seconds)
        emulator.faults.release()
        await eventually(lambda: before == spoken(emulator))

    (told,) = [line for line in logs if line["event"] == "request answered"]
    assert (False, "changed") == (second.agent_updated, told["agent_not_updated"])
    assert second.voice.name.startswith("Maria")
    assert before == own(second)
