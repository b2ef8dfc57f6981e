"""What callers say of their consent: kept with its time, counting once it is given, and withdrawn with the voice."""

import asyncio
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1 import error_reason_pb2

from emulator import Emulator, Fault
from tests.cloner.clock import Clock, StoppedClock
from tests.kit.failures import refusal
from tests.kit.provider import AGENT, VOICE
from tests.kit.requests import IVAN, call_of_ivan, end, request
from tests.kit.rows import rows
from tests.kit.voices import get

CREATE = "/v1/voices/add"
MARIA = pb.Caller(name="Maria", phone_number="+31612345678")
NUMBER = pb.Caller(phone_number="+31612345678")


def clone(sample: bytes, consent: str = "", **changes: Any) -> pb.CloneVoiceRequest:
    """A request for Ivan's voice ahead of time."""
    return pb.CloneVoiceRequest(**{"caller": IVAN, "sample": sample, "consent": consent, **changes})


async def given(cloner: Any, consent: str, **whose: Any) -> pb.SetConsentResponse:
    """Says that a consent was given."""
    whose = whose or {"caller": IVAN}
    return await cloner.SetConsent(pb.SetConsentRequest(consent=consent, **whose), timeout=10)


async def withdrawn(cloner: Any, consent: str = "", **whose: Any) -> pb.SetConsentResponse:
    """Says that a consent was withdrawn."""
    whose = whose or {"caller": IVAN}
    request = pb.SetConsentRequest(consent=consent, withdrawn=True, **whose)
    return await cloner.SetConsent(request, timeout=10)


def told(consents: Any) -> list[tuple[str, int, bool]]:
    """Consents, by their references, times and kinds."""
    return [(each.reference, each.time.seconds, each.withdrawn) for each in consents]


async def test_every_consent_is_kept(cloning, emulator: Emulator, speech: bytes) -> None:
    """With its time, whichever way it was told, newest first; the same one again keeps its first."""
    clock = StoppedClock(1_800_000_000.0)
    async with cloning(now=clock) as cloner:
        cloned = await cloner.CloneVoice(clone(speech, "form 1"), timeout=10)
        clock.now += 1
        await cloner.PrepareCall(call_of_ivan(consent="form 2"), timeout=10)
        clock.now += 1
        set_again = await given(cloner, "form 3")
        clock.now += 1
        await given(cloner, "form 3", voice_id=cloned.voice.voice_id)
        await cloner.PrepareCall(call_of_ivan(consent="form 2", conversation="conv_2"), timeout=10)
        clock.now += 1
        gone = await withdrawn(cloner, "letter 4", voice_id=cloned.voice.voice_id)
        again = await withdrawn(cloner, "letter 5")
        answer = await cloner.GetVoice(pb.GetVoiceRequest(voice_id=cloned.voice.voice_id), timeout=10)

    at = 1_800_000_000
    assert [("form 3", at + 2, False), ("form 2", at + 1, False), ("form 1", at, False)] == told(
        set_again.consents
    )
    assert [("letter 4", at + 4, True), ("form 3", at + 2, False)] == told(gone.consents)[:2]
    assert gone.consents == again.consents == answer.consents
    assert (1, 0, 0) == (gone.voices_deleted, gone.voices_pending, again.voices_deleted)
    assert (pb.VOICE_STATE_GONE, pb.GONE_CAUSE_CONSENT_WITHDRAWN) == (
        answer.voice.state,
        answer.voice.gone_cause,
    )
    assert not emulator.voices.custom


async def test_consent_that_was_told_before(cloning, speech: bytes) -> None:
    """Counts where one is required: for a voice to come, and for one that has none."""
    async with cloning() as cloner:
        made = await cloner.CloneVoice(clone(speech, caller=MARIA), timeout=10)
    async with cloning(require_consent=True) as cloner:
        assert "CONSENT_MISSING" == (await refusal(cloner.CloneVoice(clone(speech), timeout=10)))[0]
        await given(cloner, "form 1")
        mine = await cloner.CloneVoice(clone(speech), timeout=10)
        refused = await refusal(cloner.PrepareCall(call_of_ivan(caller=MARIA), timeout=10))
        await given(cloner, "form 2", voice_id=made.voice.voice_id)
        hers = await cloner.PrepareCall(call_of_ivan(caller=MARIA), timeout=10)

    assert ("CONSENT_MISSING", "form 1", "form 2") == (refused[0], mine.voice.consent, hers.voice.consent)
    assert mine.voice.HasField("consent_time")


async def test_given_by_a_number_alone(cloning, speech: bytes) -> None:
    """Whoever is known by the number by a consent alone is meant, unless there are several."""
    async with cloning() as cloner:
        await given(cloner, "form 1", caller=MARIA)
        await withdrawn(cloner, caller=NUMBER)
        hers = await given(cloner, "form 2", caller=NUMBER)
        made = await cloner.CloneVoice(clone(speech, caller=MARIA), timeout=10)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=NUMBER), timeout=10)
        await given(cloner, "form 3", caller=NUMBER)
        await given(cloner, "form 4", caller=MARIA)
        nobodys = await given(cloner, "form 5", caller=NUMBER)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=NUMBER), timeout=10)
        for one in (MARIA, IVAN):
            await given(cloner, "form 6", caller=one)
        several = cloner.SetConsent(pb.SetConsentRequest(caller=NUMBER, consent="form 7"), timeout=10)
        assert ("FIELD_INVALID", ["caller.name"]) == await refusal(several)

    assert ["form 2", "", "form 1"] == [each.reference for each in hers.consents]
    assert "form 2" == made.voice.consent
    assert ["form 5", "form 3"] == [each.reference for each in nobodys.consents]


@pytest.mark.parametrize("required", [False, True])
async def test_withdrawn(cloning, emulator: Emulator, speech: bytes, required: bool) -> None:
    """Nothing is made of whoever withdrew before a new consent is told; an old reference is none."""
    async with cloning(require_consent=required) as one, cloning(require_consent=required) as other:
        await one.PrepareCall(call_of_ivan(speech, consent="form 1"), timeout=10)
        assert 1 == (await withdrawn(one)).voices_deleted
        for again in (
            one.PrepareCall(call_of_ivan(speech, "conv_2"), timeout=10),
            other.PrepareCall(call_of_ivan(speech, "conv_2", consent="form 1"), timeout=10),
            other.CloneVoice(clone(speech), timeout=10),
            one.ReplaceVoice(
                pb.ReplaceVoiceRequest(caller=IVAN, sample=speech, consent="form 1"), timeout=10
            ),
        ):
            assert "CONSENT_MISSING" == (await refusal(again))[0]
        assert not emulator.voices.custom
        made = await other.PrepareCall(call_of_ivan(speech, "conv_2", consent="form 2"), timeout=10)
        assert 1 == (await withdrawn(other)).voices_deleted
        # Said by whoever keeps the records, the same form counts.
        await given(one, "form 1")
        anew = await one.CloneVoice(clone(speech), timeout=10)

    assert ("form 2", "form 1") == (made.voice.consent, anew.voice.consent)
    assert [anew.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


async def test_withdrawn_by_a_number(cloning, emulator: Emulator, speech: bytes) -> None:
    """A number alone withdraws for everybody who called from it, and gives only where it means one."""
    async with cloning() as cloner:
        assert 1 == len((await given(cloner, "form 1", caller=NUMBER)).consents)
        await cloner.CloneVoice(clone(speech), timeout=10)
        await given(cloner, "form 2", caller=NUMBER)
        one = await get(cloner, caller=IVAN)
        await cloner.CloneVoice(clone(speech, caller=MARIA), timeout=10)
        several = await refusal(
            cloner.SetConsent(pb.SetConsentRequest(caller=NUMBER, consent="form 3"), timeout=10)
        )
        answer = await withdrawn(cloner, caller=NUMBER)
        for caller in (IVAN, MARIA, NUMBER):
            again = cloner.CloneVoice(clone(speech, caller=caller), timeout=10)
            assert "CONSENT_MISSING" == (await refusal(again))[0]

    assert ("form 2", ("FIELD_INVALID", ["caller.name"])) == (one.consent, several)
    assert (2, 0) == (answer.voices_deleted, answer.voices_pending)
    assert not emulator.voices.custom


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same process", "another process"])
async def test_withdrawn_while_the_voice_is_made(
    cloning, emulator: Emulator, speech: bytes, eventually, elsewhere: bool
) -> None:
    """The voice is nobody's, is deleted as soon as it is there, and whoever waits is told."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as one, cloning() as other:
        asking = asyncio.ensure_future(one.PrepareCall(call_of_ivan(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        await withdrawn(other if elsewhere else one)
        failed = await get(other, caller=IVAN)
        emulator.faults.release()
        assert "CONSENT_MISSING" == (await refusal(asking))[0]
        await eventually(lambda: not emulator.voices.custom)

    assert (pb.VOICE_STATE_FAILED, error_reason_pb2.ERROR_REASON_CONSENT_MISSING) == (
        failed.state,
        failed.failure_reason,
    )
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("method", ["CloneVoice", "ReplaceVoice"])
async def test_withdrawn_while_the_voice_of_a_named_request_is_made(
    cloning, emulator: Emulator, speech: bytes, method: str
) -> None:
    """The request has failed for want of a consent, and once there is one its name is as good as new."""
    asked = request(method, speech, consent="form 1", request_id="named")
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", times=1))
    async with cloning() as cloner:
        asking = asyncio.ensure_future(getattr(cloner, method)(asked, timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        await withdrawn(cloner)
        emulator.faults.release()
        assert "CONSENT_MISSING" == (await refusal(asking))[0]
        await cloner.SetConsent(pb.SetConsentRequest(caller=IVAN, consent="form 2"), timeout=10)
        made = await getattr(cloner, method)(asked, timeout=10)
        again = await getattr(cloner, method)(asked, timeout=10)

    assert made.voice.voice_id == again.voice.voice_id in {each.voice_id for each in emulator.voices.custom}


async def test_withdrawn_at_the_same_time(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """However a withdrawal and deliveries meet, no voice is left."""
    async with cloning() as one, cloning() as other:
        for n in range(5):
            caller = pb.Caller(name="Ivan", phone_number=f"+3161234000{n}")
            await asyncio.gather(
                *(
                    cloner.PrepareCall(call_of_ivan(speech, f"conv_{n}_{m}", caller=caller), timeout=20)
                    for m, cloner in enumerate((one, other))
                ),
                withdrawn(other, caller=caller),
                return_exceptions=True,
            )
            await withdrawn(one, caller=caller)
        await eventually(lambda: not emulator.voices.custom)


async def test_withdrawn_while_elevenlabs_is_down(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """What is not deleted at once is used no more, is told as pending, and goes later."""
    async with cloning(provider_attempts=1) as cloner:
        await cloner.CloneVoice(clone(speech, request_id="one"), timeout=10)
        emulator.faults.set(
            Fault(method="DELETE", path="/v1/voices/{voice_id}", times=None, error="service_unavailable")
        )
        answer = await withdrawn(cloner)
        again = await refusal(cloner.CloneVoice(clone(speech, request_id="one"), timeout=10))
        emulator.faults.clear()
        await eventually(lambda: not emulator.voices.custom)

    assert (0, 1, "NOT_FOUND") == (answer.voices_deleted, answer.voices_pending, again[0])


async def test_forgotten(cloning, database: str, speech: bytes) -> None:
    """Of a caller who is forgotten no consent is left, nor of one of whom there was nothing else."""
    async with cloning() as cloner:
        await cloner.CloneVoice(clone(speech, "form 1"), timeout=10)
        await given(cloner, "form 2", caller=MARIA)
        assert 2 == len(await rows(database, "SELECT * FROM consents"))
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=MARIA), timeout=10)
        assert 1 == len(await rows(database, "SELECT * FROM consents"))
        voice = await get(cloner, caller=IVAN)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(voice_id=voice.voice_id), timeout=10)

    assert [] == await rows(database, "SELECT * FROM consents")


async def test_nothing_private_is_stored(cloning, database: str) -> None:
    """A consent stands there with its reference, and with whose it is as hashes alone."""
    async with cloning() as cloner:
        await given(cloner, "form 1")

    text = repr(await rows(database, "SELECT * FROM consents"))
    assert "form 1" in text
    assert not any(part in text for part in ("Ivan", "612345678", "11.12.2007"))


@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({}, ["consent", "voice_id"]),
        ({"consent": "x"}, ["voice_id"]),
        ({"consent": "a\nb", "voice_id": "a b"}, ["consent", "voice_id"]),
        ({"consent": "x" * 201, "caller": IVAN, "voice_id": "v"}, ["consent", "voice_id"]),
        ({"consent": " ", "caller": pb.Caller(name="Ivan")}, ["consent", "caller.phone_number"]),
        ({"withdrawn": True, "caller": pb.Caller(phone_number="anonymous")}, ["caller.phone_number"]),
    ],
    ids=str,
)
async def test_fields(cloning, request_fields: dict[str, Any], fields: list[str]) -> None:
    """All that is wrong is told at once."""
    async with cloning() as cloner:
        answer = cloner.SetConsent(pb.SetConsentRequest(**request_fields), timeout=10)
        assert ("FIELD_INVALID", fields) == await refusal(answer)
        unknown = cloner.SetConsent(pb.SetConsentRequest(voice_id="nowhere", withdrawn=True), timeout=10)
        assert "NOT_FOUND" == (await refusal(unknown))[0]


async def test_withdrawn_before_the_intent(patient, emulator: Emulator, speech: bytes) -> None:
    """A consent that came with a delivery is withdrawn by whoever withdraws it while its agent is read."""
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    async with patient(require_consent=True) as cloner:
        asked = asyncio.ensure_future(
            refusal(cloner.PrepareCall(call_of_ivan(speech, consent="form 1"), timeout=20))
        )
        await emulator.requests.wait(path=AGENT, stage="held")
        assert (await withdrawn(cloner, caller=IVAN)).consents[0].withdrawn
        emulator.faults.release()
        assert "CONSENT_MISSING" == (await asked)[0]

    assert [] == emulator.requests.matching(path=CREATE)


@pytest.mark.parametrize("method", ["CloneVoice", "ReplaceVoice"])
async def test_of_a_request_that_does_nothing(cloning, database: str, speech: bytes, method: str) -> None:
    """A request that is refused for its id, as its caller was forgotten or as it is another's, stores no consent."""
    async with cloning() as cloner:
        asked = request(method, speech, request_id="one", consent="form 1")
        await getattr(cloner, method)(asked, timeout=20)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        again = await refusal(getattr(cloner, method)(asked, timeout=20))
        await getattr(cloner, method)(request(method, speech, request_id="two"), timeout=20)
        anothers = request(method, speech, request_id="two", caller=MARIA, consent="form 2")
        differs = await refusal(getattr(cloner, method)(anothers, timeout=20))

    assert ("NOT_FOUND", "FIELD_INVALID") == (again[0], differs[0])
    assert [] == await rows(database, "SELECT * FROM consents")


async def test_of_a_caller_who_was_forgotten(
    cloning, emulator: Emulator, database: str, speech: bytes
) -> None:
    """A repeat that waits for the first delivery stores nothing of a caller who is forgotten meanwhile."""
    emulator.faults.set(
        Fault(method="PATCH", path=AGENT, hold="before"),
        Fault(method="DELETE", path="/v1/voices/{voice_id}", status=500),
    )
    async with cloning() as cloner:
        first = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=25))
        await emulator.requests.wait(path=AGENT, count=2)
        again = call_of_ivan(speech, consent="form 2", client_reference="ours")
        second = asyncio.ensure_future(cloner.PrepareCall(again, timeout=25))
        while not await rows(database, "SELECT 1 FROM voices WHERE client_reference = 'ours'"):
            await asyncio.sleep(0.01)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=2)
        emulator.faults.release()
        await asyncio.gather(first, second, return_exceptions=True)

    assert [] == await rows(database, "SELECT * FROM consents")


async def test_told_by_a_repeat(cloning, emulator: Emulator, speech: bytes) -> None:
    """A consent counts that comes with a repeated delivery, while the first is prepared or after the call."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    of_ivan = pb.GetVoiceRequest(caller=IVAN)
    async with cloning() as cloner:
        first = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        again = call_of_ivan(speech, consent="form 9", client_reference="ours")
        repeated = asyncio.ensure_future(cloner.PrepareCall(again, timeout=20))
        while not (await cloner.GetVoice(of_ivan, timeout=10)).consents:
            await asyncio.sleep(0.01)
        emulator.faults.release()
        assert "" == (await first).voice.consent
        told = (await repeated).voice
        await end(cloner)
        late = (await cloner.PrepareCall(call_of_ivan(speech, consent="form 11"), timeout=20)).voice
        consents = (await cloner.GetVoice(of_ivan, timeout=10)).consents

    assert ("form 9", "ours") == (told.consent, told.client_reference)
    assert "form 9" == late.consent
    assert ["form 11", "form 9"] == [consent.reference for consent in consents]


@pytest.mark.parametrize("method", ["CloneVoice", "PrepareCall"])
async def test_withdrawn_while_the_voice_is_looked_for(
    cloning, emulator: Emulator, speech: bytes, method: str
) -> None:
    """A withdrawal counts more than the consent of a request that came before it."""
    clock = Clock()
    async with cloning(now=clock, voice_check_minutes=0.05) as cloner:
        await cloner.CloneVoice(clone(speech, "form 1"), timeout=10)
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=VOICE, hold="after"))
        asking = request(method, speech, consent="form 2")
        asked = asyncio.ensure_future(refusal(getattr(cloner, method)(asking, timeout=20)))
        await emulator.requests.wait(path=VOICE, stage="held")
        await withdrawn(cloner)
        emulator.faults.release()

        assert "CONSENT_MISSING" == (await asked)[0]
        history = (await given(cloner, "form 3")).consents
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [("form 3", False), ("", True), ("form 2", False), ("form 1", False)] == [
        (each.reference, each.withdrawn) for each in history
    ]


async def test_withdrawn_by_the_number_of_a_call_that_failed(
    cloning, emulator: Emulator, speech: bytes, silence: Any
) -> None:
    """A number alone withdraws, too, for whoever has called from it and has no voice yet."""
    async with cloning() as cloner:
        await refusal(cloner.PrepareCall(call_of_ivan(silence(5.0)), timeout=10))
        await withdrawn(cloner, caller=NUMBER)
        assert "CONSENT_MISSING" == (await refusal(cloner.PrepareCall(call_of_ivan(speech), timeout=10)))[0]

    assert not emulator.voices.custom


async def test_withdrawn_by_the_number_of_a_call_under_way(
    patient, emulator: Emulator, speech: bytes
) -> None:
    """So it does for a call that is being prepared."""
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    async with patient() as cloner:
        asked = asyncio.ensure_future(refusal(cloner.PrepareCall(call_of_ivan(speech), timeout=20)))
        await emulator.requests.wait(path=AGENT, stage="held")
        await withdrawn(cloner, caller=NUMBER)
        emulator.faults.release()
        assert "CONSENT_MISSING" == (await asked)[0]

    assert not emulator.voices.custom


async def test_of_whom_nobody_can_name(cloning, speech: bytes, database: str) -> None:
    """The consent of a caller without a number goes with the last row of their voice, unless it was withdrawn."""
    clock = Clock()
    async with cloning(now=clock) as cloner:
        for name in ("Ivan", "Maria"):
            told = call_of_ivan(
                speech, f"conv_{name}", caller=pb.Caller(name=name), consent=f"form of {name}"
            )
            made = await cloner.PrepareCall(told, timeout=10)
            await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id=f"conv_{name}"), timeout=10)
        await withdrawn(cloner, voice_id=made.voice.voice_id)
        clock.ahead += 40 * 86_400
        async with asyncio.timeout(60):
            while await rows(database, "SELECT marker FROM voices WHERE state <> 'gone'"):
                await asyncio.sleep(0.02)
            clock.ahead += 40 * 86_400
            while 2 != len(left := await rows(database, "SELECT reference FROM consents ORDER BY place")):
                await asyncio.sleep(0.02)

    assert [{"reference": "form of Maria"}, {"reference": ""}] == left
