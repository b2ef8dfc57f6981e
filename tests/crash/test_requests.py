"""A process that is killed in mid-work has bought nothing twice when its request comes again."""

import asyncio
import contextlib

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Fault
from tests.crash.conftest import Worlds
from tests.crash.replicas import CREATE, DEAD_SECONDS

# Starting so many processes takes a busy machine its time.
pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

CALLER = pb.Caller(name="Ivan", phone_number="+31612345678")


@pytest.mark.parametrize(("moment", "asked"), [("before", 3), ("after", 2)], ids=["not yet made", "made"])
async def test_killed(worlds: Worlds, speech: bytes, moment: str, asked: int) -> None:
    """Whether or not ElevenLabs had made the voice, the repeated request has one voice and pays for one."""
    request = pb.ReplaceVoiceRequest(caller=CALLER, sample=speech, request_id="one")
    async with worlds("world") as world, world.replicas(2, RECONCILE_SECONDS="600") as (one, other):
        first = await one.stub.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), timeout=20)
        drop = "before" if moment == "before" else None  # what is held goes on when the fault is cleared
        world.emulator.faults.set(Fault(method="POST", path=CREATE, hold=moment, drop=drop))
        asking = asyncio.ensure_future(one.stub.ReplaceVoice(request, timeout=50))
        await world.emulator.requests.wait(path=CREATE, stage="held", seconds=20)

        await one.kill()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await asking
        world.emulator.faults.clear()
        world.clock.jump(DEAD_SECONDS)
        replaced = await other.stub.ReplaceVoice(request, timeout=50)
        again = await other.stub.ReplaceVoice(request, timeout=20)

        made = {voice.voice_id for voice in world.emulator.voices.custom}

    assert first.voice.voice_id != replaced.voice.voice_id
    assert replaced == again
    assert made - {first.voice.voice_id} == {replaced.voice.voice_id}
    assert asked == len(world.emulator.requests.matching(path=CREATE))
