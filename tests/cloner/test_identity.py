"""Who is meant where a caller is told: whom a number and a name find, over gRPC."""

from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator
from tests.kit.failures import failure, told
from tests.kit.voices import lasting

NUMBER = "+31612340012"
NO_NUMBERS = [
    "n/a", "anonymous", "Anonymous <sip:anonymous@anonymous.invalid>", "sip:anonymous@203.0.113.7", "00000", "+0",
    "+10000000000", "+31000000000", "203.0.113.7", "unknown", "1000", "0612340012", "alice@example.com", "+266696687", "-",
]  # fmt: skip


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here differs between databases."""
    return sqlite


async def refused(answer: Any) -> tuple[list[str], str]:
    """The fields that a call must be refused for, and what is said of them."""
    found = told(await failure(answer))
    assert ("FIELD_INVALID", grpc.StatusCode.INVALID_ARGUMENT) == (found.reason, found.code)
    return found.fields, found.message


async def cloned(cloner: CloningServiceStub, sample: bytes, **caller: str) -> str:
    """The id of a caller's voice."""
    request = pb.CloneVoiceRequest(caller=pb.Caller(**caller), sample=sample)
    return (await cloner.CloneVoice(request, timeout=10)).voice.voice_id


@pytest.mark.parametrize("name", ["", "Ivan"])
async def test_no_number_where_one_is_asked_for(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes, name: str
) -> None:
    """Whoever lists, forgets or replaces by what is no number is told so, and nobody is listed or harmed."""
    kept = {
        await cloned(cloner, speech, name=name, phone_number="anonymous"),
        await cloned(cloner, speech, name="Anna"),
        await cloned(cloner, speech, name=name, phone_number=NUMBER),
    }
    for number in NO_NUMBERS:
        caller = pb.Caller(name=name, phone_number=number)
        for answer in (
            cloner.ListVoices(pb.ListVoicesRequest(caller=caller), timeout=10),
            cloner.ForgetCaller(pb.ForgetCallerRequest(caller=caller), timeout=10),
            cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=caller, sample=speech), timeout=10),
        ):
            fields, message = await refused(answer)
            assert ["caller.phone_number"] == fields
            assert "+31612345678" in message
            assert "DEFAULT_REGION" in message
            assert len(number) < 5 or number not in message

    assert kept == {voice.voice_id for voice in emulator.voices.custom}


@pytest.mark.parametrize(
    "number",
    [
        "0031612340012", "31612340012", "sip:+31612340012@203.0.113.7", "+31612340012@host", "\u2066+31612340012\u2069",
        "+31\u00a06 12340012", "\uff0b\uff13\uff11\uff16\uff11\uff12\uff13\uff14\uff10\uff10\uff11\uff12",
        '"Anna Maria van den Berg" <sip:+31612340012@203.0.113.7:5060;transport=udp>;tag=1928301774',
    ],
)  # fmt: skip
async def test_listed_and_forgotten(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes, number: str
) -> None:
    """A caller is listed, replaced and forgotten by the number in every spelling."""
    caller = pb.Caller(name="Ivan", phone_number=number)
    await cloned(cloner, speech, name="Ivan", phone_number=NUMBER)
    replaced = await cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=caller, sample=speech), timeout=10)
    (listed,) = (await cloner.ListVoices(pb.ListVoicesRequest(caller=caller), timeout=10)).voices
    alone = pb.ForgetCallerRequest(caller=pb.Caller(phone_number=number))
    await cloner.ForgetCaller(alone, timeout=10)

    assert replaced.voice == lasting(listed)
    assert [] == [voice.voice_id for voice in emulator.voices.custom if voice.voice_id == listed.voice_id]


async def test_number_of_a_person_who_is_told_by_the_sample(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Who has no number is forgotten by the voice, and nobody else with them."""
    hidden = await cloned(cloner, speech, name="Ivan", phone_number="anonymous")
    known = await cloned(cloner, speech, name="Ivan", phone_number=NUMBER)
    forgotten = await cloner.ForgetCaller(pb.ForgetCallerRequest(voice_id=hidden), timeout=10)

    assert (1, [known]) == (forgotten.voices_deleted, [voice.voice_id for voice in emulator.voices.custom])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Zo\u00eb", "ZOE\u0308"),
        ("straße", "STRASSE"),
        ("Anna\u00a0Maria", "anna \u3000maria"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            " \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u2028",
        ),
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ],
)
async def test_one_person(cloner: CloningServiceStub, speech: bytes, one: str, other: str) -> None:
    """A person is one however the name is spelled in code points, case and spaces, and is greeted by it."""
    voices = {await cloned(cloner, speech, name=name, phone_number=NUMBER) for name in (one, other)}
    opening = pb.OpenCallRequest(agent_id="agent_demo", conversation_id="conv_1", phone_number=NUMBER)
    opened = await cloner.OpenCall(opening, timeout=10)

    assert {opened.voice.voice_id} == voices
    expected = {"Anna\u00a0Maria": "Anna Maria"}.get(one, one)
    assert (expected, f"Hallo {expected}, fijn dat je belt!") == (opened.name, opened.first_message)


@pytest.mark.parametrize("field", ["name", "date_of_birth", "phone_number"])
@pytest.mark.parametrize("text", ["a\x00b", "a\tb", "a\x85b", "a\x7fb"], ids=ascii)
async def test_control_characters(cloner: CloningServiceStub, speech: bytes, field: str, text: str) -> None:
    """Control characters are refused, and the field is named as the sender named it."""
    request = pb.PrepareCallRequest(
        agent_id="agent_demo", conversation_id="conv_1", caller=pb.Caller(**{field: text}), sample=speech
    )

    assert [f"caller.{field}"] == (await refused(cloner.PrepareCall(request, timeout=10)))[0]
