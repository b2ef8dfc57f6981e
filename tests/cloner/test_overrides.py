"""What an agent's own settings refuse to be overridden in a conversation."""

import asyncio
import time
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import failure, told

AGENT = "/v1/convai/agents/{agent_id}"
VOICE = "tts.voice_id"
GREETING = "agent.first_message"
BOTH = [GREETING, VOICE]
HANGS = {"hold": "before"}
FAILS = {"error": "internal_error"}
# With these deadlines a call waits for its agent for most of a second, or for less than a quarter of one.
PATIENT, IMPATIENT = 10.0, 0.6


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing of this is in the database."""
    return sqlite


def preparing(sample: bytes, conversation: str = "conv_1") -> pb.PrepareCallRequest:
    """A request for the demo agent, with a sample."""
    return pb.PrepareCallRequest(agent_id="agent_demo", conversation_id=conversation, sample=sample)


async def refused(
    cloner: CloningServiceStub, conversation: str = "conv_9", seconds: float = PATIENT
) -> list[str]:
    """What the demo agent refuses, as a call that is opened is told."""
    request = pb.OpenCallRequest(agent_id="agent_demo", conversation_id=conversation)
    return list((await cloner.OpenCall(request, timeout=seconds)).refused_leaves)


def switch(emulator: Emulator, *, voice: bool, greeting: bool) -> None:
    """Says which overrides the demo agent allows."""
    tree = {"agent": {"first_message": greeting}, "tts": {"voice_id": voice}}
    emulator.agents["agent_demo"]["platform_settings"] = below(tree)


def below(tree: Any) -> dict[str, Any]:
    """Settings of an agent with these under `conversation_config_override`."""
    return {"overrides": {"conversation_config_override": tree}}


def looks(emulator: Emulator) -> int:
    """How often the agent was asked for."""
    return len(emulator.requests.matching(method="GET", path=AGENT))


async def test_agent_seen_by_a_delivery(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """What a prepared call saw of its agent is told at once, and believed by calls that are opened."""
    switch(emulator, voice=False, greeting=True)
    prepared = await cloner.PrepareCall(preparing(speech), timeout=10)

    assert [[VOICE], [VOICE]] == [list(prepared.refused_leaves), await refused(cloner)]
    assert 1 == looks(emulator)


async def test_failure_tells_what_is_refused(cloner: CloningServiceStub, emulator: Emulator, silence) -> None:
    """A call that goes on without the voice is told too."""
    switch(emulator, voice=True, greeting=False)
    assert [GREETING] == await refused(cloner)
    failed = await failure(cloner.PrepareCall(preparing(silence(1.0)), timeout=10))

    info = pb.FallbackInfo()
    assert told(failed).more[0].Unpack(info)
    assert [GREETING] == list(info.refused_leaves)


async def test_agent_is_asked_once_for_many_calls(cloner: CloningServiceStub, emulator: Emulator) -> None:
    """Calls that are opened at once wait for one look at their agent."""
    switch(emulator, voice=False, greeting=False)
    emulator.faults.set(Fault(method="GET", path=AGENT, **HANGS))
    opened = asyncio.gather(*(refused(cloner, f"conv_{n}") for n in range(20)))
    await emulator.requests.wait(path=AGENT, stage="held")
    emulator.faults.release()

    assert [BOTH] * 20 == await opened
    assert 1 == looks(emulator)


async def test_agents_are_told_apart(cloner: CloningServiceStub, emulator: Emulator) -> None:
    """What one agent refuses is not said of another."""
    switch(emulator, voice=False, greeting=False)
    emulator.agents.put("agent_other", {})
    other = pb.OpenCallRequest(agent_id="agent_other", conversation_id="conv_1")

    assert BOTH == await refused(cloner)
    assert [] == list((await cloner.OpenCall(other, timeout=10)).refused_leaves)


async def test_how_long_a_look_is_believed(cloning, emulator: Emulator) -> None:
    """An agent is looked at again after so many seconds, and not before."""
    clock = Clock()
    async with cloning(now=clock, agent_check_seconds=100.0) as cloner:
        assert [] == await refused(cloner)
        switch(emulator, voice=False, greeting=True)
        clock.ahead = 80
        assert ([], 1) == (await refused(cloner), looks(emulator))
        clock.ahead = 101
        assert ([VOICE], 2) == (await refused(cloner), looks(emulator))
        assert ([VOICE], 2) == (await refused(cloner, "conv_10"), looks(emulator))


@pytest.mark.parametrize("fault", [HANGS, FAILS], ids=str)
async def test_agent_that_cannot_be_read(cloning, emulator: Emulator, fault: dict[str, Any]) -> None:
    """The first call waits a little for it and the next one not at all; what was known before counts on."""
    clock = Clock()
    switch(emulator, voice=False, greeting=True)
    async with cloning(now=clock, agent_check_seconds=60.0) as cloner:
        assert [VOICE] == await refused(cloner)
        switch(emulator, voice=True, greeting=True)
        emulator.faults.set(Fault(method="GET", path=AGENT, times=None, **fault))
        clock.ahead = 61
        assert [VOICE] == await refused(cloner, "conv_10", seconds=IMPATIENT)
        took = []
        # A busy machine holds up one of these now and then.
        while len(took) < 4 and min(took, default=1.0) >= 0.6:
            began = time.monotonic()
            assert [VOICE] == await refused(cloner, f"conv_1{len(took) + 1}")
            took.append(time.monotonic() - began)
        emulator.faults.clear()

    assert 0.6 > min(took)


async def test_agent_that_could_not_be_read_is_asked_again(cloning, emulator: Emulator) -> None:
    """After a failure the agent is left alone for 5 s, and then looked at again."""
    clock = Clock()
    async with cloning(now=clock, provider_attempts=1) as cloner:
        emulator.faults.set(Fault(method="GET", path=AGENT, **FAILS))
        switch(emulator, voice=False, greeting=False)
        assert ([], 1) == (await refused(cloner), looks(emulator))
        clock.ahead = 3
        assert ([], 1) == (await refused(cloner), looks(emulator))
        clock.ahead = 6
        assert (BOTH, 2) == (await refused(cloner), looks(emulator))


async def test_agent_that_answers_late(cloner: CloningServiceStub, emulator: Emulator) -> None:
    """A look that no call waits for any more is still believed once it is answered."""
    switch(emulator, voice=False, greeting=False)
    emulator.faults.set(Fault(method="GET", path=AGENT, **HANGS))
    assert [] == await refused(cloner, seconds=IMPATIENT)

    await emulator.requests.wait(path=AGENT, stage="held")
    emulator.faults.release()
    async with asyncio.timeout(4):  # less than the time after which the agent would be asked again
        while BOTH != await refused(cloner):
            await asyncio.sleep(0.01)

    assert 1 == looks(emulator)


async def test_agent_that_does_not_exist(cloner: CloningServiceStub) -> None:
    """Of an agent that nobody knows nothing is refused, and the call is opened."""
    request = pb.OpenCallRequest(agent_id="agent_nowhere", conversation_id="conv_1")
    opened = await cloner.OpenCall(request, timeout=10)

    assert ([], True) == (list(opened.refused_leaves), opened.call_id.startswith("call_"))
