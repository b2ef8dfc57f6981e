"""A voice that is given up while its call waits for the agent is not what the call is answered."""

import asyncio
from typing import Any

import grpc
import psycopg
import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import failure, read, told
from tests.kit.provider import AGENT, CREATE, VOICE, spoken
from tests.kit.requests import IVAN, call, call_of_ivan, end, request
from tests.kit.rows import rows, until_unstated, values

MARIA = pb.Caller(name="Maria", phone_number="+31612345679")
MODES = ("auto", "never")
DELETE, FORGET = "DeleteVoice", "ForgetCaller"
WAITING = """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND datname = current_database()
"""
OPENING = request("OpenCall", phone_number=IVAN.phone_number)


async def voice_of_ivan(cloner: Any, speech: bytes) -> str:
    """A voice that is made ahead of time."""
    made = await cloner.CloneVoice(request("CloneVoice", speech, consent="form 1"), timeout=10)
    return made.voice.voice_id


async def asked_with_its_agent_held(
    cloner: Any, emulator: Emulator, speech: bytes, *, seconds: float = 20, consent: str = ""
) -> tuple[str, Any]:
    """Ivan's voice, which was made ahead of time, and a call of his whose agent is being read."""
    voice_id = await voice_of_ivan(cloner, speech)
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    asked = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech, consent=consent), timeout=seconds))
    await emulator.requests.wait(path=AGENT, stage="held")
    return voice_id, asked


async def give_up(cloner: Any, how: str, voice_id: str) -> None:
    """Has the voice deleted, or its caller forgotten."""
    if how == DELETE:
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=voice_id), timeout=10)
    else:
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)


async def answered(asked: Any) -> str:
    """The voice of an answer, or why there is none."""
    try:
        return (await asked).voice.voice_id
    except grpc.aio.AioRpcError as failed:
        # A machine that stands still lets short deadlines pass.
        found = read(failed)
        return failed.code().name if found is None else found.reason


@pytest.mark.parametrize("agent_update", MODES)
async def test_deleted(patient, emulator: Emulator, speech: bytes, agent_update: str) -> None:
    """The call gets a voice of its own, as one that comes after the deletion does."""
    async with patient(agent_update=agent_update) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        await give_up(cloner, DELETE, gone)
        emulator.faults.release()
        answer = await asked
        (there,) = emulator.voices.custom

    assert (there.voice_id, False) == (answer.voice.voice_id, answer.voice_reused)
    assert gone != there.voice_id
    assert 2 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("how", [DELETE, FORGET])
async def test_given_up_during_the_update(
    patient, emulator: Emulator, speech: bytes, eventually, how: str
) -> None:
    """So it is where the agent is being given the voice, and ElevenLabs takes its time."""
    before = spoken(emulator)
    emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
    async with patient() as cloner:
        gone = await voice_of_ivan(cloner, speech)
        asked = asyncio.ensure_future(answered(cloner.PrepareCall(call_of_ivan(speech), timeout=30)))
        await emulator.requests.wait(path=AGENT, method="PATCH", stage="held")
        await give_up(cloner, how, gone)
        emulator.faults.release()
        answer = await asked
        await eventually(lambda: gone not in {voice.voice_id for voice in emulator.voices.custom})
        left = [voice.voice_id for voice in emulator.voices.custom]
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_1"), timeout=10)
        await eventually(lambda: before == spoken(emulator))

    assert (["CONSENT_MISSING"] if how == FORGET else left) == [answer]


@pytest.mark.parametrize("agent_update", MODES)
async def test_replaced(patient, emulator: Emulator, speech: bytes, agent_update: str) -> None:
    """The call gets the voice that came in its place; no third one is made."""
    async with patient(agent_update=agent_update) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=30)).voice.voice_id
        emulator.faults.release()
        answer = await asked

    assert (new, True) == (answer.voice.voice_id, answer.voice_reused)
    assert gone != new
    assert 2 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("agent_update", MODES)
async def test_forgotten(
    patient, emulator: Emulator, speech: bytes, database: str, agent_update: str
) -> None:
    """The call is told so, and nothing is made for it or kept of it."""
    before = spoken(emulator)
    async with patient(agent_update=agent_update) as cloner:
        _, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(failure(asked))
        await give_up(cloner, FORGET, "")
        emulator.faults.release()
        refused = told(await waiting)

    assert ("CONSENT_MISSING", True) == (refused.reason, "forgotten" in refused.message)
    assert ([], before) == (emulator.voices.custom, spoken(emulator))
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [] == await rows(database, "SELECT id FROM calls")


async def test_consent_withdrawn(patient, emulator: Emulator, speech: bytes) -> None:
    """The call is told so, and no voice is made without a new consent."""
    async with patient() as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(failure(asked))
        await cloner.SetConsent(pb.SetConsentRequest(voice_id=gone, withdrawn=True), timeout=10)
        emulator.faults.release()
        refused = told(await waiting)

    assert "CONSENT_MISSING" == refused.reason
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_deleted_while_the_agent_is_put_back(
    patient, emulator: Emulator, spans, speech: bytes, eventually
) -> None:
    """The second try at an agent gives it the voice that the call has by then."""
    before = spoken(emulator)
    async with patient() as cloner:
        made = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=MARIA, sample=speech), timeout=10)
        gone = made.voice.voice_id
        await cloner.PrepareCall(call(speech), timeout=20)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        await end(cloner)
        await eventually(lambda: emulator.faults.held == 1)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=20))
        await spans.wait("registry agents.state_for")
        await give_up(cloner, DELETE, gone)
        emulator.faults.release()
        answer = await asked
        given = spoken(emulator)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))

    assert answer.agent_updated
    assert answer.voice.voice_id not in ("", gone)
    assert (answer.voice.voice_id, answer.first_message) == given


async def test_forgotten_while_its_delivery_is_repeated(
    patient, emulator: Emulator, spans, speech: bytes, database: str
) -> None:
    """A repeated delivery that waits for the first is told the same, and nothing is made for it or kept of it."""
    async with patient() as cloner:
        _, asked = await asked_with_its_agent_held(cloner, emulator, speech, consent="form 1")
        again = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech, consent="form 1"), timeout=20))
        await spans.wait("registry calls.begin", 2)
        both = asyncio.gather(answered(asked), answered(again))
        await give_up(cloner, FORGET, "")
        emulator.faults.release()
        assert ["CONSENT_MISSING"] * 2 == await both

    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [] == await rows(database, "SELECT id FROM calls")
    assert [] == await rows(database, "SELECT reference FROM consents")


async def test_forgotten_while_a_repeated_delivery_waits_for_its_voice(
    patient, emulator: Emulator, spans, speech: bytes, eventually
) -> None:
    """The same holds where the first delivery makes the voice."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with patient() as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        again = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
        await spans.wait("registry calls.begin", 2)
        both = asyncio.gather(answered(asked), answered(again))
        await give_up(cloner, FORGET, "")
        emulator.faults.release()
        assert ["CONSENT_MISSING"] * 2 == await both
        await eventually(lambda: not emulator.voices.custom)

    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("agent_update", [*MODES, "always"])
async def test_forgotten_whose_conversation_is_anothers(
    patient, emulator: Emulator, speech: bytes, agent_update: str
) -> None:
    """Nothing is made for who was forgotten, and the agent stays with who has the conversation since."""
    async with patient(agent_update=agent_update) as cloner:
        _, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(answered(asked))
        await give_up(cloner, FORGET, "")
        maria = await cloner.PrepareCall(call_of_ivan(speech, caller=MARIA), timeout=20)
        given = spoken(emulator)
        emulator.faults.release()
        assert "CONSENT_MISSING" == await waiting
        assert ([maria.voice.voice_id], given) == (
            [voice.voice_id for voice in emulator.voices.custom],
            spoken(emulator),
        )


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", [DELETE, FORGET])
async def test_short_of_time(cloning, emulator: Emulator, speech: bytes, how: str) -> None:
    """Where too little time is left to change the agent, the voice is looked at all the same."""
    async with cloning(asking_seconds=3.0) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech, seconds=3.6)
        waiting = asyncio.ensure_future(answered(asked))
        await give_up(cloner, how, gone)
        assert gone != await waiting
        emulator.faults.release()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", [DELETE, FORGET])
@pytest.mark.parametrize("agent_update", ["auto", "never"])
async def test_repeated_while_its_voice_is_looked_for(
    patient, emulator: Emulator, speech: bytes, how: str, agent_update: str
) -> None:
    """A delivery that is repeated later is not answered with the voice that its first one was."""
    clock = Clock()
    async with patient(now=clock, agent_update=agent_update, voice_check_minutes=0.05) as cloner:
        gone = await voice_of_ivan(cloner, speech)
        assert gone == await answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=VOICE, hold="after"))
        waiting = asyncio.ensure_future(answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20)))
        await emulator.requests.wait(path=VOICE, stage="held")
        await give_up(cloner, how, gone)
        emulator.faults.release()
        answer = await waiting

    assert gone != answer
    assert (how == FORGET) == (answer == "CONSENT_MISSING")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_no_loss_is_told_of_a_voice_that_was_deleted(
    patient, emulator: Emulator, speech: bytes
) -> None:
    """Nor is ElevenLabs asked for it once more."""
    clock = Clock()
    async with patient(now=clock, voice_check_minutes=0.05) as cloner:
        voice_id = await voice_of_ivan(cloner, speech)
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=VOICE, hold="before"))
        with capture_logs() as logs:
            asked = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
            await emulator.requests.wait(path=VOICE, stage="held")
            await give_up(cloner, DELETE, voice_id)
            emulator.faults.release()
            assert voice_id != await answered(asked)

    assert 1 == len(emulator.requests.matching(method="GET", path=VOICE))
    assert [] == [line for line in logs if line["event"] == "voice lost"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_lines_about_the_next_voice_do_not_name_the_last(
    patient, emulator: Emulator, speech: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is told of the clone that follows is told without the id of the voice that went."""
    async with patient() as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(answered(asked))
        emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))
        await give_up(cloner, DELETE, gone)
        emulator.faults.release()
        assert "SAMPLE_REJECTED" == await waiting

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "voice not created" in line]
    assert gone not in line


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_registry_that_hangs(patient, emulator: Emulator, speech: bytes, database: str) -> None:
    """A registry that does not say whether the voice is there still is waited for half a second."""
    async with patient(agent_update="never") as cloner:
        voice_id, asked = await asked_with_its_agent_held(cloner, emulator, speech, seconds=60)
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
            emulator.faults.release()
            # Ten times as long as it takes; until the registry is given up, it takes ten seconds.
            async with asyncio.timeout(5):
                assert voice_id == await answered(asked)


async def test_replaced_after_elevenlabs_had_lost_it(patient, emulator: Emulator, speech: bytes) -> None:
    """The agent refuses the voice that it was to have; the call gets the one that there is by now."""
    async with patient() as cloner:
        emulator.voices.remove(await voice_of_ivan(cloner, speech))
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        waiting = asyncio.ensure_future(answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20)))
        await emulator.requests.wait(path=AGENT, stage="held")
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=30)).voice.voice_id
        emulator.faults.release()
        assert new == await waiting


async def test_forgotten_after_elevenlabs_had_lost_it(
    patient, emulator: Emulator, speech: bytes, database: str
) -> None:
    """The agent refuses the voice that it was to have; nothing is kept of the call."""
    async with patient() as cloner:
        voice_id = await voice_of_ivan(cloner, speech)
        emulator.voices.remove(voice_id)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        waiting = asyncio.ensure_future(answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20)))
        await emulator.requests.wait(path=AGENT, stage="held")
        await give_up(cloner, FORGET, voice_id)
        emulator.faults.release()
        assert "CONSENT_MISSING" == await waiting

    assert [] == await rows(database, "SELECT id FROM calls")


async def test_forgotten_and_asked_about_since(
    patient, emulator: Emulator, speech: bytes, database: str
) -> None:
    """A new caller who is forgotten stays so where the call is opened after that."""
    async with patient() as cloner:
        emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
        asking = call_of_ivan(speech, consent="form 1")
        waiting = asyncio.ensure_future(answered(cloner.PrepareCall(asking, timeout=20)))
        await emulator.requests.wait(path=AGENT, stage="held")
        await give_up(cloner, FORGET, "")
        await cloner.OpenCall(OPENING, timeout=60)
        emulator.faults.release()
        assert "CONSENT_MISSING" == await waiting

    assert [] == emulator.requests.matching(path=CREATE)
    assert [] == await rows(database, "SELECT reference FROM consents")


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_conversation_of_a_call_that_failed(
    patient, emulator: Emulator, database: str, speech: bytes, *, again: bool
) -> None:
    """A call that has lost its voice and then fails leaves the conversation to whoever is stated next."""
    async with patient() as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(answered(asked))
        await cloner.SetConsent(pb.SetConsentRequest(voice_id=gone, withdrawn=True), timeout=10)
        emulator.faults.release()
        assert "CONSENT_MISSING" == await waiting
        await until_unstated(database)
        if again:
            repeated = cloner.PrepareCall(call_of_ivan(speech), timeout=20)
            assert "CONSENT_MISSING" == await answered(repeated)
        await until_unstated(database)
        maria = await cloner.PrepareCall(call_of_ivan(speech, caller=MARIA), timeout=20)

    assert "Hallo Maria" in maria.first_message


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("asked", [VOICE, AGENT])
async def test_repeated_while_elevenlabs_fails(
    patient, emulator: Emulator, speech: bytes, asked: str
) -> None:
    """A delivery that is repeated needs no answer about its agent, also where its voice is due for a look."""
    clock = Clock()
    async with patient(now=clock, voice_check_minutes=0.05) as cloner:
        voice_id = await voice_of_ivan(cloner, speech)
        assert (await cloner.PrepareCall(call_of_ivan(speech), timeout=20)).agent_updated
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=asked, status=500, times=None))
        again = await cloner.PrepareCall(call_of_ivan(speech), timeout=20)

    assert (voice_id, True) == (again.voice.voice_id, again.agent_updated)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_repeated_while_its_consent_is_stored(patient, speech: bytes, database: str) -> None:
    """A delivery that is repeated with another consent is not answered with a voice that goes meanwhile."""
    async with patient() as cloner:
        gone = await voice_of_ivan(cloner, speech)
        assert gone == await answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE consents IN ACCESS EXCLUSIVE MODE")
            repeated = call_of_ivan(speech, consent="form 2")
            waiting = asyncio.ensure_future(answered(cloner.PrepareCall(repeated, timeout=20)))
            async with asyncio.timeout(60):
                while not await values(database, WAITING):
                    await asyncio.sleep(0.02)
            await give_up(cloner, DELETE, gone)
        assert gone != await waiting


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_every_voice_lost(patient, emulator: Emulator, speech: bytes) -> None:
    """ElevenLabs is believed once that it has lost the voice; then the agent's word counts."""
    lost = {"status": 404, "body": {"detail": {"status": "voice_not_found"}}}
    async with patient() as cloner:
        emulator.voices.remove(await voice_of_ivan(cloner, speech))
        emulator.faults.set(
            Fault(method="PATCH", path=AGENT, status=400, times=None),
            Fault(method="GET", path=VOICE, times=None, **lost),
        )
        answer = await answered(cloner.PrepareCall(call_of_ivan(speech), timeout=20))

    assert ("AGENT_REJECTED", 2) == (answer, len(emulator.requests.matching(path=CREATE)))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_purged(patient, emulator: Emulator, speech: bytes, database: str) -> None:
    """A voice whose row is gone, as closed ones are some days later, is no word of somebody forgotten."""
    async with patient(registry_keep_days=1e-6) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(answered(asked))
        await give_up(cloner, DELETE, gone)
        async with asyncio.timeout(60):
            while await rows(database, "SELECT marker FROM voices"):
                await asyncio.sleep(0.02)
        emulator.faults.release()
        assert (await waiting) not in (gone, "CONSENT_MISSING")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_no_loss_is_told_where_the_account_is_listed(
    patient, emulator: Emulator, speech: bytes, eventually
) -> None:
    """A voice that is deleted here, while the listing is compared with the registry, is not told as lost."""
    clock = Clock()
    nothing = {"status": 200, "body": {"voices": [], "has_more": False}}
    async with patient(now=clock, reconcile_seconds=10_000, reconcile_grace_seconds=0.0) as cloner:
        voice_id = await voice_of_ivan(cloner, speech)
        emulator.faults.set(
            Fault(method="GET", path="/v2/voices", times=None, **nothing),
            Fault(method="GET", path=VOICE, hold="before"),
        )
        with capture_logs() as logs:
            clock.ahead += 20_000
            await emulator.requests.wait(path=VOICE, stage="held")
            await give_up(cloner, DELETE, voice_id)
            emulator.faults.release()
            await eventually(lambda: [line for line in logs if line["event"] == "reconciled"])

    assert [] == [line for line in logs if line["event"] == "voice lost"]


async def opened_with_its_agent_held(cloner: Any, emulator: Emulator, speech: bytes) -> tuple[str, Any]:
    """Ivan's voice, which was made ahead of time, and a call of his that is opened while its agent is read."""
    voice_id = await voice_of_ivan(cloner, speech)
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    asked = asyncio.ensure_future(cloner.OpenCall(OPENING, timeout=60))
    await emulator.requests.wait(path=AGENT, stage="held")
    return voice_id, asked


async def test_deleted_while_a_call_is_opened(patient, emulator: Emulator, speech: bytes) -> None:
    """The call has no voice, as one that is opened after the deletion; who calls is known by the consent."""
    async with patient() as cloner:
        gone, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        await give_up(cloner, DELETE, gone)
        emulator.faults.release()
        opened = await asked

    assert (False, "", pb.CALLER_MATCH_ONE) == (opened.HasField("voice"), opened.name, opened.caller_match)


async def test_replaced_while_a_call_is_opened(patient, emulator: Emulator, speech: bytes) -> None:
    """The call has the voice that came in its place."""
    async with patient() as cloner:
        gone, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=30)).voice.voice_id
        emulator.faults.release()
        opened = await asked

    assert (new, "Ivan", pb.CALLER_MATCH_ONE) == (opened.voice.voice_id, opened.name, opened.caller_match)
    assert gone != new


async def test_forgotten_while_a_call_is_opened(patient, emulator: Emulator, speech: bytes) -> None:
    """Nobody is greeted by the name of somebody who was forgotten."""
    async with patient() as cloner:
        _, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        await give_up(cloner, FORGET, "")
        emulator.faults.release()
        opened = await asked

    assert (False, "", "") == (opened.HasField("voice"), opened.name, opened.first_message)
    assert pb.CALLER_MATCH_NONE == opened.caller_match


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_deleted_after_a_call_that_is_still_opened(patient, emulator: Emulator, speech: bytes) -> None:
    """A call that is over by the time of its answer has no voice that went, either."""
    async with patient() as cloner:
        gone, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        assert await end(cloner)
        await give_up(cloner, DELETE, gone)
        emulator.faults.release()
        opened = await asked

    assert (False, "") == (opened.HasField("voice"), opened.name)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_replaced_while_an_opened_call_looks_for_it(
    patient, emulator: Emulator, speech: bytes, eventually
) -> None:
    """The call has the voice that came in its place, also where ElevenLabs has the last one no more."""
    clock = Clock()
    async with patient(now=clock, voice_check_minutes=0.05) as cloner:
        gone = await voice_of_ivan(cloner, speech)
        clock.ahead += 5
        emulator.faults.set(Fault(method="GET", path=VOICE, hold="before"))
        asked = asyncio.ensure_future(cloner.OpenCall(OPENING, timeout=60))
        await emulator.requests.wait(path=VOICE, stage="held")
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=30)).voice.voice_id
        await eventually(lambda: gone not in emulator.voices)
        emulator.faults.release()
        opened = await asked

    assert (new, "Ivan") == (opened.voice.voice_id, opened.name)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_opened_while_its_voice_is_made(patient, emulator: Emulator, spans, speech: bytes) -> None:
    """A voice that is on its way is none that went: the call is noted once."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with patient(agent_check_seconds=0.0) as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=30))
        await emulator.requests.wait(path=CREATE, stage="held")
        opened = await cloner.OpenCall(OPENING, timeout=60)
        emulator.faults.release()
        await asked

    assert not opened.HasField("voice")
    assert 1 == len(spans.finished("registry calls.open_call"))
