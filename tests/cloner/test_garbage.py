"""Of a call that failed nothing is left: what refers to itself would stay until somebody looks for garbage."""

import asyncio

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Emulator, Fault
from tests.kit.failures import failed, told
from tests.kit.garbage import left_in_cycles
from tests.kit.provider import AGENT, CREATE
from tests.kit.requests import call, request

pytestmark = pytest.mark.long


def create(**fault: str | int) -> Fault:
    """What every create meets."""
    return Fault(method="POST", path=CREATE, times=None, **fault)


FAULTS = {
    "SAMPLE_REJECTED": create(error="invalid_content"),
    "VOICE_SLOTS_EXHAUSTED": create(error="voice_limit_reached"),
    "VOICE_MONTHLY_LIMIT": create(error="voice_add_edit_limit_reached"),
    "PROVIDER_BUSY": create(error="rate_limit_exceeded"),
    "PROVIDER_UNAVAILABLE": create(drop="before"),
    "PROVIDER_TIMEOUT": create(hold="before"),
    "AGENT_NOT_FOUND": Fault(method="GET", path=AGENT, times=None, error="agent_not_found"),
}
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


async def reasons(cloner, asked: pb.PrepareCallRequest, *, times: int, seconds: float = 20) -> set[str]:
    """Why a delivery failed that came so often at once."""
    failures = await asyncio.gather(*(failed(cloner, "PrepareCall", asked, seconds) for _ in range(times)))
    return {told(failure).reason for failure in failures}


@on_sqlite
@pytest.mark.parametrize("reason", FAULTS)
async def test_elevenlabs(cloning, emulator: Emulator, speech: bytes, reason: str) -> None:
    """Nothing of a call is left that ElevenLabs ended, nor of one that waited for the same clone."""
    seconds = 3 if reason in {"PROVIDER_TIMEOUT", "PROVIDER_UNAVAILABLE"} else 20
    async with cloning(provider_attempts=2) as cloner:
        emulator.faults.set(FAULTS[reason])
        with left_in_cycles("cloner") as left:
            told_first = await reasons(cloner, call(speech, 1), times=2, seconds=seconds)
            told_then = await reasons(cloner, call(speech, 2), times=1, seconds=seconds)
        emulator.faults.clear()

    assert ({reason}, {reason}, []) == (told_first, told_then, left)


async def test_refused(cloning, speech: bytes) -> None:
    """Nothing is left of a call that the registry refused, whichever it is."""
    async with cloning() as cloner:
        await cloner.CloneVoice(request("CloneVoice", speech, request_id="1"), timeout=20)
        other = request("CloneVoice", speech + b"\0", request_id="1")
        with left_in_cycles("cloner") as left:
            found = [told(await failed(cloner, "CloneVoice", other)).reason for _ in range(2)]
            # The thread of the registry keeps its last transaction until the next one.
            await cloner.ListVoices(pb.ListVoicesRequest(), timeout=20)

    assert (["FIELD_INVALID"] * 2, []) == (found, left)


@on_sqlite
async def test_overloaded(cloning, emulator: Emulator, speech: bytes) -> None:
    """Nothing is left of calls that would have waited in vain."""
    async with cloning(provider_concurrency=1) as cloner:
        emulator.faults.set(create(hold="before"))
        with left_in_cycles("cloner") as left:
            each = [reasons(cloner, call(speech, number), times=1, seconds=3) for number in range(4)]
            found = await asyncio.gather(*each)
        emulator.faults.clear()

    assert (3, []) == (found.count({"RATE_LIMITED"}), left)
