"""A clone whose process is taken for dead, and its intent closed, while the process only stands still."""

import asyncio
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.provider import CREATE
from tests.kit.requests import call, end
from tests.kit.rows import values

# Longer than another process waits for a sign of life.
STILL_SECONDS = 20


async def closed_by_another(cloning: Any, database: str) -> None:
    """Another cloner takes over the only intent there is, finds no voice of it, and closes it."""
    clock = Clock()
    clock.ahead = STILL_SECONDS
    async with cloning(now=clock), asyncio.timeout(60):
        while await values(database, "SELECT state FROM voices") != [("failed",)]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_stopped_under_way(cloning: Any, emulator: Emulator, speech: bytes) -> None:
    """A cloner that stops before its clones are done says how many it leaves to another."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    with capture_logs() as lines:
        async with cloning(shutdown_grace_seconds=0.0) as cloner:
            answer = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
            await emulator.requests.wait(path=CREATE, stage="held")
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
    emulator.faults.release()

    stopped = "stopped with clones under way at the provider"
    assert [1] == [line["clones"] for line in lines if line["event"] == stopped]


async def test_clock_set_back(cloning: Any, emulator: Emulator, speech: bytes) -> None:
    """What a process left while the clock was an hour ahead is finished once it is right."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    clock = Clock()
    clock.ahead = 3_600
    async with cloning(now=clock, shutdown_grace_seconds=0.0) as cloner:
        answer = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
        await emulator.requests.wait(path=CREATE, stage="held")
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
    emulator.faults.clear()
    async with cloning() as cloner:
        assert (await cloner.PrepareCall(call(speech), timeout=30)).voice.voice_id


@pytest.mark.parametrize("agent_update", ["auto", "never"])
async def test_call_has_its_voice(
    cloning: Any, emulator: Emulator, database: str, speech: bytes, eventually: Any, agent_update: str
) -> None:
    """The call has the voice that was made for it after all, which stays as long as the call lasts."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning(voice_clone_keep_hours=0.0, agent_update=agent_update) as cloner:
        answer = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
        await emulator.requests.wait(path=CREATE)
        await closed_by_another(cloning, database)
        emulator.faults.release()
        prepared = await answer

        got = await cloner.GetCall(pb.GetCallRequest(call_id=prepared.call_id), timeout=10)
        assert prepared.voice.voice_id == got.call.voice_id
        assert [prepared.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
        await end(cloner)
        await eventually(lambda: not emulator.voices.custom)


async def test_call_that_was_answered_before(
    cloning: Any, emulator: Emulator, database: str, speech: bytes, eventually: Any
) -> None:
    """The call has the voice also where it was answered without."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=4))
        await emulator.requests.wait(path=CREATE, stage="held")
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await asked
        await closed_by_another(cloning, database)
        meanwhile = await cloner.GetVoice(pb.GetVoiceRequest(caller=call(speech).caller), timeout=10)
        assert pb.VOICE_STATE_CREATING == meanwhile.voice.state  # for it may yet turn up
        emulator.faults.release()
        await eventually(lambda: emulator.voices.custom)

        conversation = pb.GetCallRequest(agent_id="agent_demo", conversation_id="conv_1")
        (made,) = emulator.voices.custom
        async with asyncio.timeout(60):
            while made.voice_id != (await cloner.GetCall(conversation, timeout=10)).call.voice_id:
                await asyncio.sleep(0.01)
