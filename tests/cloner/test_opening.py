"""Calls that are opened without a recording: whose voice they get, and what they count for."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import failure, told
from tests.kit.rows import until_unstated, values
from tests.kit.voices import lasting

CREATE = "/v1/voices/add"
VOICE = "/v1/voices/{voice_id}"
AGENT = "/v1/convai/agents/{agent_id}"
NUMBER = "+31612345678"
OTHER_NUMBER = "+31687654321"
UNKNOWN = "+31600000000"
IVAN = pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number=NUMBER)
MARIA = pb.Caller(name="Maria", phone_number=OTHER_NUMBER)
# Shares a number with Ivan.
ANNA = pb.Caller(name="Anna", phone_number=NUMBER)
GREETING = "Hallo Ivan, fijn dat je belt!"
# Only what a test itself asks for looks at voices: nothing is found by reconciling meanwhile.
NOT_RECONCILED = {"reconcile_seconds": 1e9}
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def call(
    sample: bytes, caller: pb.Caller = IVAN, conversation: str = "conv_1", **changes: Any
) -> pb.PrepareCallRequest:
    """A request for the demo agent, with a sample."""
    fields = {"agent_id": "agent_demo", "conversation_id": conversation, "caller": caller, "sample": sample}
    return pb.PrepareCallRequest(**{**fields, **changes})


def opening(number: str = NUMBER, conversation: str = "conv_9", **changes: Any) -> pb.OpenCallRequest:
    """A request for the demo agent, without a sample."""
    fields = {"agent_id": "agent_demo", "conversation_id": conversation, "phone_number": number}
    return pb.OpenCallRequest(**{**fields, **changes})


async def known(cloner: CloningServiceStub, sample: bytes, caller: pb.Caller = IVAN) -> pb.Voice:
    """The voice of a caller whose only call is over."""
    prepared = await cloner.PrepareCall(call(sample, caller, f"conv_{caller.name}"), timeout=10)
    await end(cloner, f"conv_{caller.name}")
    return prepared.voice


async def end(cloner: CloningServiceStub, conversation: str, **more: str) -> bool:
    """Reports a call as ended."""
    request = pb.CompleteCallRequest(conversation_id=conversation, **more)
    return (await cloner.CompleteCall(request, timeout=10)).found


async def listed(cloner: CloningServiceStub) -> list[str]:
    """The voices that are there to be used."""
    return [voice.voice_id for voice in (await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)).voices]


async def left(cloner: CloningServiceStub, emulator: Emulator, *voices: pb.Voice) -> None:
    """Waits until no voices but these are at the provider, and says that they may be used."""
    async with asyncio.timeout(60):
        while {voice.voice_id for voice in voices} != {voice.voice_id for voice in emulator.voices.custom}:
            await end(cloner, "conv_Maria")  # wakes the janitor, and ends nothing anew
    assert [voice.voice_id for voice in voices] == await listed(cloner)


async def details(answer: Any) -> tuple[str, list[Any]]:
    """The reason of a call that must fail, and what was told beside it."""
    found = told(await failure(answer))
    return found.reason, [detail for detail in found.more if not detail.Is(RetryInfo.DESCRIPTOR)]


async def fields_at_fault(answer: Any) -> list[str]:
    """The fields that a call must be refused for, where nothing but them is told."""
    found = told(await failure(answer))
    assert ("FIELD_INVALID", 1) == (found.reason, len(found.more))
    return found.fields


def spoken(emulator: Emulator) -> pb.Speech:
    """How the demo agent speaks."""
    config = emulator.agents["agent_demo"]["conversation_config"]
    return pb.Speech(voice_id=config["tts"]["voice_id"], first_message=config["agent"]["first_message"])


@ON_SQLITE
async def test_caller_known_by_number(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """The one caller behind a number gets voice, name and greeting, and nothing is cloned."""
    voice = await known(cloner, speech)
    opened = await cloner.OpenCall(opening(), timeout=10)

    assert (voice, "Ivan", GREETING) == (opened.voice, opened.name, opened.first_message)
    assert 1 == len(emulator.requests.matching(path=CREATE))


@ON_SQLITE
async def test_spellings_of_a_number(cloner: CloningServiceStub, speech: bytes) -> None:
    """However a number is written, it is the same number; without its country it is nobody's."""
    voice = await known(cloner, speech)
    numbers = [
        "+31 6 1234 5678", "  +31-6-12345678 ", "+31(6)12345678", "+31 (0)6 12345678", "0031612345678", "31612345678",
        "tel:+31612345678;ext=5", "sip:+31612345678@203.0.113.7;user=phone", "sips:0031612345678@host", "+31612345678@host",
        '"Ivan" <sip:+31612345678@trunk.example.com:5060;transport=udp;user=phone>;tag=1928301774', "whatsapp:31612345678",
        "\u202a+31612345678\u202c", "+31\u00a06\u202f12345678", "\uff0b\uff13\uff11\uff16\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
    ]  # fmt: skip
    opened = [
        await cloner.OpenCall(opening(number, f"conv_{n}"), timeout=10)
        for n, number in enumerate([*numbers, "0612345678"])
    ]

    assert [*[voice.voice_id] * len(numbers), ""] == [answer.voice.voice_id for answer in opened]


@ON_SQLITE
async def test_national_number(cloning, speech: bytes) -> None:
    """Where the country is set, a number without it is the same number, for who is told and who is found."""
    async with cloning(default_region="NL") as cloner:
        caller = pb.Caller(name="Ivan", phone_number="06 12345678")
        voice = await known(cloner, speech, caller)
        opened = await cloner.OpenCall(opening("sip:0612345678@203.0.113.7"), timeout=10)
        again = await cloner.PrepareCall(
            call(speech, pb.Caller(name="Ivan", phone_number=NUMBER), "conv_2"), timeout=10
        )
        found = await cloner.ListVoices(
            pb.ListVoicesRequest(caller=pb.Caller(phone_number="0031 612345678")), timeout=10
        )

    assert [voice] * 3 == [opened.voice, again.voice, *map(lasting, found.voices)]


@ON_SQLITE
@pytest.mark.parametrize("number", ["", "   ", UNKNOWN, "anonymous", "sip:anonymous@203.0.113.7"])
async def test_nobody_known(cloner: CloningServiceStub, speech: bytes, number: str) -> None:
    """An unknown caller gets nobody's voice, and the call has an id all the same."""
    await known(cloner, speech)
    opened = await cloner.OpenCall(opening(number), timeout=10)

    assert (False, "", "") == (opened.HasField("voice"), opened.name, opened.first_message)
    assert pb.CALLER_MATCH_NONE == opened.caller_match
    assert opened.call_id.startswith("call_")


@ON_SQLITE
async def test_known_without_a_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """One who is known and has lost the voice is told apart from nobody and from many."""
    clock = Clock()
    async with cloning(now=clock, **NOT_RECONCILED) as cloner:
        voice = await known(cloner, speech)
        there = await cloner.OpenCall(opening(), timeout=10)
        emulator.voices.remove(voice.voice_id)
        clock.ahead = 601
        lost = await cloner.OpenCall(opening(conversation="conv_10"), timeout=10)

    assert (True, False) == (there.HasField("voice"), lost.HasField("voice"))
    assert [pb.CALLER_MATCH_ONE] * 2 == [there.caller_match, lost.caller_match]


@pytest.mark.parametrize("state", ["ready", "gone", "failed"])
async def test_two_callers_behind_one_number(
    cloning, emulator: Emulator, speech: bytes, database: str, state: str
) -> None:
    """Nobody's voice while two are known, whatever became of the other's; after forgetting, the one's again."""
    clock = Clock()
    async with cloning(now=clock, provider_attempts=1, **NOT_RECONCILED) as cloner:
        voice = await known(cloner, speech)
        if state == "failed":
            emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))
            assert "SAMPLE_REJECTED" == (await details(cloner.PrepareCall(call(speech, ANNA), timeout=10)))[0]
        else:
            await cloner.PrepareCall(call(speech, ANNA), timeout=10)
        if state == "gone":
            (of_anna,) = [each for each in emulator.voices.custom if each.voice_id != voice.voice_id]
            emulator.voices.remove(of_anna.voice_id)
            clock.ahead = 601
            await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)  # which notices that it is lost
        assert {"ready", state} == {row[0] for row in await values(database, "SELECT state FROM voices")}

        shared = await cloner.OpenCall(opening(), timeout=10)
        assert (False, "", "") == (shared.HasField("voice"), shared.name, shared.first_message)
        assert pb.CALLER_MATCH_SEVERAL == shared.caller_match

        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=ANNA), timeout=10)
        alone = await cloner.OpenCall(opening(conversation="conv_10"), timeout=10)
        assert (voice, "Ivan") == (alone.voice, alone.name)


@ON_SQLITE
async def test_call_id(cloning, speech: bytes) -> None:
    """One text as a conversation, a call_sid and a sip_call_id names three calls, the same after a restart."""
    nothing = {"conversation_id": "", "call_sid": "", "sip_call_id": ""}

    async def ids(cloner: CloningServiceStub) -> list[str]:
        given = [
            {**nothing, **names}
            for names in (
                {"conversation_id": "conv_1"}, {"call_sid": "conv_1"}, {"sip_call_id": "conv_1"},
                {"conversation_id": "conv_1", "call_sid": "CA1", "sip_call_id": "sip_1"},
            )
        ]  # fmt: skip
        return [(await cloner.OpenCall(opening(**names), timeout=10)).call_id for names in given]

    async with cloning() as cloner:
        first = await ids(cloner)
    async with cloning() as cloner:
        again = await ids(cloner)
        prepared = await cloner.PrepareCall(call(speech), timeout=10)

    assert first == again
    assert 3 == len(set(first))
    assert first[0] == first[3] == prepared.call_id
    # printf 'agent_demo\0conv_1' | sha256sum: nobody can compute it without the key.
    assert "call_280d66d0802210edf74ca49e" not in first


@ON_SQLITE
@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"conversation_id": ""}, "conversation_id"),
        ({"conversation_id": " "}, "conversation_id"),
        ({"conversation_id": "", "call_sid": " "}, "conversation_id"),
        ({"conversation_id": "a\nb"}, "conversation_id"),
        ({"conversation_id": "a" * 257}, "conversation_id"),
        ({"conversation_id": "", "call_sid": "a" * 257}, "call_sid"),
        ({"conversation_id": "", "sip_call_id": "a\nb"}, "sip_call_id"),
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": "../voices"}, "agent_id"),
        ({"phone_number": "1" * 65}, "phone_number"),
        ({"phone_number": "\x00"}, "phone_number"),
    ],
    ids=str,
)
async def test_invalid_field(
    cloner: CloningServiceStub, emulator: Emulator, given: dict[str, str], field: str
) -> None:
    """What cannot be is refused with the name of the field, and nothing is asked of ElevenLabs."""
    assert [field] == await fields_at_fault(cloner.OpenCall(opening(**given), timeout=10))
    assert [] == emulator.requests.matching(path=AGENT)


@ON_SQLITE
async def test_ignored_fields(cloner: CloningServiceStub) -> None:
    """Names that are ignored may be anything."""
    opened = await cloner.OpenCall(opening(call_sid="a" * 257, sip_call_id="a\tb"), timeout=10)
    asked = pb.GetCallRequest(conversation_id="conv_9", agent_id="agent_demo", call_id="c" * 100)

    assert opened.call_id == (await cloner.GetCall(asked, timeout=10)).call.call_id


@ON_SQLITE
@pytest.mark.parametrize("number", ["", OTHER_NUMBER])
async def test_conversation_that_was_prepared(cloner: CloningServiceStub, speech: bytes, number: str) -> None:
    """A conversation keeps the voice that it was prepared with, whatever the number says."""
    prepared = await cloner.PrepareCall(call(speech), timeout=10)
    await known(cloner, speech, MARIA)
    opened = await cloner.OpenCall(opening(number, "conv_1"), timeout=10)

    assert (prepared.voice, prepared.call_id, "Ivan", GREETING) == (
        opened.voice, opened.call_id, opened.name, opened.first_message,
    )  # fmt: skip


NAMES = [
    {"conversation_id": "", "call_sid": "CA1"},
    {"conversation_id": "", "sip_call_id": "CA1"},
    {"conversation_id": "conv_9"},
]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=["call_sid", "sip_call_id", "conversation"])
async def test_same_name_from_another_number(
    cloner: CloningServiceStub, speech: bytes, name: dict[str, str], ended: bool
) -> None:
    """What is said to be one call, from another number, is another call: each number is judged by itself."""
    ivan = await known(cloner, speech)
    maria = await known(cloner, speech, MARIA)
    first = await cloner.OpenCall(opening(NUMBER, **name), timeout=10)
    if ended:
        request = pb.CompleteCallRequest(call_id=first.call_id, agent_id="agent_demo")
        assert (await cloner.CompleteCall(request, timeout=10)).found
    others = [
        await cloner.OpenCall(opening(number, **name), timeout=10)
        for number in (OTHER_NUMBER, UNKNOWN, "", "anonymous")
    ]
    again = await cloner.OpenCall(opening(NUMBER, **name), timeout=10)

    assert ivan.voice_id == first.voice.voice_id
    assert [(maria.voice_id, "Maria"), ("", ""), ("", ""), ("", "")] == [
        (answer.voice.voice_id, answer.name) for answer in others
    ]
    assert (first.call_id, ivan.voice_id) == (again.call_id, again.voice.voice_id)
    assert first.call_id not in {answer.call_id for answer in others}


@ON_SQLITE
@pytest.mark.parametrize("before", [None, OTHER_NUMBER], ids=["nobody asked", "another number"])
async def test_number_after_the_end(
    cloner: CloningServiceStub, spans: Any, speech: bytes, before: str | None
) -> None:
    """Asked about after its end, from a number of its own, a conversation is answered and stays over."""
    ivan = await known(cloner, speech)
    await spans.wait("restore agent")  # until then the agent is given to nobody
    if before is not None:
        await cloner.OpenCall(opening(before), timeout=10)
    await end(cloner, "conv_9", agent_id="agent_demo")
    answers = [(await cloner.OpenCall(opening(), timeout=10)).voice for _ in range(2)]
    other = await cloner.PrepareCall(call(speech, MARIA, "conv_Maria"), timeout=10)

    assert [ivan] * 2 == answers
    assert other.agent_updated
    in_progress = (await cloner.ListCalls(pb.ListCallsRequest(in_progress=True), timeout=10)).calls
    assert ["conv_Maria"] == [found.conversation_id for found in in_progress]


@pytest.mark.parametrize("kind", ["call_sid", "sip_call_id"])
async def test_conversation_as_another_name(cloner: CloningServiceStub, speech: bytes, kind: str) -> None:
    """A conversation that was prepared is not found by its text as a call_sid or a sip_call_id."""
    await cloner.PrepareCall(call(speech, conversation="conv_ivan"), timeout=10)
    opened = await cloner.OpenCall(opening(UNKNOWN, "", **{kind: "conv_ivan"}), timeout=10)

    assert ("", "") == (opened.voice.voice_id, opened.name)


@pytest.mark.parametrize("more", [{}, {"agent_id": "agent_demo"}], ids=["no agent", "agent"])
async def test_delivery_after_the_end_of_its_line(
    cloner: CloningServiceStub, speech: bytes, more: dict[str, str]
) -> None:
    """An end that names line and conversation is the end of both: what is delivered later changes no agent."""
    await cloner.PrepareCall(call(speech), timeout=10)
    await end(cloner, "conv_1")
    line = await cloner.OpenCall(opening(conversation="", call_sid="CA1"), timeout=10)
    assert await end(cloner, "conv_9", call_id=line.call_id, **more)
    late = await cloner.PrepareCall(call(speech, conversation="conv_9"), timeout=10)

    assert (line.voice, False) == (late.voice, late.agent_updated)
    assert line.call_id != late.call_id


async def test_second_caller_in_a_conversation(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A conversation has one caller: nothing is done for another, and the first one's call goes on."""
    first = await cloner.PrepareCall(call(speech), timeout=10)
    others = [
        MARIA, ANNA, pb.Caller(name="Ivan", phone_number=NUMBER), pb.Caller(name="Ivan"), pb.Caller(),
        pb.Caller(name="Ivan", date_of_birth="12.12.2007", phone_number=NUMBER),
    ]  # fmt: skip
    reasons = [(await details(cloner.PrepareCall(call(speech, other), timeout=10)))[0] for other in others]
    again = await cloner.PrepareCall(call(speech), timeout=10)

    assert ["CONVERSATION_MISMATCH"] * 6 == reasons
    assert (first.voice, first.call_id) == (again.voice, again.call_id)
    assert [first.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


async def test_two_callers_at_once_in_a_conversation(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Of two callers who are told for one conversation at once, one is served."""
    requests = [cloner.PrepareCall(call(speech, whom), timeout=10) for whom in (IVAN, MARIA) * 3]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    served = [answer for answer in answers if isinstance(answer, pb.PrepareCallResponse)]
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]

    assert (3, 3) == (len(served), len(refused))
    assert {grpc.StatusCode.ALREADY_EXISTS} == {answer.code() for answer in refused}
    assert [served[0].voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


@ON_SQLITE
async def test_caller_corrected_after_a_failure(
    cloner: CloningServiceStub, database: str, speech: bytes
) -> None:
    """A delivery that failed binds its conversation to nobody."""
    reason, _ = await details(cloner.PrepareCall(call(b"not audio", MARIA), timeout=10))
    await until_unstated(database)
    answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert "SAMPLE_UNREADABLE" == reason
    assert answer.voice.name.startswith("Ivan_")


@pytest.mark.parametrize("agent", ["agent_other", "agent_demo"])
@pytest.mark.parametrize("opened_first", [False, True])
async def test_end_of_somebody_elses_call(
    cloning, emulator: Emulator, speech: bytes, agent: str, opened_first: bool
) -> None:
    """An event about one conversation ends no call that is another's, whatever it echoes."""
    async with cloning(voice_clone_keep_hours=0.0, **NOT_RECONCILED) as cloner:
        if opened_first:
            await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)
        ivan = await cloner.PrepareCall(call(speech), timeout=10)
        if agent == "agent_demo":
            # ElevenLabs knows both conversations.
            await cloner.OpenCall(opening(UNKNOWN, "conv_x"), timeout=10)
        for echo in ({"call_id": ivan.call_id}, {"voice_id": ivan.voice.voice_id}):
            request = pb.CompleteCallRequest(conversation_id="conv_x", agent_id=agent, **echo)
            found = (await cloner.CompleteCall(request, timeout=10)).found
            assert found == (agent == "agent_demo")
        again = await cloner.PrepareCall(call(speech), timeout=10)

        assert (ivan.voice.voice_id, True) == (again.voice.voice_id, again.agent_updated)
        assert ivan.voice.voice_id == spoken(emulator).voice_id


@ON_SQLITE
async def test_echo_at_an_unknown_conversation(cloner: CloningServiceStub, speech: bytes) -> None:
    """An echoed id ends what only a bridge calls otherwise; what ElevenLabs calls otherwise it does not end."""
    bridged = await cloner.PrepareCall(call(speech, conversation="bridge_1"), timeout=10)
    await cloner.OpenCall(opening(OTHER_NUMBER, "conv_2"), timeout=10)
    known_to_elevenlabs = await cloner.PrepareCall(call(speech, MARIA, "conv_2"), timeout=10)

    found = [
        await end(cloner, "conv_x", agent_id=agent, call_id=answer.call_id)
        for agent in ("", "agent_other", "agent_demo")
        for answer in (bridged, known_to_elevenlabs)
    ]
    # The agent has to be told, and to match.
    assert [False, False, False, False, True, False] == found


async def test_opened_many_times(cloner: CloningServiceStub, speech: bytes, database: str) -> None:
    """However often a call is opened, at once or later, it is one call."""
    await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
    answers = await asyncio.gather(*(cloner.OpenCall(opening(), timeout=10) for _ in range(10)))
    answers.append(await cloner.OpenCall(opening(), timeout=10))

    assert answers[0].HasField("voice")
    assert [answers[0]] * 11 == answers
    assert [(1,)] == await values(database, "SELECT count(*) FROM calls WHERE conversation_id = 'conv_9'")


@ON_SQLITE
async def test_opened_call_is_in_progress(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """While somebody's call is open at an agent, nobody else's changes it."""
    before = spoken(emulator)
    await cloner.OpenCall(opening(OTHER_NUMBER), timeout=10)
    during = await cloner.PrepareCall(call(speech), timeout=10)
    assert (False, before) == (during.agent_updated, spoken(emulator))

    assert await end(cloner, "conv_9", agent_id="agent_demo")
    after = await cloner.PrepareCall(call(speech, conversation="conv_2"), timeout=10)

    assert (True, during.voice.voice_id) == (after.agent_updated, spoken(emulator).voice_id)


@ON_SQLITE
async def test_call_without_a_conversation(cloner: CloningServiceStub, speech: bytes) -> None:
    """A call of which only the line is known ends by its id, and then by its conversation too."""
    opened = await cloner.OpenCall(opening(OTHER_NUMBER, "", call_sid="CA1"), timeout=10)
    assert not (await cloner.PrepareCall(call(speech), timeout=10)).agent_updated
    assert not await end(cloner, "conv_9")

    assert await end(cloner, "conv_9", call_id=opened.call_id)
    assert await end(cloner, "conv_9")
    assert (await cloner.PrepareCall(call(speech, conversation="conv_2"), timeout=10)).agent_updated


async def test_conversation_that_ended_by_the_id_of_its_call(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A delivery for a conversation that is over touches no agent, also if it was opened without it."""
    before = spoken(emulator)
    opened = await cloner.OpenCall(opening(conversation="", call_sid="CA1"), timeout=10)
    await end(cloner, "conv_1", call_id=opened.call_id, agent_id="agent_demo")
    late = await cloner.PrepareCall(call(speech), timeout=10)

    assert (False, before) == (late.agent_updated, spoken(emulator))


async def test_opened_call_uses_the_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice is not deleted during a call that was opened with it, and goes the hours after its end."""
    clock = Clock()
    async with cloning(now=clock, voice_clone_keep_hours=1.0, **NOT_RECONCILED) as cloner:
        await known(cloner, speech, MARIA)
        voice = await known(cloner, speech)
        clock.ahead = 3_000
        assert (await cloner.OpenCall(opening(), timeout=10)).HasField("voice")
        clock.ahead = 3_000 + 3_700
        await left(cloner, emulator, voice)

        await end(cloner, "conv_9")
        clock.ahead = 3_000 + 3_700 + 3_500
        await left(cloner, emulator, voice)
        clock.ahead = 3_000 + 3_700 + 3_700
        await left(cloner, emulator)


@ON_SQLITE
async def test_what_the_agent_had_before(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """While an agent has a caller's voice every answer tells what it had before; else none does."""
    before = spoken(emulator)
    assert not (await cloner.OpenCall(opening(conversation="conv_0"), timeout=10)).HasField("agent_before")
    await end(cloner, "conv_0")

    first = await cloner.PrepareCall(call(speech), timeout=10)
    opened = await cloner.OpenCall(opening(UNKNOWN), timeout=10)
    second = await cloner.PrepareCall(call(speech, MARIA, "conv_2"), timeout=10)
    assert [True, False] == [first.agent_updated, second.agent_updated]
    assert [before] * 3 == [answer.agent_before for answer in (first, opened, second)]

    await end(cloner, "conv_1")
    async with asyncio.timeout(60):
        while (await cloner.OpenCall(opening(UNKNOWN), timeout=10)).HasField("agent_before"):
            await asyncio.sleep(0.01)
    third = await cloner.PrepareCall(call(speech, MARIA, "conv_3"), timeout=10)

    assert (before, False, False) == (spoken(emulator), third.agent_updated, third.HasField("agent_before"))


@ON_SQLITE
async def test_agent_that_is_never_updated(cloning, speech: bytes) -> None:
    """An agent that speaks as itself had nothing before."""
    async with cloning(agent_update="never") as cloner:
        prepared = await cloner.PrepareCall(call(speech), timeout=10)
        opened = await cloner.OpenCall(opening(), timeout=10)

    assert [False, False] == [answer.HasField("agent_before") for answer in (prepared, opened)]


@ON_SQLITE
@pytest.mark.parametrize("reason", ["SAMPLE_TOO_SHORT", "PROVIDER_BUSY"])
async def test_failure_tells_what_the_agent_had_before(
    cloning, emulator: Emulator, speech: bytes, silence, reason: str
) -> None:
    """A call that goes on without the voice is told what to override the agent with."""
    before = spoken(emulator)
    sample = silence(2.0) if reason == "SAMPLE_TOO_SHORT" else speech
    fault = Fault(method="POST", path=CREATE, times=None, error="system_busy")
    told = []
    async with cloning(provider_attempts=1) as cloner:
        for conversation in ("conv_2", "conv_3"):
            if reason == "PROVIDER_BUSY":
                emulator.faults.set(fault)
            found, (detail,) = await details(
                cloner.PrepareCall(call(sample, MARIA, conversation), timeout=10)
            )
            told.append(pb.FallbackInfo())
            assert (reason, True) == (found, detail.Unpack(told[-1]))
            emulator.faults.clear()
            await end(cloner, conversation)
            assert (await cloner.PrepareCall(call(speech), timeout=10)).agent_updated

    assert [False, True] == [info.HasField("agent_before") for info in told]
    assert before == told[1].agent_before


@ON_SQLITE
async def test_failure_before_the_fields_were_checked(cloner: CloningServiceStub, speech: bytes) -> None:
    """A request that cannot be is told its fields and nothing of the agent."""
    assert ["conversation_id"] == await fields_at_fault(
        cloner.PrepareCall(call(speech, conversation=""), timeout=10)
    )


@ON_SQLITE
async def test_voice_deleted_by_hand(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice that the provider lost is noticed once it is time to look, and used no more."""
    clock = Clock()
    async with cloning(now=clock, voice_check_minutes=10.0, **NOT_RECONCILED) as cloner:
        emulator.voices.remove((await known(cloner, speech)).voice_id)
        clock.ahead = 601
        opened = await cloner.OpenCall(opening(), timeout=10)
        again = await cloner.OpenCall(opening(conversation="conv_10"), timeout=10)

        assert [] == await listed(cloner)
    assert [(False, "", "")] * 2 == [
        (answer.HasField("voice"), answer.name, answer.first_message) for answer in (opened, again)
    ]
    assert 1 == len(emulator.requests.matching(method="GET", path=VOICE))


@ON_SQLITE
@pytest.mark.parametrize("seconds", [0.5, 1.0, None])
async def test_provider_that_hangs(cloning, emulator: Emulator, speech: bytes, seconds: float | None) -> None:
    """ElevenLabs is asked for no longer than the deadline allows: the answer has the voice."""
    clock = Clock()
    async with cloning(now=clock, **NOT_RECONCILED) as cloner:
        voice = await known(cloner, speech)
        clock.ahead = 601
        emulator.faults.set(
            Fault(method="GET", path=VOICE, times=None, hold="before"),
            Fault(method="GET", path=AGENT, times=None, hold="before"),
        )
        began = time.monotonic()
        opened = await cloner.OpenCall(opening(), timeout=seconds)
        took = time.monotonic() - began
        emulator.faults.clear()

    assert (voice, "Ivan") == (opened.voice, opened.name)
    assert 8 > took, "one try of a read may take ten seconds"


@pytest.mark.parametrize("fault", [{"error": "service_unavailable"}, {"drop": "before"}], ids=str)
@ON_SQLITE
async def test_provider_that_is_down(
    cloning, emulator: Emulator, speech: bytes, fault: dict[str, Any]
) -> None:
    """A voice that cannot be looked at is taken to be there."""
    clock = Clock()
    async with cloning(now=clock, **NOT_RECONCILED) as cloner:
        voice = await known(cloner, speech)
        clock.ahead = 601
        paths = (VOICE, AGENT)
        emulator.faults.set(*(Fault(method="GET", path=path, times=None, **fault) for path in paths))
        opened = await cloner.OpenCall(opening(), timeout=10)
        emulator.faults.clear()

    assert voice == opened.voice


@ON_SQLITE
async def test_voices_that_belong_to_one_call(cloning, speech: bytes) -> None:
    """With VOICE_REUSE=never no number finds a voice; a conversation keeps its own."""
    async with cloning(voice_reuse="never") as cloner:
        prepared = await cloner.PrepareCall(call(speech), timeout=10)
        by_number = await cloner.OpenCall(opening(), timeout=10)
        by_conversation = await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)

    assert not by_number.HasField("voice")
    assert prepared.voice == by_conversation.voice


async def test_voices_that_belong_to_a_sample(cloning, speech: bytes, samples) -> None:
    """With VOICE_REUSE=sample a number finds the newest voice of its one person, and nobody's of two."""
    clock = Clock()
    async with cloning(now=clock, voice_reuse="sample") as cloner:
        voices = []
        for name in ("speech.mp3", "speech.flac", "speech.ogg"):
            clock.ahead += 1
            request = call((samples / name).read_bytes(), conversation=f"conv_{name}")
            voices.append((await cloner.PrepareCall(request, timeout=10)).voice)
        assert 3 == len({voice.voice_id for voice in voices})
        assert voices[-1] == (await cloner.OpenCall(opening(), timeout=10)).voice

        await cloner.PrepareCall(call(speech, ANNA), timeout=10)
        assert not (await cloner.OpenCall(opening(conversation="conv_10"), timeout=10)).HasField("voice")


@ON_SQLITE
async def test_voice_without_a_consent(cloning, speech: bytes) -> None:
    """Where a consent is required, a voice that has none is not used, and is once it has."""
    async with cloning() as cloner:
        voice = (await cloner.PrepareCall(call(speech), timeout=10)).voice
    async with cloning(require_consent=True) as cloner:
        before = [
            await cloner.OpenCall(opening(conversation=conversation), timeout=10)
            for conversation in ("conv_9", "conv_1")
        ]
        await cloner.PrepareCall(call(speech, conversation="conv_2", consent="form 1"), timeout=10)
        after = await cloner.OpenCall(opening(), timeout=10)

    assert [(False, "", "")] * 2 == [
        (answer.HasField("voice"), answer.name, answer.first_message) for answer in before
    ]
    assert (voice.voice_id, "form 1", "Ivan") == (after.voice.voice_id, after.voice.consent, after.name)


@ON_SQLITE
async def test_touches_no_agent(cloning, emulator: Emulator, speech: bytes) -> None:
    """Opening changes no agent, and asks for none that must exist."""
    async with cloning(agent_update="always") as cloner:
        enrolled = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
        opened = [
            await cloner.OpenCall(opening(agent_id=agent), timeout=10)
            for agent in ("agent_demo", "agent_nowhere")
        ]

    assert [enrolled.voice] * 2 == [answer.voice for answer in opened]
    assert [False, False] == [answer.HasField("agent_before") for answer in opened]
    assert [] == emulator.requests.matching(method="PATCH")


@ON_SQLITE
async def test_call_that_ended_before_it_was_known(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A delivery that comes after the end of its call gets the voice, and the agent stays as it is."""
    assert not await end(cloner, "conv_1", agent_id="agent_demo")
    late = await cloner.PrepareCall(call(speech), timeout=10)

    assert (True, False) == (late.voice.voice_id in emulator.voices, late.agent_updated)
    assert [] == emulator.requests.matching(method="PATCH")
    assert (await cloner.PrepareCall(call(speech, conversation="conv_2"), timeout=10)).agent_updated


@ON_SQLITE
async def test_opened_after_the_end(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """A conversation whose end was told first is told how its agent speaks, and no call is in progress."""
    before = spoken(emulator)
    await cloner.PrepareCall(call(speech), timeout=10)
    assert not await end(cloner, "conv_2", agent_id="agent_demo")

    opened = await cloner.OpenCall(opening("", "conv_2"), timeout=10)
    calls = (await cloner.ListCalls(pb.ListCallsRequest(), timeout=10)).calls

    assert before == opened.agent_before
    assert ["conv_1"] == [known.conversation_id for known in calls]


async def test_forget_a_number(cloner: CloningServiceStub, database: str) -> None:
    """Of a number that nobody is known by, the calls are forgotten too, and no other's."""
    await cloner.OpenCall(opening(), timeout=10)
    await cloner.OpenCall(opening(conversation="", call_sid="CA1"), timeout=10)
    await cloner.OpenCall(opening(OTHER_NUMBER, "conv_2"), timeout=10)
    assert [(3,)] == await values(database, "SELECT count(*) FROM calls")

    alone = pb.ForgetCallerRequest(caller=pb.Caller(phone_number="+31 6 12345678"))
    forgotten = await cloner.ForgetCaller(alone, timeout=10)

    assert (0, 0) == (forgotten.voices_deleted, forgotten.voices_pending)
    assert [("conv_2",)] == await values(database, "SELECT conversation_id FROM calls")


@ON_SQLITE
async def test_number_is_not_stored(cloner: CloningServiceStub, database: str) -> None:
    """Of the number that a call came from only a hash is kept."""
    await cloner.OpenCall(opening(), timeout=10)

    assert NUMBER[1:] not in str(await values(database, "SELECT * FROM calls"))


async def test_somebody_else_at_the_number(cloner: CloningServiceStub, speech: bytes) -> None:
    """Whom a delivery names counts more than whom the number let assume: nobody gets another's voice."""
    ivan = await known(cloner, speech)
    assumed = await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)
    anna = await cloner.PrepareCall(call(speech, ANNA), timeout=10)
    again = await cloner.PrepareCall(call(speech, ANNA), timeout=10)

    assert ivan.voice_id == assumed.voice.voice_id
    assert ivan.voice_id != anna.voice.voice_id
    assert (anna.voice.voice_id, True) == (again.voice.voice_id, again.voice_reused)


@ON_SQLITE
async def test_the_same_at_the_number(cloner: CloningServiceStub, speech: bytes) -> None:
    """A delivery that names whom the number let assume gets the voice that was answered before."""
    ivan = await known(cloner, speech)
    await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)
    prepared = await cloner.PrepareCall(call(speech), timeout=10)

    assert (ivan.voice_id, True) == (prepared.voice.voice_id, prepared.voice_reused)


@ON_SQLITE
async def test_unknown_call_that_ends_twice(cloner: CloningServiceStub) -> None:
    """A call that nobody asked about stays one that nobody asked about."""
    ends = [await end(cloner, "conv_1", agent_id="agent_demo") for _ in range(2)]

    assert [False, False] == ends


async def test_call_that_has_two_names(cloner: CloningServiceStub, database: str, speech: bytes) -> None:
    """A call that was opened by its line and delivered by its conversation ends by both at once."""
    opened = await cloner.OpenCall(opening(OTHER_NUMBER, "", call_sid="CA1"), timeout=10)
    await cloner.PrepareCall(call(speech, MARIA), timeout=10)

    assert await end(cloner, "conv_1", call_id=opened.call_id, agent_id="agent_demo")
    assert [(0,)] == await values(database, "SELECT count(*) FROM calls WHERE ended_at IS NULL")


async def test_call_that_ends_under_another_name(cloner: CloningServiceStub, speech: bytes) -> None:
    """A call may end under another conversation id than it was announced with: both are over for deliveries."""
    prepared = await cloner.PrepareCall(call(speech), timeout=10)
    assert await end(cloner, "conv_2", call_id=prepared.call_id, agent_id="agent_demo")

    for conversation in ("conv_1", "conv_2"):
        late = await cloner.PrepareCall(call(speech, conversation=conversation), timeout=10)
        assert (False, prepared.voice.voice_id) == (late.agent_updated, late.voice.voice_id)


async def test_line_that_turns_out_to_be_a_conversation(
    cloner: CloningServiceStub, database: str, speech: bytes
) -> None:
    """A call that was opened by its line and ended by its conversation is one call, and is erased as one."""
    prepared = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
    opened = await cloner.OpenCall(opening(conversation="", call_sid="CA1"), timeout=10)
    ends = [await end(cloner, "conv_1", call_id=opened.call_id, agent_id="agent_demo") for _ in range(2)]
    late = await cloner.PrepareCall(call(b""), timeout=10)
    another = await end(cloner, "conv_2", call_id=opened.call_id, agent_id="agent_demo")

    about = pb.GetCallRequest(conversation_id="conv_1", agent_id="agent_demo")
    found = (await cloner.GetCall(about, timeout=10)).call
    listed = (await cloner.ListCalls(pb.ListCallsRequest(agent_id="agent_demo"), timeout=10)).calls
    assert [found] == list(listed)
    assert (opened.call_id, prepared.voice.voice_id) == (found.call_id, found.voice_id)
    assert ([True, True], False, False) == (ends, another, late.agent_updated)

    await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
    assert ["conv_2"] == [row[0] for row in await values(database, "SELECT conversation_id FROM calls")]


@pytest.mark.parametrize("reuse", ["sample", "never"])
async def test_forget_whose_voices_are_many(
    cloning, emulator: Emulator, speech: bytes, samples: Any, reuse: str
) -> None:
    """Who has a voice for each sample or call is listed and forgotten as one person."""
    async with cloning(voice_reuse=reuse) as cloner:
        for number, sample in enumerate((speech, (samples / "speech.flac").read_bytes())):
            await cloner.PrepareCall(call(sample, conversation=f"conv_{number}"), timeout=10)
            await end(cloner, f"conv_{number}")
        found = await cloner.ListVoices(pb.ListVoicesRequest(caller=IVAN), timeout=10)
        await cloner.PrepareCall(call(speech, MARIA, "conv_maria"), timeout=10)
        forgotten = await cloner.ForgetCaller(
            pb.ForgetCallerRequest(voice_id=found.voices[0].voice_id), timeout=10
        )

    assert (2, 2) == (len(found.voices), forgotten.voices_deleted)
    assert ["Maria"] == [voice.name.split("_")[0] for voice in emulator.voices.custom]


@pytest.mark.parametrize("sample_refused", [False, True])
async def test_opened_while_delivered(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes, silence, sample_refused: bool, eventually
) -> None:
    """Whom a delivery has named is not looked for by the number any more, whatever becomes of the delivery."""
    ivan = await known(cloner, speech)
    # Until then the agent is read by whoever puts it back.
    await eventually(
        lambda: emulator.agents["agent_demo"]["conversation_config"]["tts"]["voice_id"] != ivan.voice_id
    )
    emulator.faults.set(Fault(method="GET", path="/v1/convai/agents/agent_demo", delay_seconds=0.5))
    reads = len(emulator.requests.matching(path="/v1/convai/agents/agent_demo"))
    # Long enough that the agent is being read before it is refused.
    sample = silence(30.0) if sample_refused else speech
    delivered = asyncio.ensure_future(cloner.PrepareCall(call(sample, ANNA), timeout=10))
    await emulator.requests.wait(reads + 1, path="/v1/convai/agents/agent_demo")
    during = await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)
    if sample_refused:
        await details(delivered)
    else:
        assert ivan.voice_id != (await delivered).voice.voice_id
    after = await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)

    assert ivan.voice_id not in {during.voice.voice_id, after.voice.voice_id}
    assert (not sample_refused) == after.HasField("voice")


@ON_SQLITE
@pytest.mark.parametrize(
    "number",
    [
        "anonymous", "Restricted", "+266696687", "", "-", "sip:anonymous@203.0.113.7", "00000", "+0", "+10000000000",
        '"Anonymous" <sip:anonymous@anonymous.invalid>', '"+31612345678" <sip:anonymous@host>', "203.0.113.7", "n/a", "1000",
    ],
)  # fmt: skip
async def test_withheld_number(cloner: CloningServiceStub, samples: Any, speech: bytes, number: str) -> None:
    """A number that many share because it was withheld finds nobody, and tells nobody from another."""
    hidden = pb.Caller(name="Ivan", phone_number=number)
    one = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=hidden, sample=speech), timeout=10)
    other = await cloner.CloneVoice(
        pb.CloneVoiceRequest(caller=hidden, sample=(samples / "speech.flac").read_bytes()), timeout=10
    )
    opened = await cloner.OpenCall(opening(number), timeout=10)

    assert one.voice.voice_id != other.voice.voice_id
    assert not opened.HasField("voice")


@ON_SQLITE
async def test_agent_without_a_greeting(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """An agent that waits for the person is left alone: no override could silence it in another call."""
    emulator.agents["agent_demo"]["conversation_config"]["agent"]["first_message"] = ""
    prepared = await cloner.PrepareCall(call(speech), timeout=10)

    assert not prepared.agent_updated
    assert "" == spoken(emulator).first_message


@ON_SQLITE
async def test_long_greeting(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """A failure is told as such, however long the greeting is that its agent had before."""
    emulator.agents["agent_demo"]["conversation_config"]["agent"]["first_message"] = "Hello! " * 3_000
    before = spoken(emulator).voice_id
    assert (await cloner.PrepareCall(call(speech), timeout=10)).agent_updated
    reason, (detail,) = await details(cloner.PrepareCall(call(b"not audio", MARIA, "conv_2"), timeout=10))
    fallback = pb.FallbackInfo()

    assert detail.Unpack(fallback)
    assert ("SAMPLE_UNREADABLE", before, "") == (
        reason, fallback.agent_before.voice_id, fallback.agent_before.first_message
    )  # fmt: skip


@ON_SQLITE
async def test_agents_settings_that_were_not_seen(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """That nothing is known to be refused is told apart from that nothing is refused."""
    emulator.faults.set(Fault(method="GET", path="/v1/convai/agents/agent_demo", times=None, drop="before"))
    unseen = await cloner.OpenCall(opening(), timeout=1)
    emulator.faults.clear()
    seen = await cloner.PrepareCall(call(speech), timeout=10)

    assert (False, True) == (unseen.settings_seen, seen.settings_seen)


async def test_opened_while_the_agent_is_put_back(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """An agent that is about to lose the caller's voice does not count as one that has it."""
    await cloner.PrepareCall(call(speech), timeout=10)
    had = await cloner.OpenCall(opening(conversation="conv_1"), timeout=10)
    updates = len(emulator.requests.matching(method="PATCH", path=AGENT))
    emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
    await end(cloner, "conv_1")
    await emulator.requests.wait(updates + 1, method="PATCH", path=AGENT)
    during = await cloner.OpenCall(opening(), timeout=10)
    emulator.faults.release()

    assert (True, had.voice, False) == (had.agent_updated, during.voice, during.agent_updated)
