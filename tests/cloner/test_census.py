"""What is counted of the registry and of the account, so that metrics can tell it."""

from collections.abc import Callable
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.cloner.clock import StoppedClock
from tests.kit.figures import Figures
from tests.kit.provider import AGENT, SUBSCRIPTION, VOICE
from tests.kit.requests import call, end
from tests.kit.rows import until_unlocked


def equals(expected: float) -> Callable[[float | None], bool]:
    """Whether a gauge says that."""
    return lambda told: told == expected


async def test_a_call(cloning, figures: Figures, speech: bytes) -> None:
    """A voice and an open call are counted, and the call no more once it has ended."""
    async with cloning(meters=figures.meters) as cloner:
        await figures.until("precall.voices", equals(0), state="ready")
        await cloner.PrepareCall(call(speech), timeout=10)
        await figures.until("precall.voices", equals(1), state="ready")
        await figures.until("precall.calls.open", equals(1))
        await end(cloner)
        await figures.until("precall.calls.open", equals(0))

    assert 1 == figures.told("precall.voices", state="ready")
    assert 0 == figures.told("precall.voices", state="intended")


async def test_what_is_due(
    cloning, figures: Figures, emulator: Emulator, database: str, speech: bytes, eventually
) -> None:
    """An agent and a voice that cannot be cleaned up are due, for longer and longer, until they can."""
    clock = StoppedClock(1_800_000_000.0)
    kinds = {"agent": Fault(method="PATCH", path=AGENT, times=None, error="service_unavailable"),
             "voice": Fault(method="DELETE", path=VOICE, times=None, error="service_unavailable")}  # fmt: skip

    async def until_tried() -> None:
        """Waits until it is stored that both were tried, and failed, since time passed last."""
        failed = {"agent not put back yet", "voice not deleted yet"}
        await eventually(lambda: failed <= {line["event"] for line in logs})
        logs.clear()

    with capture_logs() as logs:
        async with cloning(clock, meters=figures.meters, provider_attempts=1) as cloner:
            voice = (await cloner.PrepareCall(call(speech), timeout=10)).voice
            other = await cloner.CloneVoice(
                pb.CloneVoiceRequest(
                    caller=pb.Caller(name="Anna", phone_number="+31612340099"), sample=speech
                ),
                timeout=10,
            )
            assert voice.voice_id != other.voice.voice_id
            await until_unlocked(database)
            emulator.faults.set(*kinds.values())
            await end(cloner)
            await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=other.voice.voice_id), timeout=10)
            for kind in kinds:
                await figures.until("precall.due", equals(1), kind=kind)
            assert 1 == figures.told("precall.voices", state="deleting")

            await until_tried()
            clock.now += 100
            for kind in kinds:
                await figures.until("precall.due.oldest.age", equals(100), kind=kind)
            await until_tried()
            clock.now += 500
            for kind in kinds:
                await figures.until("precall.due.oldest.age", equals(600), kind=kind)

            await until_tried()
            emulator.faults.clear()
            clock.now += 600
            for kind in kinds:
                await figures.until("precall.due", equals(0), kind=kind)
                await figures.until("precall.due.oldest.age", equals(0), kind=kind)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_account(cloning, figures: Figures, emulator: Emulator) -> None:
    """What ElevenLabs tells of the account is asked for once, and told again and again."""
    async with cloning(meters=figures.meters):
        await figures.until("precall.provider.slots.limit", equals(500))
        await figures.until("precall.provider.slots.used", equals(0))

    assert 1 == len(emulator.requests.matching(path=SUBSCRIPTION))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_account_that_is_not_told(cloning, figures: Figures, emulator: Emulator, eventually) -> None:
    """A key that may not read the account leaves its gauges out, and takes nothing else down."""
    emulator.faults.set(Fault(method="GET", path=SUBSCRIPTION, times=None, error="missing_permissions"))
    async with cloning(meters=figures.meters):
        await eventually(lambda: emulator.requests.matching(path=SUBSCRIPTION))
        await figures.until("precall.calls.open", equals(0))

    assert figures.told("precall.provider.slots.limit") is None
    assert figures.told("precall.provider.month.used") is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_reconciliation(cloning, figures: Figures, eventually: Any) -> None:
    """The age of the last comparison is that since it succeeded."""
    async with cloning(meters=figures.meters, reconcile_seconds=0.2, reconcile_grace_seconds=0.0):
        before = figures.told("precall.reconciliation.age")
        ages = [before]

        def younger() -> bool:
            ages.append(figures.told("precall.reconciliation.age"))
            return ages[-1] < ages[-2]

        await eventually(younger)
