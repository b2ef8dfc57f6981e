"""Voices that are taken ahead of a call: how long they are kept, and the consent that they need."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.cloning import TICK_SECONDS
from tests.kit.failures import failure, told
from tests.kit.rows import values
from tests.kit.stand_in import programs
from tests.kit.voices import lasting

API_KEY = "key-of-the-emulator"
CREATE = "/v1/voices/add"
VOICE = "/v1/voices/{voice_id}"
DAY = 86_400
CONSENT = "form 17, signed 2025-12-10"
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def person(name: str) -> pb.Caller:
    """One of many callers, each with a number of their own."""
    return pb.Caller(name=name, phone_number=f"+3161234{sum(name.encode()) % 10_000:04}")


IVAN = person("Ivan")


def call(sample: bytes, name: str = "Ivan", conversation: str = "", **changes: Any) -> pb.PrepareCallRequest:
    """A call of somebody's to the demo agent."""
    fields = {
        "agent_id": "agent_demo",
        "conversation_id": conversation or f"conv_{name}",
        "caller": person(name),
        "sample": sample,
    }
    return pb.PrepareCallRequest(**{**fields, **changes})


async def enrol(cloner: CloningServiceStub, sample: bytes, name: str = "Ivan", **more: str) -> pb.Voice:
    """Takes somebody's voice ahead of time."""
    request = pb.CloneVoiceRequest(caller=person(name), sample=sample, **more)
    return (await cloner.CloneVoice(request, timeout=10)).voice


async def end(cloner: CloningServiceStub, conversation: str) -> None:
    """Reports a call as ended."""
    assert (await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id=conversation), timeout=10)).found


async def called(cloner: CloningServiceStub, sample: bytes, name: str = "Ivan") -> pb.Voice:
    """The voice of somebody whose call is over."""
    prepared = await cloner.PrepareCall(call(sample, name), timeout=10)
    await end(cloner, f"conv_{name}")
    return prepared.voice


def ways(cloner: CloningServiceStub, sample: bytes, **more: str) -> dict[str, Any]:
    """Every request that may make Ivan's voice, each as a call."""
    return {
        "PrepareCall": lambda: cloner.PrepareCall(call(sample, **more), timeout=10),
        "CloneVoice": lambda: cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=IVAN, sample=sample, **more), timeout=10
        ),
        "ReplaceVoice": lambda: cloner.ReplaceVoice(
            pb.ReplaceVoiceRequest(caller=IVAN, sample=sample, **more), timeout=10
        ),
    }


WAYS = pytest.mark.parametrize("way", ["PrepareCall", "CloneVoice", "ReplaceVoice"])


async def refusal(answer: Any) -> tuple[str, grpc.StatusCode, list[Message]]:
    """The reason and status code of a call that must fail, and what was told beside them."""
    found = told(await failure(answer))
    return found.reason, found.code, found.more


async def get(cloner: CloningServiceStub, voice_id: str) -> pb.Voice:
    """A voice as it is now."""
    return lasting((await cloner.GetVoice(pb.GetVoiceRequest(voice_id=voice_id), timeout=10)).voice)


async def listed(cloner: CloningServiceStub) -> list[pb.Voice]:
    """The voices that are there to be used, newest first."""
    return [lasting(voice) for voice in (await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)).voices]


def at_provider(emulator: Emulator) -> set[str]:
    """The cloned voices that there are."""
    return {voice.voice_id for voice in emulator.voices.custom}


async def left(cloner: CloningServiceStub, emulator: Emulator, *voices: pb.Voice) -> None:
    """Waits until no voices but these are at the provider, and says that they may be used."""
    async with asyncio.timeout(60):
        while {voice.voice_id for voice in voices} != at_provider(emulator):
            # Wakes the janitor, and ends nothing anew.
            await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_Maria"), timeout=10)
    assert list(voices) == await listed(cloner)


@ON_SQLITE
@pytest.mark.parametrize(
    ("settings", "days"),
    [
        ({}, 30),
        ({"voice_clone_keep_hours": 0.0}, 30),
        ({"enrolment_keep_days": 2.0}, 2),
    ],
    ids=str,
)
async def test_kept_without_a_call(
    cloning, emulator: Emulator, speech: bytes, settings: dict[str, float], days: int
) -> None:
    """A voice that was taken ahead is kept for the days that are set, and goes then."""
    clock = Clock()
    async with cloning(now=clock, **settings) as cloner:
        await called(cloner, speech, "Maria")
        voice = await enrol(cloner, speech)
        clock.ahead = (days - 0.1) * DAY
        await left(cloner, emulator, voice)

        clock.ahead = (days + 0.1) * DAY
        await left(cloner, emulator)


@pytest.mark.parametrize(
    "steps",
    [
        ["CloneVoice", "PrepareCall", "end"],
        ["PrepareCall", "CloneVoice", "end"],
        ["PrepareCall", "end", "CloneVoice"],
        ["ReplaceVoice"],
        ["PrepareCall", "ReplaceVoice", "end"],
        ["ReplaceVoice", "PrepareCall", "end"],
    ],
    ids=", ".join,
)
async def test_kept_after_a_call(cloning, emulator: Emulator, speech: bytes, steps: list[str]) -> None:
    """A voice that was taken ahead, in whatever way, outlasts its calls and not its days."""
    clock = Clock()
    async with cloning(now=clock, voice_clone_keep_hours=0.0) as cloner:
        for step in steps:
            if step == "end":
                await end(cloner, "conv_Ivan")
            else:
                voice = (await ways(cloner, speech)[step]()).voice
        await called(cloner, speech, "Maria")
        await left(cloner, emulator, voice)

        clock.ahead = 30.1 * DAY
        await left(cloner, emulator)


@ON_SQLITE
async def test_enrolled_anew(cloning, emulator: Emulator, speech: bytes) -> None:
    """The days count from the last time that the voice was taken ahead."""
    clock = Clock()
    async with cloning(now=clock) as cloner:
        voice = await enrol(cloner, speech)
        clock.ahead = 20 * DAY
        assert voice == await enrol(cloner, speech)
        await called(cloner, speech, "Maria")
        clock.ahead = 49 * DAY
        await left(cloner, emulator, voice)

        clock.ahead = 51 * DAY
        await left(cloner, emulator)


async def test_first_call_of_an_enrolled_caller(
    cloner: CloningServiceStub, emulator: Emulator, spans, speech: bytes
) -> None:
    """The first call already has a voice: nothing is created, and its sample not looked at."""
    voice = await enrol(cloner, speech)
    prepared = await cloner.PrepareCall(call(b"not audio"), timeout=10)

    assert (voice, True, True) == (prepared.voice, prepared.voice_reused, prepared.agent_updated)
    assert (1, 1) == (len(emulator.requests.matching(path=CREATE)), len(spans.finished("inspect sample")))


async def test_enrolment_evicts_no_enrolled_voice(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """An account that is full of voices taken ahead takes no further one."""
    emulator.voices.limit = 1
    voice = await enrol(cloner, speech)

    assert "VOICE_SLOTS_EXHAUSTED" == (await refusal(enrol(cloner, speech, "Maria")))[0]
    assert [voice] == await listed(cloner)
    assert {voice.voice_id} == at_provider(emulator)


async def test_enrolment_evicts_the_voice_of_a_call(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A voice whose call is over makes room for one that is taken ahead; one that is in a call does not."""
    emulator.voices.limit = 2
    first = await enrol(cloner, speech)
    prepared = await cloner.PrepareCall(call(speech, "Maria"), timeout=10)
    assert "VOICE_SLOTS_EXHAUSTED" == (await refusal(enrol(cloner, speech, "Piet")))[0]

    await end(cloner, "conv_Maria")
    second = await enrol(cloner, speech, "Piet")

    assert {first.voice_id, second.voice_id} == at_provider(emulator)
    gone = await cloner.GetVoice(pb.GetVoiceRequest(voice_id=prepared.voice.voice_id), timeout=10)
    assert (pb.VOICE_STATE_GONE, pb.GONE_CAUSE_EVICTED) == (gone.voice.state, gone.voice.gone_cause)


async def test_call_evicts_an_enrolled_voice_last(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Somebody who calls gets the slot of a call that is over, else that of a voice taken ahead."""
    emulator.voices.limit = 2
    enrolled = await enrol(cloner, speech)
    await called(cloner, speech, "Maria")

    third = await cloner.PrepareCall(call(speech, "Piet"), timeout=10)
    assert {enrolled.voice_id, third.voice.voice_id} == at_provider(emulator)
    fourth = await cloner.PrepareCall(call(speech, "Anna"), timeout=10)

    assert {third.voice.voice_id, fourth.voice.voice_id} == at_provider(emulator)


async def test_slot_of_a_call_that_has_just_ended(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A call waits for a slot while the agent of the voice that goes is given back what it had; that is no error."""
    emulator.voices.limit = 1
    emulator.agents.put("agent_other", {})
    with capture_logs() as logs:
        prepared = await cloner.PrepareCall(call(speech, "Maria"), timeout=10)
        agent = "/v1/convai/agents/agent_demo"
        reads = len(emulator.requests.matching(method="GET", path=agent))
        emulator.faults.set(Fault(method="GET", path=agent, hold="before"))
        await end(cloner, "conv_Maria")
        await emulator.requests.wait(reads + 1, method="GET", path=agent)
        waiting = asyncio.ensure_future(
            cloner.PrepareCall(call(speech, "Piet", agent_id="agent_other"), timeout=10)
        )
        await emulator.requests.wait(2, path=CREATE, stage="finished")
        while "voice given up" not in [line["event"] for line in logs]:
            await asyncio.sleep(0.01)
        emulator.faults.release()
        second = await waiting

    assert {second.voice.voice_id} == at_provider(emulator) != {prepared.voice.voice_id}
    assert [] == [line for line in logs if line["log_level"] == "error"]


async def test_many_at_once_in_full_slots(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Each of many new callers gets the slot of another voice whose call is over."""
    first, second = ([f"{name}{number}" for number in range(5)] for name in ("Maria", "Piet"))
    emulator.voices.limit = 5
    for name in first:
        await called(cloner, speech, name)
    await asyncio.gather(*(called(cloner, speech, name) for name in second))

    assert set(second) == {voice.name.split("_")[0] for voice in emulator.voices.custom}


async def test_slot_that_is_being_freed(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Where no other voice can go, a call waits for one that is being deleted anyway."""
    emulator.voices.limit = 2
    await cloner.PrepareCall(call(speech, "Maria"), timeout=10)
    leaving = await enrol(cloner, speech, "Anna")
    emulator.faults.set(Fault(method="DELETE", path=VOICE, hold="before"))
    deleting = asyncio.ensure_future(
        cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=leaving.voice_id), timeout=10)
    )
    await emulator.requests.wait(method="DELETE", path=VOICE, stage="held")
    waiting = asyncio.ensure_future(cloner.PrepareCall(call(speech, "Piet"), timeout=10))
    await emulator.requests.wait(2, method="DELETE", path=VOICE)
    emulator.faults.release()
    prepared, _ = await asyncio.gather(waiting, deleting)

    assert prepared.voice.voice_id in at_provider(emulator)


@ON_SQLITE
@pytest.mark.parametrize("error", ["missing_permissions", "service_unavailable"])
async def test_deletions_that_fail_cost_one_voice(
    cloning, emulator: Emulator, speech: bytes, eventually, error: str
) -> None:
    """While ElevenLabs deletes nothing, calls in full slots give up one voice, not one each."""
    emulator.voices.limit = 3
    async with cloning(provider_attempts=1) as cloner:
        for name in ("Anna", "Maria", "Piet"):
            await enrol(cloner, speech, name)
        emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, error=error))
        for number in range(3):
            refused = await refusal(cloner.PrepareCall(call(speech, f"New{number}"), timeout=10))
            assert "VOICE_SLOTS_EXHAUSTED" == refused[0]
        assert 2 == len(await listed(cloner))
        emulator.faults.clear()
        await eventually(lambda: 2 == len(emulator.voices.custom))
        prepared = await cloner.PrepareCall(call(speech, "New"), timeout=10)

    assert prepared.voice.voice_id in at_provider(emulator)


async def test_full_plan_is_an_error(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Where no voice can go, somebody must act."""
    emulator.voices.limit = 1
    with capture_logs() as logs:
        await cloner.PrepareCall(call(speech, "Maria"), timeout=10)
        refused = await refusal(cloner.PrepareCall(call(speech, "Piet"), timeout=10))

    assert "VOICE_SLOTS_EXHAUSTED" == refused[0]
    assert ["no voice slot left"] == [line["event"] for line in logs if line["log_level"] == "error"]


async def test_kept_until_the_answer(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """A voice that is kept for no time at all is made once, is there when it is named, and goes after that."""
    clock = Clock()
    async with cloning(now=clock, enrolment_keep_days=0.0, voice_clone_keep_hours=0.0) as cloner:
        for _ in range(3):
            voice = await enrol(cloner, speech)
            # Time for several looks at what is due.
            await asyncio.sleep(5 * TICK_SECONDS)
        assert {voice.voice_id} == at_provider(emulator)
        clock.ahead = 61
        await eventually(lambda: not emulator.voices.custom)

    assert 1 == len(emulator.requests.matching(path=CREATE))


@ON_SQLITE
@WAYS
@pytest.mark.parametrize("consent", ["", "   "], ids=repr)
async def test_consent_that_is_missing(
    cloning, emulator: Emulator, spans, speech: bytes, way: str, consent: str
) -> None:
    """Where a consent is required nothing is made without one, and no sample decoded."""
    async with cloning(require_consent=True) as cloner:
        reason, code, _ = await refusal(ways(cloner, speech, consent=consent)[way]())

    assert ("CONSENT_MISSING", grpc.StatusCode.FAILED_PRECONDITION) == (reason, code)
    assert [] == emulator.requests.matching(path=CREATE)
    assert [] == spans.finished("inspect sample")


@ON_SQLITE
@WAYS
@pytest.mark.parametrize("required", [True, False], ids=["required", "not required"])
async def test_consent_that_is_told(cloning, speech: bytes, way: str, required: bool) -> None:
    """The reference and its time stand with the voice, wherever it is told."""
    began = time.time()
    async with cloning(require_consent=required) as cloner:
        made = (await ways(cloner, speech, consent=f" {CONSENT} ")[way]()).voice
        got = await get(cloner, made.voice_id)
        (in_list,) = await listed(cloner)

    assert [CONSENT] * 3 == [voice.consent for voice in (made, got, in_list)]
    assert began <= got.consent_time.ToMicroseconds() / 1_000_000 <= time.time()
    assert [got] * 2 == [made, in_list]


@ON_SQLITE
async def test_no_consent(cloner: CloningServiceStub, speech: bytes) -> None:
    """Where none was told none is told."""
    voice = await get(cloner, (await enrol(cloner, speech)).voice_id)

    assert ("", False) == (voice.consent, voice.HasField("consent_time"))


@ON_SQLITE
async def test_consent_stays_with_the_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice that has a consent serves deliveries without one, also after a restart."""
    async with cloning(require_consent=True) as cloner:
        first = await enrol(cloner, speech, consent=CONSENT)
        second = await cloner.PrepareCall(call(speech, conversation="conv_1"), timeout=10)
    async with cloning(require_consent=True) as cloner:
        third = await cloner.PrepareCall(call(speech, conversation="conv_2"), timeout=10)
        kept = await get(cloner, first.voice_id)

    assert [first] * 3 == [second.voice, third.voice, kept]
    assert 1 == len(emulator.requests.matching(path=CREATE))


@ON_SQLITE
async def test_voice_from_before_the_setting(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice without a consent is not used until a delivery has one, which then stays with it."""
    async with cloning() as cloner:
        made = await called(cloner, speech)
    async with cloning(require_consent=True) as cloner:
        for refused in (call(speech, conversation="conv_0"), call(b"not audio", conversation="conv_0")):
            assert "CONSENT_MISSING" == (await refusal(cloner.PrepareCall(refused, timeout=10)))[0]
        assert "CONSENT_MISSING" == (await refusal(enrol(cloner, speech)))[0]
        told = await cloner.PrepareCall(call(speech, conversation="conv_1", consent=CONSENT), timeout=10)
        again = await cloner.PrepareCall(call(speech, conversation="conv_2", consent="another"), timeout=10)
        without = await cloner.PrepareCall(call(speech, conversation="conv_3"), timeout=10)
        kept = await get(cloner, made.voice_id)

    assert [(made.voice_id, True)] * 3 == [
        (answer.voice.voice_id, answer.voice_reused) for answer in (told, again, without)
    ]
    assert (CONSENT, True) == (kept.consent, kept.HasField("consent_time"))
    assert 1 == len(emulator.requests.matching(path=CREATE))


@ON_SQLITE
@pytest.mark.parametrize("way", ["PrepareCall", "CloneVoice"])
async def test_consent_that_is_taken_in(cloner: CloningServiceStub, speech: bytes, way: str) -> None:
    """The answer to the request that told of the consent already has it."""
    await enrol(cloner, speech)
    answer = await ways(cloner, speech, consent=CONSENT)[way]()

    assert (CONSENT, True) == (answer.voice.consent, answer.voice.HasField("consent_time"))


async def test_no_voice_without_a_consent_after_the_call(cloning, speech: bytes) -> None:
    """A call that was refused its voice for want of a consent does not get it once it is over."""
    async with cloning() as cloner:
        await called(cloner, speech)
    async with cloning(require_consent=True) as cloner:
        await refusal(cloner.PrepareCall(call(speech, conversation="conv_1"), timeout=10))
        await end(cloner, "conv_1")
        late = cloner.PrepareCall(call(speech, conversation="conv_1"), timeout=10)

        assert "CONSENT_MISSING" == (await refusal(late))[0]


@ON_SQLITE
@WAYS
@pytest.mark.parametrize("consent", ["a" * 201, "form\n17", "form\x00"], ids=["long", "line feed", "NUL"])
async def test_consent_that_cannot_be(
    cloner: CloningServiceStub, asked: Callable[[], list[str]], speech: bytes, way: str, consent: str
) -> None:
    """A reference of more than 200 characters, or with others than printable ones, is refused."""
    found = told(await failure(ways(cloner, speech, consent=consent)[way]()))

    assert ("FIELD_INVALID", grpc.StatusCode.INVALID_ARGUMENT) == (found.reason, found.code)
    assert (["consent"], 1) == (found.fields, len(found.more))
    assert [] == asked()


@ON_SQLITE
async def test_longest_consent(cloner: CloningServiceStub, speech: bytes) -> None:
    """A reference of 200 characters, of whatever script, is kept whole."""
    consent = "Согласие" * 25
    voice = await enrol(cloner, speech, consent=consent)

    assert consent == (await get(cloner, voice.voice_id)).consent


@pytest.mark.parametrize("pending", [False, True], ids=["deleted", "deleted later"])
async def test_consent_is_forgotten(
    cloning, emulator: Emulator, speech: bytes, database: str, pending: bool
) -> None:
    """Of a caller who is forgotten no consent is left, also while ElevenLabs still has the voice."""
    async with cloning(provider_attempts=1) as cloner:
        await enrol(cloner, speech, consent=CONSENT)
        await enrol(cloner, speech, "Maria", consent="form 18")
        if pending:
            emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, error="service_unavailable"))
        forgotten = await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)

        assert (not pending, pending) == (forgotten.voices_deleted, forgotten.voices_pending)
        assert [("form 18",)] == await values(
            database, "SELECT consent FROM voices WHERE consent <> '' OR consent_at IS NOT NULL"
        )
        emulator.faults.clear()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("sqlite")
async def test_consent_is_told_to_nobody(
    emulator: Emulator, emulator_url: str, speech: bytes, tmp_path: Path, form: str
) -> None:
    """The reference stands in no log line, no span and no request to ElevenLabs."""
    mark = "Zyxwvut-5512"
    started = await asyncio.create_subprocess_exec(
        f"{programs()}/python", "-m", "cloner", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={
            "PATH": os.environ["PATH"], "ELEVENLABS_API_KEY": API_KEY, "ELEVENLABS_BASE_URL": emulator_url,
            "CLONER_PORT": "0", "LOG_LEVEL": "DEBUG", "LOG_FORMAT": form, "OTEL_TRACES_EXPORTER": "console",
            "REQUIRE_CONSENT": "true", "PROVIDER_ATTEMPTS": "1", "AUDIO_WORKERS": "1",
        },
    )  # fmt: skip
    written = b""
    try:
        while b"cloner ready on " not in (line := await started.stdout.readline()):
            assert line, written.decode()
            written += line
        address = json.loads(line)["address"] if form == "json" else line.split()[-1].decode()
        async with grpc.aio.insecure_channel(address) as channel:
            cloner = CloningServiceStub(channel)
            for way in ways(cloner, speech, consent=mark).values():
                assert mark == (await way()).voice.consent
            emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))
            failed = [
                call(speech, "Maria", consent=mark),
                call(b"not audio", "Piet", consent=mark),
                call(speech, "Anna", consent=f"\x00{mark}"),
                call(speech, "Anna", consent=mark * 20),
            ]
            for request in failed:
                await refusal(cloner.PrepareCall(request, timeout=10))
    finally:
        started.terminate()
        written += await started.stdout.read()
        await started.wait()

    assert (True, True) == (b"request answered" in written, b"inspect sample" in written)
    assert mark not in written.decode()
    assert not [request for request in emulator.requests if mark in f"{request.form} {request.json}"]


async def test_replacement_that_fails(cloning, emulator: Emulator, speech: bytes, samples: Any) -> None:
    """A voice stays until the one that replaces it is there."""
    other = (samples / "speech.flac").read_bytes()
    async with cloning(provider_attempts=1) as cloner:
        caller = pb.Caller(name="Ivan", phone_number="+31612345678")
        old = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)
        emulator.faults.set(Fault(method="POST", path="/v1/voices/add", error="invalid_content"))
        with pytest.raises(grpc.aio.AioRpcError):
            await cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=caller, sample=other), timeout=10)
        kept = await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)
        new = await cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=caller, sample=other), timeout=10)
        async with asyncio.timeout(60):
            while [new.voice.voice_id] != [voice.voice_id for voice in emulator.voices.custom]:
                await asyncio.sleep(0.02)
        again = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)

    assert [old.voice.voice_id] == [voice.voice_id for voice in kept.voices]
    assert (new.voice.voice_id, True) == (again.voice.voice_id, again.voice_reused)


async def test_replacement_in_full_slots(cloning, emulator: Emulator, speech: bytes) -> None:
    """Where there is no other slot, the voice that is replaced gives its own."""
    emulator.voices.limit = 1
    async with cloning() as cloner:
        caller = pb.Caller(name="Ivan", phone_number="+31612345678")
        old = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)
        new = await cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=caller, sample=speech), timeout=10)

    assert old.voice.voice_id != new.voice.voice_id
    assert [new.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


@ON_SQLITE
async def test_replacement_in_full_slots_and_a_full_month(cloning, emulator: Emulator, speech: bytes) -> None:
    """The former voice gives no slot to one that cannot be made."""
    emulator.voices.limit = 1
    async with cloning() as cloner:
        old = await enrol(cloner, speech)
        emulator.voices.monthly_limit = emulator.voices.monthly_used
        replacing = cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=IVAN, sample=speech), timeout=10)
        assert "VOICE_SLOTS_EXHAUSTED" == (await refusal(replacing))[0]
        assert [old] == await listed(cloner)


async def test_replacement_that_is_finished_by_another(
    cloning, emulator: Emulator, speech: bytes, samples: Any
) -> None:
    """A replacement whose process died takes the place of the voice when another process finds it."""
    clock = Clock()
    caller = pb.Caller(name="Ivan", phone_number="+31612345678")
    other = (samples / "speech.flac").read_bytes()
    async with cloning(now=clock, shutdown_grace_seconds=0.0) as cloner:
        await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)
        emulator.faults.set(Fault(method="POST", path="/v1/voices/add", hold="after"))
        request = pb.ReplaceVoiceRequest(caller=caller, sample=other)
        lost = asyncio.ensure_future(cloner.ReplaceVoice(request, timeout=10))
        await emulator.requests.wait(path="/v1/voices/add", stage="held")
    await asyncio.gather(lost, return_exceptions=True)
    emulator.faults.clear()
    clock.ahead += 60.0
    async with cloning(now=clock) as cloner:
        async with asyncio.timeout(60):
            while len(emulator.voices.custom) != 1:
                await asyncio.sleep(0.02)
        again = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)

    (voice,) = emulator.voices.custom
    (_, second) = emulator.requests.matching(path="/v1/voices/add")
    markers = [part.text for part in second.form if part.name == "labels"]
    assert voice.labels["precall"] in markers[0]
    assert (voice.voice_id, True) == (again.voice.voice_id, again.voice_reused)
