"""Calls that follow each other at one agent: each gets it, though it is put back after the call before."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from opentelemetry.trace import StatusCode
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.kit.provider import AGENT, CREATE, spoken
from tests.kit.requests import call, call_of_ivan, end

MARIA = pb.Caller(name="Maria", phone_number="+31612345679")
# The first look of a call at an agent that is being put back.
LOOKED = "registry agents.state_for"


@contextmanager
def unwritable(database: str) -> Iterator[None]:
    """A registry of which no agent and no call can be written within the block."""
    if database.startswith("postgres"):
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE agents, calls IN EXCLUSIVE MODE")
            yield
        return
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def being_put_back(cloner: Any, emulator: Emulator, speech: bytes, eventually: Any) -> None:
    """A call has ended, and its agent is being put back until that is released; Maria's voice is known."""
    enrolled = pb.CloneVoiceRequest(caller=MARIA, sample=speech, consent="form 17")
    await cloner.CloneVoice(enrolled, timeout=10)
    await cloner.PrepareCall(call(speech), timeout=20)
    emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
    await end(cloner)
    await eventually(lambda: emulator.faults.held == 1)


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
        await being_put_back(cloner, emulator, speech, eventually)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=20))
        await spans.wait(LOOKED)
        emulator.faults.release()
        second = await asked
        given = spoken(emulator)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))

    assert second.agent_updated
    assert (second.voice.voice_id, second.first_message) == given
    assert before == own(second)


@pytest.mark.parametrize("seconds", [20.0, 1.6])
async def test_put_back_that_takes_long(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, eventually: Any, seconds: float
) -> None:
    """A call waits a second at most and is answered in time; the agent is left to be put back."""
    before = spoken(emulator)
    async with cloning() as cloner:
        await being_put_back(cloner, emulator, speech, eventually)
        with capture_logs() as logs:
            second = await cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=seconds)
        emulator.faults.release()
        await eventually(lambda: before == spoken(emulator))

    told = next(line for line in reversed(logs) if line["event"] == "request answered")
    assert (False, "changed") == (second.agent_updated, told["agent_not_updated"])
    assert second.voice.name.startswith("Maria")
    assert before == own(second)
    # Nothing has failed.
    assert StatusCode.UNSET == spans.one("wait for another change").status.status_code


async def test_requests_that_take_long(cloning: Any, emulator: Emulator, speech: bytes) -> None:
    """Each of several calls gets the agent: what is waited for the one before leaves time to read it anew."""
    before = spoken(emulator)
    # Each wait takes a little more than half of what a call waits: not both would fit into it.
    async with cloning(asking_seconds=3.0) as cloner:
        for number in range(3):
            enrolled = pb.CloneVoiceRequest(caller=call(b"", number).caller, sample=speech, consent="form 17")
            await cloner.CloneVoice(enrolled, timeout=10)
        emulator.faults.set(
            *(Fault(method=method, path=AGENT, delay_seconds=1.6, times=None) for method in ("GET", "PATCH"))
        )
        answers = []
        for number in range(3):
            answers.append(await cloner.PrepareCall(call(b"", number), timeout=20))
            await end(cloner, number)

    assert [True] * 3 == [answer.agent_updated for answer in answers]
    assert {before} == {own(answer) for answer in answers}


async def test_second_update_that_fails(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, eventually: Any
) -> None:
    """A repeat of the delivery tries once more, as after any update that failed."""
    async with cloning(provider_attempts=1) as cloner:
        await being_put_back(cloner, emulator, speech, eventually)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(b"", 2, caller=MARIA), timeout=20))
        await spans.wait(LOOKED)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, status=429))
        emulator.faults.release()
        answers = [await asked, await cloner.PrepareCall(call(b"", 2, caller=MARIA), timeout=20)]

    assert [False, True] == [answer.agent_updated for answer in answers]


async def test_registry_that_cannot_be_written(
    cloning: Any, emulator: Emulator, database: str, spans: Any, speech: bytes, eventually: Any
) -> None:
    """The answer carries the voice, though it cannot be written down that the agent is given it after all."""
    async with cloning() as cloner:
        await being_put_back(cloner, emulator, speech, eventually)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(b"", 2, caller=MARIA), timeout=3))
        await spans.wait(LOOKED)
        emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
        emulator.faults.release()
        await eventually(lambda: emulator.faults.held == 1)
        with unwritable(database):
            emulator.faults.release()
            answer = await asked

    assert answer.voice.name.startswith("Maria")
    assert not answer.agent_updated


async def test_given_to_another_conversation_meanwhile(
    patient: Any, emulator: Emulator, speech: bytes
) -> None:
    """An agent that got the caller's voice for another conversation, once this one was noted, is read anew."""
    before = spoken(emulator)
    emulator.agents.put("agent_other", {})
    async with patient() as cloner:
        await cloner.PrepareCall(call_of_ivan(speech, "conv_0", agent_id="agent_other"), timeout=20)
        emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
        slow = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(b"", "conv_2"), timeout=20))
        await emulator.requests.wait(path=AGENT, stage="held")
        with capture_logs() as logs:
            answers = [await cloner.PrepareCall(call_of_ivan(b"", "conv_1"), timeout=20)]
            emulator.faults.release()
            answers.append(await slow)

    assert [True, True] == [answer.agent_updated for answer in answers]
    assert {before} == {own(answer) for answer in answers}
    assert "agent left alone" not in {line["event"] for line in logs}
