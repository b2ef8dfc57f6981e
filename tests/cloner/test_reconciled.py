"""What the registry learns from ElevenLabs by itself, now and then."""

import asyncio
from typing import Any

import msgspec
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1 import error_reason_pb2
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import failure, refusal, told
from tests.kit.provider import CREATE, VOICE
from tests.kit.requests import call

SOON: dict[str, Any] = {"reconcile_seconds": 0.3, "reconcile_grace_seconds": 0.0}
LIST = "/v2/voices"
PREPARE = "precall.v1.CloningService/PrepareCall"


async def test_create_that_was_sent_twice(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """Of two voices with one marker, as a proxy makes that sends again, the one that is not in use is removed."""
    async with cloning(**SOON) as cloner:
        made = (await cloner.PrepareCall(call(speech), timeout=10)).voice.voice_id
        (voice,) = emulator.voices.custom
        emulator.voices.put(msgspec.structs.replace(voice, voice_id="twin000000000000000"))
        await eventually(lambda: len(emulator.voices.custom) == 1)

    assert [made] == [voice.voice_id for voice in emulator.voices.custom]


async def test_plan_that_was_raised(cloning, emulator: Emulator, speech: bytes, spans: Any) -> None:
    """Voices are made again before the month is over once the plan has room for them, and not before."""
    emulator.voices.monthly_limit = 0
    async with cloning(**SOON) as cloner:
        refused = told(await failure(cloner.PrepareCall(call(speech), timeout=10)))
        assert "VOICE_MONTHLY_LIMIT" == refused.reason
        asked = len(emulator.requests.matching(path="/v1/user/subscription"))
        await emulator.requests.wait(asked + 2, path="/v1/user/subscription", stage="finished")
        still = told(await failure(cloner.PrepareCall(call(speech), timeout=10)))
        emulator.voices.monthly_limit = 500
        await spans.wait("registry deployment.close_month_until", 2)
        await cloner.PrepareCall(call(speech), timeout=10)

    assert "VOICE_MONTHLY_LIMIT" == still.reason


async def test_voice_that_needs_verification_stays_refused(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """Where it could not be removed at once it is removed later, also if the list does not tell what it needs."""
    clock = Clock()
    async with cloning(now=clock, reconcile_seconds=0.3, reconcile_grace_seconds=60.0) as cloner:
        emulator.faults.set(
            Fault(method="POST", path=CREATE, requires_verification=True),
            Fault(method="DELETE", path=VOICE, status=403, body="<html>403 Forbidden</html>"),
        )
        with capture_logs() as logs:
            refused = await refusal(cloner.PrepareCall(call(speech), timeout=10))
            await eventually(lambda: [line for line in logs if line["event"] == "voice not deleted yet"])
        (voice,) = emulator.voices.custom
        listed = {
            "voice_id": voice.voice_id,
            "labels": voice.labels,
            "created_at_unix": voice.created_at_unix,
        }
        emulator.faults.set(
            Fault(
                method="GET", path=LIST, times=None, status=200,
                body={"voices": [listed | {"voice_verification": None}], "has_more": False},
            )
        )  # fmt: skip
        clock.ahead = 100
        await eventually(lambda: not emulator.voices.custom)

    assert "VOICE_NEEDS_VERIFICATION" == refused[0]


async def test_voice_of_a_dead_process_that_needs_verification(
    cloning, emulator: Emulator, speech: bytes, spans: Any
) -> None:
    """Whoever finishes its clone refuses the voice as its maker would have."""
    emulator.faults.set(Fault(method="POST", path=CREATE, requires_verification=True, hold="after"))
    clock = Clock()
    clock.ahead = 20
    async with cloning() as dead:
        asked = asyncio.ensure_future(dead.PrepareCall(call(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        async with cloning(now=clock) as cloner:
            (resumed,) = await spans.wait("resume clone")
            refused = await cloner.GetVoice(pb.GetVoiceRequest(caller=call(speech).caller), timeout=10)
        emulator.faults.release()
        await asyncio.gather(asked, return_exceptions=True)

    assert pb.VOICE_STATE_FAILED == refused.voice.state
    assert error_reason_pb2.ERROR_REASON_VOICE_NEEDS_VERIFICATION == refused.voice.failure_reason
    assert "VOICE_NEEDS_VERIFICATION" == resumed.attributes["precall.reason"]


async def test_voices_of_unknown_age(cloning, emulator: Emulator, speech: bytes, spans: Any) -> None:
    """A voice that ElevenLabs does not date is as old as its intent; one without an intent is left, and told."""
    clock = Clock()
    later = {"error": "system_busy", "headers": {"Retry-After": "120"}}
    async with cloning(
        now=clock, precall_deployment="ours", reconcile_seconds=0.3, reconcile_grace_seconds=60.0
    ) as cloner:
        emulator.faults.set(
            Fault(method="POST", path=CREATE, drop="after"),
            Fault(method="GET", path=LIST, times=None, **later),
        )
        assert "PROVIDER_UNAVAILABLE" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]
        (voice,) = emulator.voices.custom
        ours = {"voice_id": voice.voice_id, "labels": voice.labels, "created_at_unix": None}
        nobodys = ours | {"voice_id": "nobodys", "labels": {**voice.labels, "precall": "precall-ours-nobody"}}
        body = {"voices": [ours, nobodys], "has_more": False}
        emulator.faults.set(Fault(method="GET", path=LIST, times=None, status=200, body=body))
        with capture_logs() as logs:
            clock.ahead = 100
            async with asyncio.timeout(60):
                while not [line for line in logs if line["event"] == "reconciled" and line["adopted"]]:
                    await asyncio.sleep(0.01)
        known = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)

    assert (voice.voice_id, True) == (known.voice.voice_id, known.voice_reused)
    assert {"nobodys"} == {line["voice_id"] for line in logs if line["event"] == "voice of unknown age"}
    (asked, _), (adopted,) = spans.finished(PREPARE), spans.finished("adopt voice")
    ids = {"precall.voice.id": voice.voice_id, "precall.origin.trace_id": f"{asked.context.trace_id:032x}"}
    assert ids.items() <= adopted.attributes.items()
    assert [asked.context.trace_id] == [link.context.trace_id for link in adopted.links]
    assert [] == emulator.requests.matching(method="DELETE")


@pytest.mark.parametrize("lost", [2, 3])
async def test_every_voice_lost(cloning, emulator: Emulator, speech: bytes, eventually, lost: int) -> None:
    """Where not one voice is there, as with the key of another workspace, that is told; one left, and it is not."""
    clock = Clock()
    async with cloning(now=clock, reconcile_seconds=0.3, reconcile_grace_seconds=60.0) as cloner:
        for number in range(3):
            await cloner.CloneVoice(
                pb.CloneVoiceRequest(caller=call(speech, number).caller, sample=speech), timeout=10
            )
        with capture_logs() as logs:
            for voice in emulator.voices.custom[:lost]:
                emulator.voices.remove(voice.voice_id)
            clock.ahead = 100
            await eventually(
                lambda: [line for line in logs if line["event"] == "reconciled" and line["lost"]]
            )

    every = [line["lost"] for line in logs if line["event"].startswith("every voice of the registry is lost")]
    assert ([3] if lost == 3 else []) == every


def total(logs: list[Any], what: str) -> int:
    """How many voices all reconciliations so far have had."""
    return sum(line[what] for line in logs if line["event"] == "reconciled")


async def test_lost_voices_that_are_there_again(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """After some time with the key of another workspace, whoever still wants their voice has it again.

    Those that were deleted, withdrawn, forgotten or made anew meanwhile go.
    """
    clock = Clock()
    anna, deleted, withdrawn, forgotten, anew = (call(speech, number).caller for number in range(5))
    async with cloning(now=clock, reconcile_seconds=0.3, reconcile_grace_seconds=60.0) as cloner:

        async def clone(caller: pb.Caller) -> str:
            request = pb.CloneVoiceRequest(caller=caller, sample=speech, consent="form 17")
            return (await cloner.CloneVoice(request, timeout=10)).voice.voice_id

        ids = [await clone(caller) for caller in (anna, deleted, withdrawn, forgotten, anew)]
        there = list(emulator.voices.custom)
        for voice_id in ids:
            emulator.voices.remove(voice_id)
        with capture_logs() as logs:
            clock.ahead = 100
            await eventually(lambda: 5 == total(logs, "lost"))
            await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=ids[1]), timeout=10)
            await cloner.SetConsent(
                pb.SetConsentRequest(caller=withdrawn, consent="form 18", withdrawn=True), timeout=10
            )
            await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=forgotten), timeout=10)
            second = await clone(anew)
            for voice in there:
                emulator.voices.put(voice)
            await eventually(lambda: (1, 4) == (total(logs, "adopted"), total(logs, "removed")))
        assert {ids[0], second} == {voice.voice_id for voice in emulator.voices.custom}
        known = await cloner.PrepareCall(call(b"", 0), timeout=10)
        listed = await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)

    assert (ids[0], True) == (known.voice.voice_id, known.voice_reused)
    assert {ids[0], second} == {voice.voice_id for voice in listed.voices}
