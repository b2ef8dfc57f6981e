"""A conversation has one caller: whoever else is stated in it is refused, or served as somebody else."""

import asyncio

import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from cloner.registry import NewCall, calls, opened
from emulator import Emulator, Fault
from tests.kit.failures import failure, told
from tests.kit.provider import AGENT, CREATE
from tests.kit.requests import call
from tests.kit.rows import until_unstated

NOW = 1_700_000_000.0
# So long a repeat waits for the first delivery. Then it fails, for want of time or of a sample to make a voice from.
SHORT_SECONDS = 0.35
ANNA = pb.Caller(name="Anna", phone_number="+31687654321")


async def under_way(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> asyncio.Future[pb.PrepareCallResponse]:
    """Ivan's delivery, whose agent is being read until that is released: no voice is meant to be made yet."""
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    ivan = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
    await emulator.requests.wait(path=AGENT, stage="held")
    return ivan


async def test_repeat_that_fails(patient, emulator: Emulator, speech: bytes) -> None:
    """While a delivery is under way, a repeat of it that fails leaves the conversation to nobody else."""
    async with patient() as cloner:
        ivan = await under_way(cloner, emulator, speech)
        repeat = await failure(cloner.PrepareCall(call(b""), timeout=SHORT_SECONDS))
        anna = await failure(cloner.PrepareCall(call(speech, caller=ANNA), timeout=20))
        emulator.faults.release()
        answer = await ivan

    assert told(repeat).reason in {"SAMPLE_REQUIRED", "DEADLINE_TOO_SHORT"}
    assert "CONVERSATION_MISMATCH" == told(anna).reason
    assert answer.agent_updated


async def test_repeat_that_fails_at_another_cloner(
    patient, emulator: Emulator, database: str, speech: bytes
) -> None:
    """Where the repeat fails at another cloner, the conversation may become another caller's, but no voice does."""
    async with patient() as one, patient() as other:
        ivan = await under_way(one, emulator, speech)
        assert "SAMPLE_REQUIRED" == told(await failure(other.PrepareCall(call(b""), timeout=10))).reason
        await until_unstated(database)
        hers = await one.PrepareCall(call(speech, caller=ANNA), timeout=20)
        emulator.faults.release()
        his = await ivan

    assert his.voice.voice_id != hers.voice.voice_id
    assert (True, "Hallo Anna, fijn dat je belt!") == (hers.voice.name.startswith("Anna"), hers.first_message)


@pytest.mark.parametrize("repeated", [False, True])
async def test_sender_that_hangs_up(
    patient, emulator: Emulator, database: str, speech: bytes, repeated: bool
) -> None:
    """Once the sender has hung up, and a repeat has failed, the conversation is nobody's again."""
    async with patient() as cloner:
        ivan = await under_way(cloner, emulator, speech)
        if repeated:
            await failure(cloner.PrepareCall(call(b""), timeout=SHORT_SECONDS))
        ivan.cancel()
        await until_unstated(database)
        emulator.faults.clear()
        hers = await cloner.PrepareCall(call(speech, caller=ANNA), timeout=20)

    assert hers.voice.name.startswith("Anna")


async def test_forgotten(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """Whoever is stated in the conversation of a caller who was forgotten does not get that caller's voice."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", times=2))
    async with cloning() as cloner:
        ivan = asyncio.ensure_future(failure(cloner.PrepareCall(call(speech), timeout=20)))
        await emulator.requests.wait(path=CREATE, stage="held")
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=call(speech).caller), timeout=10)
        anna = asyncio.ensure_future(cloner.PrepareCall(call(speech, caller=ANNA), timeout=20))
        await emulator.requests.wait(2, path=CREATE, stage="held")
        emulator.faults.release()
        hers, his = await anna, told(await ivan)
        await eventually(lambda: len(emulator.voices.custom) == 1)

    assert "CONSENT_MISSING" == his.reason
    assert [hers.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    assert hers.voice.name.startswith("Anna")


async def test_failure_of_one_takes_no_other_back(database: str) -> None:
    """Of two deliveries that fail, the slower one does not take back the caller who was stated in between."""

    def stated(name: str) -> NewCall:
        return NewCall(
            id="call", agent_id="agent", conversation_id="conv", caller=name, stated=name, begun_at=NOW
        )

    async with opened(database, name="tested", now=NOW) as store:
        assert await store.write(calls.begin, stated("ivan"))
        await store.write(calls.unstate, "call", stated="ivan")
        assert await store.write(calls.begin, stated("anna"))
        await store.write(calls.unstate, "call", stated="ivan")

        assert None is await store.write(calls.begin, stated("maria"))
