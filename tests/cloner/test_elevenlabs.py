import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloner.provider import failures
from cloner.provider.elevenlabs import AgentVoice, ElevenLabs
from cloner.provider.exchange import Api
from cloner.provider.transport import AiohttpTransport, authorities
from emulator import Emulator, Fault

API_KEY = "key-of-the-emulator"
CREATE = "/v1/voices/add"
VOICE = "/v1/voices/{voice_id}"
AGENT = "/v1/convai/agents/{agent_id}"


@pytest.fixture
async def provider(emulator_url: str) -> AsyncIterator[ElevenLabs]:
    """A client that tries three times."""
    async with AiohttpTransport(authorities()) as transport:
        api = Api(transport, base_url=emulator_url, api_key=API_KEY)
        yield ElevenLabs(api, attempts=3, concurrency=2, queue=2)


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def create(provider: ElevenLabs, sample: bytes, seconds: float = 5.0) -> str:
    """Creates a voice, and says its id."""
    voice = await provider.create_voice(
        name="Zoë_Clone_1",
        description="marker-1",
        labels={"precall": "marker-1"},
        filename="sample.mp3",
        media_type="audio/mpeg",
        sample=sample,
        deadline=soon(seconds),
    )
    return voice.voice_id


async def test_create_sends_the_form_as_documented(
    provider: ElevenLabs, emulator: Emulator, speech: bytes
) -> None:
    """Name, description, labels as one JSON text, and the file's bytes untouched, with name and type."""
    voice_id = await create(provider, speech)

    (request,) = emulator.requests.matching(path=CREATE)
    texts = {part.name: part.text for part in request.form if part.filename is None}
    (file,) = [part for part in request.form if part.filename is not None]
    assert {
        "name": "Zoë_Clone_1", "description": "marker-1", "labels": '{"precall":"marker-1"}',
    } == texts  # fmt: skip
    assert ("files", "sample.mp3", "audio/mpeg") == (file.name, file.filename, file.content_type)
    assert (len(speech), hashlib.sha256(speech).hexdigest()) == (file.size, file.sha256)
    assert "traceparent" not in request.headers
    assert "Zoë_Clone_1" == emulator.voices[voice_id].name


async def test_create_of_ten_megabytes(provider: ElevenLabs, emulator: Emulator, speech: bytes) -> None:
    """The largest sample arrives whole."""
    sample = speech + bytes(10 * 1024 * 1024 - len(speech))

    await create(provider, sample)

    (file,) = [part for part in emulator.requests[-1].form if part.filename is not None]
    assert hashlib.sha256(sample).hexdigest() == file.sha256


@pytest.mark.parametrize(
    ("fault", "expected", "maybe_done"),
    [
        ({"error": "voice_limit_reached"}, failures.SlotsExhausted, False),
        ({"error": "voice_add_edit_limit_reached"}, failures.MonthlyLimit, False),
        ({"error": "can_not_use_instant_voice_cloning"}, failures.PlanLimit, False),
        ({"error": "invalid_content"}, failures.SampleRejected, False),
        ({"error": "invalid_api_key"}, failures.Unauthorized, False),
        ({"error": "system_busy"}, failures.Busy, False),
        ({"error": "service_unavailable"}, failures.Unavailable, True),
        ({"status": 502, "body": "<html>Bad Gateway</html>"}, failures.Unavailable, True),
        ({"status": 200, "body": "not json"}, failures.ProtocolBroken, True),
        ({"status": 200, "body": {"voice": 1}}, failures.ProtocolBroken, True),
        ({"status": 307, "headers": {"Location": "http://127.0.0.1:1/"}}, failures.ProtocolBroken, True),
        ({"drop": "before"}, failures.Unavailable, True),
        ({"drop": "after"}, failures.Unavailable, True),
        ({"truncate": True}, failures.Unavailable, True),
    ],
    ids=str,
)
async def test_create_fails(
    provider: ElevenLabs, emulator: Emulator, speech: bytes, fault: dict, expected: type, maybe_done: bool
) -> None:
    """Each way to fail is told apart, sent once, and says whether a voice may exist."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, **fault))

    with pytest.raises(failures.ProviderFailure) as caught:
        await create(provider, speech)

    assert (expected, maybe_done) == (type(caught.value), maybe_done)
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_create_without_an_answer_in_time(
    provider: ElevenLabs, emulator: Emulator, speech: bytes
) -> None:
    """A deadline that passes is told as such; the voice may exist."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="after"))

    with pytest.raises(failures.TimedOut) as caught:
        await create(provider, speech, seconds=1.5)

    assert caught.value.maybe_done
    assert 1 == len(emulator.voices.custom)


async def test_connection_refused(speech: bytes) -> None:
    """Where nobody listens, nothing can have been done."""
    async with AiohttpTransport(authorities()) as transport:
        api = Api(transport, base_url="http://127.0.0.1:1", api_key=API_KEY)
        with pytest.raises(failures.Unavailable) as caught:
            await create(ElevenLabs(api, attempts=1, concurrency=2, queue=2), speech)

    assert not caught.value.maybe_done


@pytest.mark.parametrize(
    "fault",
    [{"error": "rate_limit_exceeded"}, {"error": "internal_error"}, {"drop": "before"}, {"truncate": True}],
    ids=str,
)
async def test_reads_are_tried_again(provider: ElevenLabs, emulator: Emulator, fault: dict) -> None:
    """A read outlives two failures of a kind that passes, the first on a connection that was kept."""
    await provider.subscription(deadline=soon())
    emulator.faults.set(Fault(method="GET", path=AGENT, times=2, **fault))

    agent = await provider.read_agent("agent_demo", deadline=soon())

    assert "Hello! How can I help you today?" == agent.voice.first_message
    assert 3 == len(emulator.requests.matching(path=AGENT))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [({"error": "rate_limit_exceeded"}, failures.Busy), ({"drop": "before"}, failures.Unavailable)],
    ids=str,
)
async def test_reads_end_after_so_many_tries(
    provider: ElevenLabs, emulator: Emulator, fault: dict, expected: type[Exception]
) -> None:
    """Three tries, no more."""
    emulator.faults.set(Fault(method="GET", path=AGENT, times=None, **fault))

    with pytest.raises(expected):
        await provider.read_agent("agent_demo", deadline=soon())

    assert 3 == len(emulator.requests.matching(path=AGENT))


async def test_no_pause_beyond_the_deadline(provider: ElevenLabs, emulator: Emulator) -> None:
    """A Retry-After that ends after the deadline is not waited for; the reason known is raised at once."""
    emulator.faults.set(
        Fault(method="GET", path=AGENT, times=None, error="system_busy", headers={"Retry-After": "600"})
    )
    began = time.monotonic()

    with pytest.raises(failures.Busy):
        await provider.read_agent("agent_demo", deadline=soon(30))

    assert 5 > time.monotonic() - began
    assert 1 == len(emulator.requests.matching(path=AGENT))


async def test_reason_known_before_time_ran_out(provider: ElevenLabs, emulator: Emulator) -> None:
    """Busy first and silent after: busy is what is told."""
    emulator.faults.set(
        Fault(method="GET", path=AGENT, error="system_busy"),
        Fault(method="GET", path=AGENT, times=None, hold="before"),
    )

    with pytest.raises(failures.Busy):
        await provider.read_agent("agent_demo", deadline=soon(1.5))

    assert 2 == len(emulator.requests.matching(path=AGENT))


@pytest.mark.parametrize(
    ("first", "later"),
    [({"drop": "after"}, {"error": "system_busy"}), ({"error": "system_busy"}, {"hold": "after"})],
    ids=str,
)
async def test_update_that_another_try_may_have_made(
    provider: ElevenLabs, emulator: Emulator, first: dict, later: dict
) -> None:
    """That one try was refused says nothing of the other, whose answer is lost."""
    emulator.faults.set(
        Fault(method="PATCH", path=AGENT, **first), Fault(method="PATCH", path=AGENT, times=None, **later)
    )

    with pytest.raises(failures.Busy) as caught:
        await provider.update_agent("agent_demo", AgentVoice(None, "Hi"), deadline=soon(0.9))

    assert caught.value.maybe_done


async def test_agent_update_changes_voice_and_greeting_only(
    provider: ElevenLabs, emulator: Emulator, speech: bytes
) -> None:
    """Sends the two leaves and nothing else, and reads back what the agent says now."""
    voice_id = await create(provider, speech)

    after, _ = await provider.update_agent("agent_demo", AgentVoice(voice_id, "Hi"), deadline=soon())

    assert AgentVoice(voice_id, "Hi") == after
    assert {
        "conversation_config": {"tts": {"voice_id": voice_id}, "agent": {"first_message": "Hi"}}
    } == emulator.requests[-1].json


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"error": "agent_not_found"}, failures.AgentNotFound),
        ({"status": 400, "body": {"detail": "Invalid conversation config"}}, failures.AgentRejected),
        (
            {"status": 422, "body": {"detail": [{"loc": ["body"], "msg": "x", "type": "y"}]}},
            failures.AgentRejected,
        ),
        ({"error": "missing_permissions"}, failures.Unauthorized),
    ],
    ids=str,
)
async def test_agent_update_refused(
    provider: ElevenLabs, emulator: Emulator, fault: dict, expected: type[Exception]
) -> None:
    """A refusal is final and says whose fault it is."""
    emulator.faults.set(Fault(method="PATCH", path=AGENT, times=None, **fault))

    with pytest.raises(expected):
        await provider.update_agent("agent_demo", AgentVoice("v", "Hi"), deadline=soon())

    assert 1 == len(emulator.requests.matching(method="PATCH"))


async def test_unknown_agent(provider: ElevenLabs) -> None:
    """An agent that is not there is told apart from one that is refused."""
    with pytest.raises(failures.AgentNotFound):
        await provider.read_agent("agent_nowhere", deadline=soon())


async def test_ids_cannot_leave_their_place_in_the_path(provider: ElevenLabs, emulator: Emulator) -> None:
    """An id with slashes names an agent that does not exist, and no other path."""
    with pytest.raises(failures.ProviderFailure):
        await provider.read_agent("../../voices/add", deadline=soon())

    assert [] == emulator.requests.matching(path=CREATE)


async def test_delete_of_a_voice_that_is_gone(
    provider: ElevenLabs, emulator: Emulator, speech: bytes
) -> None:
    """Gone is what was asked for, whoever did it."""
    voice_id = await create(provider, speech)

    await provider.delete_voice(voice_id, deadline=soon())
    await provider.delete_voice(voice_id, deadline=soon())

    assert [] == emulator.voices.custom


async def test_get_voice(provider: ElevenLabs, speech: bytes) -> None:
    """A voice can be read back; one that is not there is told as such."""
    voice_id = await create(provider, speech)

    assert {"precall": "marker-1"} == (await provider.get_voice(voice_id, deadline=soon())).labels
    with pytest.raises(failures.VoiceNotFound):
        await provider.get_voice("nowhere", deadline=soon())


async def test_search_finds_by_marker(provider: ElevenLabs, speech: bytes) -> None:
    """A voice is found by what its labels hold."""
    voice_id = await create(provider, speech)

    page = await provider.search_voices("marker-1", deadline=soon())

    assert [voice_id] == [voice.voice_id for voice in page.voices]
    assert [] == (await provider.search_voices("marker-2", deadline=soon())).voices


async def test_connections_are_bounded(provider: ElevenLabs, emulator: Emulator) -> None:
    """A third request waits while two are under way, and is told that we are busy when its time is up."""
    emulator.faults.set(Fault(method="GET", path=VOICE, times=2, hold="before"))
    slow = [asyncio.create_task(provider.get_voice("nowhere", deadline=soon())) for _ in range(2)]
    await emulator.requests.wait(2, path=VOICE, stage="held")

    with pytest.raises(failures.Busy):
        await provider.read_agent("agent_demo", deadline=soon(0.2))

    emulator.faults.release()
    assert [failures.VoiceNotFound] * 2 == [
        type(e) for e in await asyncio.gather(*slow, return_exceptions=True)
    ]
    assert [] == emulator.requests.matching(path=AGENT)


async def test_more_creates_than_the_plan_allows(
    provider: ElevenLabs, emulator: Emulator, speech: bytes
) -> None:
    """After ElevenLabs' word for that, a create waits until another has ended, though there is a turn."""
    emulator.faults.set(Fault(method="POST", path=CREATE, error="concurrent_limit_exceeded"))
    async with provider.turn(soon()):
        with pytest.raises(failures.Busy):
            async with provider.turn(soon()):
                await create(provider, speech)
        during = provider.full

    assert (True, False) == (during, provider.full)


TTS_VOICE, GREETING = "tts.voice_id", "agent.first_message"
BOTH = [GREETING, TTS_VOICE]


def override(tree: Any) -> dict[str, Any]:
    """Settings of an agent with these under `conversation_config_override`."""
    return {"overrides": {"conversation_config_override": tree}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (override({"agent": {"first_message": True}, "tts": {"voice_id": True}}), []),
        (override({"agent": {"first_message": True}, "tts": {"voice_id": False}}), [TTS_VOICE]),
        (override({"agent": {"first_message": False}, "tts": {"voice_id": True}}), [GREETING]),
        (override({"agent": {"first_message": False}, "tts": {"voice_id": False}}), BOTH),
        (override({"agent": {"first_message": True}, "tts": {"stability": True}}), [TTS_VOICE]),
        (override({"agent": {"language": True}, "tts": {"voice_id": True}}), [GREETING]),
        (override({"agent": {"first_message": True}}), [TTS_VOICE]),
        (override({"tts": {"voice_id": True}}), [GREETING]),
        (override({"conversation": {"text_only": True}}), BOTH),
        (override({}), BOTH),
        (override({"agent": {"first_message": None}, "tts": {"voice_id": None}}), BOTH),
        (override({"agent": {"first_message": "true"}, "tts": {"voice_id": 1}}), BOTH),
        (override({"agent": {"first_message": [True]}, "tts": {"voice_id": {"voice_id": True}}}), BOTH),
        (override({"agent": None, "tts": None}), BOTH),
        (override({"agent": "first_message", "tts": ["voice_id"]}), BOTH),
        (override({"agent": True, "tts": {"voice_id": True}}), [GREETING]),
        (override(None), []),
        (override("all"), []),
        (override(["tts"]), []),
        ({"overrides": {"custom_llm_extra_body": False}}, []),
        ({"overrides": None}, []),
        ({"overrides": "all"}, []),
        ({"overrides": [override({})]}, []),
        ({}, []),
        (None, []),
        ("all", []),
        ([{}], []),
        ("missing", []),
    ],
    ids=str,
)
async def test_settings_of_an_agent(
    provider: ElevenLabs, emulator: Emulator, settings: Any, expected: list[str]
) -> None:
    """A leaf is refused unless it is switched on; where no settings are told, nothing is known to be."""
    agent = emulator.agents["agent_demo"]
    agent["platform_settings"] = settings
    if settings == "missing":
        del agent["platform_settings"]

    assert expected == sorted((await provider.read_agent("agent_demo", deadline=soon())).refused_leaves)
