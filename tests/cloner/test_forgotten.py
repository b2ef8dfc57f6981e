"""What is under way for a caller who is forgotten meanwhile comes to nothing, and a voice forgets its caller."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import failure, told
from tests.kit.provider import CREATE, VOICE
from tests.kit.requests import CLONING, IVAN, call, call_of_ivan, request
from tests.kit.rows import rows

EVERYTHING = ("SELECT greeting_name FROM voices WHERE greeting_name <> ''", "SELECT reference FROM consents")


@pytest.mark.parametrize("method", CLONING)
async def test_before_another_try(
    cloning, emulator: Emulator, speech: bytes, database: str, spans: Any, method: str
) -> None:
    """A create that is to be sent again, and for which nobody waits any more, is not."""
    emulator.faults.set(Fault(method="POST", path=CREATE, status=429, headers={"Retry-After": "1"}))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(getattr(cloner, method)(request(method, speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="finished")
        asked.cancel()
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        assert [] == await rows(database, "SELECT * FROM voices")
        # What the clone asks before the next try.
        await spans.wait("registry voices.get")

    assert [] == await rows(database, "SELECT * FROM voices")
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize(
    ("method", "named"),
    [
        *((method, {}) for method in CLONING),
        *((method, {"request_id": "named"}) for method in ("CloneVoice", "ReplaceVoice")),
    ],
)
async def test_while_the_voice_is_made(
    cloning, emulator: Emulator, speech: bytes, database: str, eventually, method: str, named: dict[str, str]
) -> None:
    """Whoever waits is told so, the voice goes, and no second one is made, nor when the request is repeated."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(
            failure(getattr(cloner, method)(request(method, speech, consent="form 1", **named), timeout=20))
        )
        await emulator.requests.wait(path=CREATE, stage="held")
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        emulator.faults.release()
        refused = told(await asked)
        await eventually(lambda: not emulator.voices.custom)
        if named:
            again = request(method, speech, consent="form 1", **named)
            assert "NOT_FOUND" == told(await failure(getattr(cloner, method)(again, timeout=20))).reason

    assert ("CONSENT_MISSING", True) == (refused.reason, "forgotten" in refused.message)
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [] == [row for query in EVERYTHING for row in await rows(database, query)]


@pytest.mark.parametrize(
    ("first", "method", "named"),
    [
        ("CloneVoice", "CloneVoice", {}),
        ("CloneVoice", "CloneVoice", {"request_id": "named"}),
        ("CloneVoice", "ReplaceVoice", {}),
        ("PrepareCall", "CloneVoice", {}),
        ("CloneVoice", "PrepareCall", {}),
    ],
)
async def test_while_another_process_makes_the_voice(
    cloning, emulator: Emulator, speech: bytes, spans: Any, eventually, first: str, method: str, named: Any
) -> None:
    """Whoever waits for it elsewhere is told so, too, and no second one is made."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as maker, cloning() as other:
        making = asyncio.ensure_future(
            failure(getattr(maker, first)(request(first, speech, **named), timeout=20))
        )
        await emulator.requests.wait(path=CREATE, stage="held")
        waiting = asyncio.ensure_future(
            failure(getattr(other, method)(request(method, speech, **named), timeout=20))
        )
        await spans.wait("registry voices.get")
        await maker.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        emulator.faults.release()
        refused = [told(await each).reason for each in (making, waiting)]
        await eventually(lambda: not emulator.voices.custom)

    assert ["CONSENT_MISSING"] * 2 == refused
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_after_another_process_has_taken_over(
    cloning, emulator: Emulator, speech: bytes, database: str
) -> None:
    """A process whose voice another one has recorded meanwhile, and given up, makes no second one."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(failure(cloner.CloneVoice(request("CloneVoice", speech), timeout=20)))
        await emulator.requests.wait(path=CREATE, stage="held")
        with closing(sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("UPDATE voices SET state = 'deleting', reason = 'forgotten', due_at = 1e12")
        emulator.faults.release()

        assert "CONSENT_MISSING" == told(await asked).reason
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("named", [{}, {"request_id": "named"}], ids=["", "named"])
async def test_while_the_voice_is_looked_for(
    cloning, emulator: Emulator, speech: bytes, named: dict[str, str]
) -> None:
    """A request that asks ElevenLabs for a voice whose caller is forgotten meanwhile makes no other one."""
    clock = Clock()
    async with cloning(now=clock, voice_check_minutes=0.05) as cloner:
        await cloner.CloneVoice(request("CloneVoice", speech), timeout=10)
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=VOICE, hold="after"))
        again = request("CloneVoice", speech, **named)
        asked = asyncio.ensure_future(failure(cloner.CloneVoice(again, timeout=20)))
        await emulator.requests.wait(path=VOICE, stage="held")
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        emulator.faults.release()

        assert "CONSENT_MISSING" == told(await asked).reason
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_consent_to_a_voice_that_still_goes(
    cloning, emulator: Emulator, speech: bytes, database: str
) -> None:
    """Nothing can be said of a caller by a voice that was theirs, and that ElevenLabs has not deleted yet."""
    async with cloning(provider_attempts=1) as cloner:
        made = await cloner.CloneVoice(request("CloneVoice", speech), timeout=10)
        emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, status=500))
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        for fields in ({"consent": "form 2"}, {"withdrawn": True}):
            asked = pb.SetConsentRequest(voice_id=made.voice.voice_id, **fields)
            assert "NOT_FOUND" == told(await failure(cloner.SetConsent(asked, timeout=10))).reason

    assert [] == await rows(database, "SELECT * FROM consents")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("reuse", ["caller", "sample", "never"])
async def test_call_that_failed(cloning, speech: bytes, silence: Any, database: str, reuse: str) -> None:
    """A call that failed is listed with its caller and erased with them, also where others share the number."""
    maria = pb.Caller(name="Maria", phone_number=IVAN.phone_number)
    async with cloning(voice_reuse=reuse) as cloner:
        await failure(cloner.PrepareCall(call_of_ivan(silence(5.0)), timeout=10))
        await cloner.PrepareCall(call_of_ivan(speech, "conv_maria", caller=maria), timeout=10)
        listed = await cloner.ListCalls(pb.ListCallsRequest(caller=IVAN), timeout=10)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)

    assert ["conv_1"] == [each.conversation_id for each in listed.calls]
    assert [{"conversation_id": "conv_maria"}] == await rows(database, "SELECT conversation_id FROM calls")


@pytest.mark.parametrize("state", ["deleting", "gone"])
async def test_by_a_voice_that_went(
    cloning, emulator: Emulator, speech: bytes, database: str, state: str
) -> None:
    """Somebody without a number can be forgotten by the voice alone, also when that is gone."""
    caller = pb.Caller(name="Ivan the Nameless")
    async with cloning(provider_attempts=1) as cloner:
        made = await cloner.PrepareCall(call(speech, caller=caller, consent="signed by Ivan"), timeout=10)
        voice_id = made.voice.voice_id
        if state == "deleting":
            emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, status=500))
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=voice_id), timeout=10)
        assert [{"state": state}] == await rows(database, "SELECT state FROM voices")
        forgotten = await cloner.ForgetCaller(pb.ForgetCallerRequest(voice_id=voice_id), timeout=10)

    assert (0, state == "deleting") == (forgotten.voices_deleted, forgotten.voices_pending)
    assert [] == [row for query in EVERYTHING for row in await rows(database, query)]
    assert [] == await rows(database, "SELECT id FROM calls")
