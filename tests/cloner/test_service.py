import asyncio
import hashlib
import io
import sqlite3
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.trace import StatusCode
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator, Fault, SearchLag
from tests.cloner.recordings import SAMPLES
from tests.kit.failures import failure, read, told

CREATE = "/v1/voices/add"
VOICE = "/v1/voices/{voice_id}"
AGENT = "/v1/convai/agents/{agent_id}"
SEARCH = "/v2/voices"
SILENT = "Voice sample is silent: 0.0 s of its 4.0 s are louder than -50 dBFS, at least 1.0 s needed"
TELEPHONE = (
    "Voice sample rate too low: 8000 Hz, at least 16000 Hz needed; this is 4.0 s of PCM. Record at 16000 Hz or"
    " more (converting adds nothing), or have VOICE_CLONE_MIN_SAMPLE_RATE lowered"
)
SERVER_SPAN = "precall.v1.CloningService/PrepareCall"


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: what differs between databases is tried by test_lifecycle.py, crash/ and property/."""
    return sqlite


def call(voice_sample: bytes, **changes: Any) -> pb.PrepareCallRequest:
    """A request of Ivan's for the demo agent."""
    fields = {
        "agent_id": "agent_demo",
        "conversation_id": "conv_1",
        "caller": pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number="+31612345678"),
        "sample": voice_sample,
    }
    return pb.PrepareCallRequest(**{**fields, **changes})


def another(sample: bytes, number: int = 2) -> pb.PrepareCallRequest:
    """A request of somebody else's for the same agent."""
    caller = pb.Caller(name="Maria", phone_number=f"+3168765{number:04}")
    return call(sample, conversation_id=f"conv_{number}", caller=caller)


def silence(seconds: float, rate: int = 44_100) -> bytes:
    """A WAV file that holds nothing."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(bytes(2 * int(seconds * rate)))
    return file.getvalue()


async def refusal(answer: Any) -> tuple[str, grpc.StatusCode, str]:
    """The reason, status code and message of a call that must fail."""
    found = told(await failure(answer))
    return found.reason, found.code, found.message


async def late_reason(ask: Callable[[], Awaitable[object]]) -> str:
    """The reason that a call is told whose time runs out.

    On a machine that stands still for a moment the client's own clock may be first; then it asks again.
    """
    for _ in range(30):
        ended = await failure(ask())
        assert grpc.StatusCode.DEADLINE_EXCEEDED is ended.code()
        if read(ended) is not None:
            break
    return told(ended).reason


@pytest.fixture
async def once(cloner: CloningServiceStub) -> AsyncIterator[CloningServiceStub]:
    """A client of the cloner that never asks again by itself: what is in the way of a call goes with the call."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as channel:
        yield CloningServiceStub(channel)


async def test_first_call(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Clones the voice, gives it to the agent, and says what the call needs."""
    answer = await cloner.PrepareCall(call(speech), timeout=10)

    (voice,) = emulator.voices.custom
    assert (voice.voice_id, voice.name) == (answer.voice.voice_id, answer.voice.name)
    assert answer.voice.name.startswith("Ivan_Clone_2")
    assert (False, True) == (answer.voice_reused, answer.agent_updated)
    assert "Hallo Ivan, fijn dat je belt!" == answer.first_message
    assert answer.call_id.startswith("call_")
    config = emulator.agents["agent_demo"]["conversation_config"]
    assert voice.voice_id == config["tts"]["voice_id"]
    assert "Hallo Ivan, fijn dat je belt!" == config["agent"]["first_message"]
    (file,) = [part for part in emulator.requests.matching(path=CREATE)[0].form if part.filename]
    assert ("sample.wav", "audio/wav") == (file.filename, file.content_type)
    assert hashlib.sha256(speech).hexdigest() == file.sha256


async def test_caller_without_a_name(cloner: CloningServiceStub, speech: bytes) -> None:
    """Greets without a hole in the sentence."""
    answer = await cloner.PrepareCall(call(speech, caller=None), timeout=10)

    assert "Hallo, fijn dat je belt!" == answer.first_message
    assert answer.voice.name.startswith("Caller_Clone_2")


async def test_known_caller(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """The next call creates nothing, and its sample is not even looked at."""
    first = await cloner.PrepareCall(call(speech), timeout=10)
    second = await cloner.PrepareCall(call(b"not audio", conversation_id="conv_2"), timeout=10)

    assert first.voice == second.voice
    assert second.voice_reused
    assert first.call_id != second.call_id
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_repeated_deliveries_at_once(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Twenty at once give one create and one answer."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    answers = [cloner.PrepareCall(call(speech), timeout=10) for _ in range(20)]
    gathered = asyncio.gather(*answers)
    await emulator.requests.wait(path=CREATE, stage="held")
    emulator.faults.release()

    assert 1 == len({answer.voice.voice_id for answer in await gathered})
    assert 1 == len({answer.call_id for answer in await gathered})
    assert 1 == sum(not answer.voice_reused for answer in await gathered)
    assert 1 == len(emulator.voices.custom)


async def test_failure_is_not_remembered(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """What failed once may work the next time."""
    emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))

    assert "SAMPLE_REJECTED" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]
    assert (await cloner.PrepareCall(call(speech), timeout=10)).voice.voice_id in emulator.voices


@pytest.mark.parametrize(
    ("request_changes", "field"),
    [
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": "../voices"}, "agent_id"),
        ({"agent_id": "a" * 129}, "agent_id"),
        ({"conversation_id": "  "}, "conversation_id"),
        ({"conversation_id": "a\nb"}, "conversation_id"),
        ({"conversation_id": "a" * 257}, "conversation_id"),
        ({"client_reference": "a" * 129}, "client_reference"),
        ({"client_reference": "a\nb"}, "client_reference"),
        ({"caller": pb.Caller(name="x" * 201)}, "caller.name"),
        ({"caller": pb.Caller(phone_number="1" * 65)}, "caller.phone_number"),
        ({"caller": pb.Caller(date_of_birth="\x00")}, "caller.date_of_birth"),
    ],
    ids=str,
)
async def test_invalid_field(
    cloner: CloningServiceStub,
    asked: Callable[[], list[str]],
    speech: bytes,
    request_changes: dict[str, Any],
    field: str,
) -> None:
    """Names the field, in the message and as google.rpc.BadRequest, and asks the provider nothing."""
    found = told(await failure(cloner.PrepareCall(call(speech, **request_changes), timeout=10)))

    assert [field] == found.fields
    assert found.message.startswith(field)
    assert [] == asked()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (silence(2.1), ("SAMPLE_TOO_SHORT", "Voice sample too short: 2.1 s, at least 3.0 s needed")),
        (silence(2.99), ("SAMPLE_TOO_SHORT", "Voice sample too short: 2.9 s, at least 3.0 s needed")),
        (silence(350, 16_000), ("SAMPLE_TOO_LARGE", "Voice sample too large: more than the 10.0 MB allowed")),
        (silence(4), ("SAMPLE_SILENT", SILENT)),
        (silence(4, 8_000), ("SAMPLE_RATE_TOO_LOW", TELEPHONE)),
    ],
    ids=["short", "nearly long enough", "large", "silent", "rate"],
)  # fmt: skip
async def test_sample_refused(
    cloner: CloningServiceStub, emulator: Emulator, sample: bytes, expected: tuple[str, str]
) -> None:
    """Says what was found and what is needed, and clones nothing."""
    reason, code, message = await refusal(cloner.PrepareCall(call(sample), timeout=10))

    assert (*expected, grpc.StatusCode.INVALID_ARGUMENT) == (reason, message, code)
    assert [] == emulator.requests.matching(path=CREATE)


async def test_sample_too_long(cloning, speech: bytes) -> None:
    """More audio than the setting allows is refused."""
    async with cloning(voice_clone_max_duration=4.0) as cloner:
        reason, _, message = await refusal(cloner.PrepareCall(call(speech), timeout=10))

    assert (
        "SAMPLE_TOO_LONG",
        "Voice sample too long: more than the 4.0 s allowed, of mu-law at 16000 Hz. Send a part of it",
    ) == (reason, message)


async def test_busy_machine(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Who cannot be served because the machine has no time is told so, and may try again."""
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "cloner.audio.inspection" in child.cmdline()
    ]
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        reason, code, _ = await refusal(cloner.PrepareCall(call(speech), timeout=2))
    finally:
        for worker in workers:
            worker.resume()

    assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == (reason, code)
    assert [] == emulator.requests.matching(path=CREATE)
    assert (await cloner.PrepareCall(call(speech), timeout=20)).voice.voice_id in emulator.voices


TAG = b"ID3\x03\x00\x00\x00\x00\x00\x10" + bytes(16)


@pytest.mark.parametrize(
    ("name", "front", "expected"),
    [
        ("speech.wav", TAG, ("sample.wav", "audio/wav")),
        ("speech.webm", TAG, ("sample.webm", "audio/webm")),
        ("speech.mp3", TAG, ("sample.mp3", "audio/mpeg")),
        ("speech.mp3", bytes(99), ("sample.mp3", "audio/mpeg")),
        ("layer2.mp2", b"", ("sample.mp2", "audio/mpeg")),
        ("gstreamer.webm", b"", ("sample.webm", "audio/webm")),
        ("speech.flac", b"", ("sample.flac", "audio/flac")),
    ],
)
async def test_what_is_sent_on(
    cloner: CloningServiceStub,
    emulator: Emulator,
    name: str,
    front: bytes,
    expected: tuple[str, str],
) -> None:
    """ElevenLabs gets the recording itself, byte by byte, named by its content."""
    sample = (SAMPLES / name).read_bytes()

    await cloner.PrepareCall(call(front + sample), timeout=20)

    (file,) = [part for part in emulator.requests.matching(path=CREATE)[0].form if part.filename]
    assert expected == (file.filename, file.content_type)
    assert hashlib.sha256(sample).hexdigest() == file.sha256


async def test_sample_unreadable(cloner: CloningServiceStub) -> None:
    """What is not audio is told as such."""
    assert "SAMPLE_UNREADABLE" == (await refusal(cloner.PrepareCall(call(b"<html>" * 100), timeout=10)))[0]


@pytest.mark.parametrize(
    ("method", "path", "fault", "reason", "code"),
    [
        ("POST", CREATE, {"error": "invalid_api_key"}, "PROVIDER_UNAUTHORIZED", grpc.StatusCode.FAILED_PRECONDITION),
        ("POST", CREATE, {"error": "quota_exceeded"}, "PROVIDER_PLAN_LIMIT", grpc.StatusCode.FAILED_PRECONDITION),
        ("POST", CREATE, {"error": "voice_limit_reached"}, "VOICE_SLOTS_EXHAUSTED", grpc.StatusCode.FAILED_PRECONDITION),
        ("POST", CREATE, {"error": "voice_add_edit_limit_reached"}, "VOICE_MONTHLY_LIMIT",
         grpc.StatusCode.FAILED_PRECONDITION),
        ("POST", CREATE, {"status": 200, "body": "?"}, "PROVIDER_PROTOCOL", grpc.StatusCode.INTERNAL),
        ("POST", CREATE, {"error": "system_busy"}, "PROVIDER_BUSY", grpc.StatusCode.UNAVAILABLE),
        ("POST", CREATE, {"error": "service_unavailable"}, "PROVIDER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
        ("GET", AGENT, {"error": "agent_not_found"}, "AGENT_NOT_FOUND", grpc.StatusCode.NOT_FOUND),
        ("PATCH", AGENT, {"status": 400, "body": {"detail": "no"}}, "AGENT_REJECTED",
         grpc.StatusCode.FAILED_PRECONDITION),
    ],
)  # fmt: skip
async def test_provider_failure(
    cloning, emulator: Emulator, spans, speech: bytes, method: str, path: str, fault: dict[str, Any],
    reason: str, code: grpc.StatusCode,
) -> None:  # fmt: skip
    """Each failure of the provider has its reason and code, in the answer and in the span."""
    emulator.faults.set(Fault(method=method, path=path, times=None, **fault))

    async with cloning(provider_attempts=1) as cloner:
        assert (reason, code) == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[:2]

    span = spans.one(SERVER_SPAN)
    assert (reason, code.name) == (
        span.attributes["precall.reason"],
        span.attributes["rpc.response.status_code"],
    )


async def test_agent_that_does_not_exist_costs_no_voice(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """The agent is asked for before a voice is made."""
    reason, *_ = await refusal(cloner.PrepareCall(call(speech, agent_id="agent_nowhere"), timeout=10))

    assert "AGENT_NOT_FOUND" == reason
    assert [] == emulator.requests.matching(path=CREATE)


async def test_voice_stays_when_the_agent_is_refused(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """The voice is found again by the next call."""
    emulator.faults.set(Fault(method="PATCH", path=AGENT, status=400, body={"detail": "no"}))

    assert "AGENT_REJECTED" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]
    assert (await cloner.PrepareCall(call(speech), timeout=10)).voice_reused
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("PATCH", {"error": "service_unavailable"}),
        ("PATCH", {"error": "system_busy"}),
        ("GET", {"drop": "before"}),
    ],
)
async def test_agent_not_updated_for_the_moment(
    cloning, emulator: Emulator, speech: bytes, method: str, fault: dict[str, Any]
) -> None:
    """The call gets its voice all the same; the override carries it."""
    emulator.faults.set(Fault(method=method, path=AGENT, times=None, **fault))

    async with cloning(provider_attempts=1) as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert not answer.agent_updated
    assert answer.voice.voice_id in emulator.voices


@pytest.mark.parametrize("told", ["requires_verification", "library_voice_match"])
async def test_voice_that_needs_verification_is_removed(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes, eventually, told: str
) -> None:
    """A voice that may not speak is refused, however that is told, and takes no slot for long."""
    emulator.faults.set(Fault(method="POST", path=CREATE, **{told: True}))

    assert "VOICE_NEEDS_VERIFICATION" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]
    await eventually(lambda: not emulator.voices.custom)


@pytest.mark.parametrize("fault", [{"drop": "after"}, {"truncate": True}], ids=str)
async def test_ambiguous_create_is_adopted(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes, fault: dict[str, Any]
) -> None:
    """A voice that was made although no answer came is found by its marker."""
    emulator.faults.set(Fault(method="POST", path=CREATE, **fault))

    answer = await cloner.PrepareCall(call(speech), timeout=10)

    (voice,) = emulator.voices.custom
    assert voice.voice_id == answer.voice.voice_id


async def test_ambiguous_create_that_failed_is_tried_again(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Once the marker was looked for and not found, a second create follows under a new one."""
    emulator.faults.set(Fault(method="POST", path=CREATE, drop="before"))

    answer = await cloner.PrepareCall(call(speech), timeout=15)

    assert [answer.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    first, second = emulator.requests.matching(path=CREATE)
    assert {part.text for part in first.form if part.name == "labels"} != {
        part.text for part in second.form if part.name == "labels"
    }
    assert emulator.requests.matching(path=SEARCH)


async def test_late_voice_is_removed_when_there_is_another(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """A voice that a search shows late, after a second one was made, is found by reconciling and removed."""
    emulator.faults.set(Fault(method="POST", path=CREATE, drop="after", search_lag=SearchLag(searches=5)))

    async with cloning(reconcile_seconds=0.5, reconcile_grace_seconds=0.0) as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=15)
        await eventually(lambda: 1 == len(emulator.voices.custom))

    assert [answer.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


async def test_client_that_hangs_up_does_not_stop_a_create(
    cloner: CloningServiceStub, emulator: Emulator, spans, speech: bytes
) -> None:
    """The create goes on, the next call finds the voice, and the agent is left alone meanwhile."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    answer = cloner.PrepareCall(call(speech), timeout=10)
    await emulator.requests.wait(path=CREATE, stage="held")

    answer.cancel()
    (span,) = await spans.wait(SERVER_SPAN)
    emulator.faults.release()
    await emulator.requests.wait(path=CREATE, stage="finished")

    assert [] == emulator.requests.matching(method="PATCH")
    assert ("CANCELLED", StatusCode.ERROR) == (
        span.attributes["rpc.response.status_code"],
        span.status.status_code,
    )
    assert (await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)).voice_reused
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_budget_that_ends_does_not_stop_a_create(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """The answer leaves before the deadline, with its reason; the next call finds the voice."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))

    assert "PROVIDER_TIMEOUT" == await late_reason(lambda: cloner.PrepareCall(call(speech), timeout=4))
    emulator.faults.release()
    await emulator.requests.wait(path=CREATE, stage="finished")
    assert (await cloner.PrepareCall(call(speech), timeout=10)).voice_reused
    assert [] == emulator.requests.matching(method="PATCH", stage="finished")[1:]


async def test_last_known_reason_of_a_busy_process(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A process that stands still at the deadline, and may still answer, says what it would have said."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))

    async def prepare() -> None:
        # Requests to ElevenLabs end 0.225 s before the deadline, and all else 0.075 s after that.
        asyncio.get_running_loop().call_later(1.755, time.sleep, 0.11)
        await cloner.PrepareCall(call(speech), timeout=2)

    assert "PROVIDER_TIMEOUT" == await late_reason(prepare)
    emulator.faults.release()


async def test_last_known_reason_with_a_busy_registry(
    once: CloningServiceStub, emulator: Emulator, sqlite: str, speech: bytes
) -> None:
    """What is still to be stored when time runs out changes nothing of what is told."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    loop = asyncio.get_running_loop()
    with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:

        async def prepare() -> None:
            loop.call_later(1.7, other.execute, "BEGIN IMMEDIATE")
            # It hears late that its time is over, and would wait for the registry until no answer is in time.
            loop.call_later(1.765, time.sleep, 0.05)
            try:
                await once.PrepareCall(call(speech), timeout=2)
            finally:
                other.execute("COMMIT")

        assert "PROVIDER_TIMEOUT" == await late_reason(prepare)
    emulator.faults.release()


async def test_last_known_reason_of_a_repeat(
    once: CloningServiceStub, emulator: Emulator, sqlite: str, speech: bytes, spans: Any
) -> None:
    """A repeat that waits for the first until no time is left is told the same, whatever the registry does."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:
        for asked in range(2, 60, 2):
            both = [
                asyncio.ensure_future(failure(once.PrepareCall(call(speech), timeout=2))) for _ in range(2)
            ]
            await emulator.requests.wait(path=CREATE, stage="held")
            await spans.wait("registry calls.begin", asked)
            other.execute("BEGIN IMMEDIATE")
            ended = await asyncio.gather(*both)
            other.execute("COMMIT")
            # On a machine that stands still for a moment the client's own clock may be first.
            if None not in map(read, ended):
                break
    emulator.faults.release()

    assert ["PROVIDER_TIMEOUT"] * 2 == [told(failed).reason for failed in ended]


async def test_call_that_goes_while_its_intent_is_stored(
    once: CloningServiceStub, emulator: Emulator, sqlite: str, speech: bytes
) -> None:
    """Its voice is made all the same, for the next delivery: an intent that nobody works at would be in the way."""
    reading = Fault(method="GET", path=AGENT, hold="before")
    emulator.faults.set(reading)
    with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:
        asked = asyncio.ensure_future(once.PrepareCall(call(speech), timeout=3))
        await emulator.requests.wait(path=AGENT, stage="held")
        other.execute("BEGIN IMMEDIATE")
        emulator.faults.release()
        with pytest.raises(grpc.aio.AioRpcError):
            await asked
        assert [] == emulator.requests.matching(path=CREATE)
        other.execute("COMMIT")
    await emulator.requests.wait(path=CREATE, stage="finished")

    again = await once.PrepareCall(call(speech), timeout=10)
    assert (True, True) == (again.voice_reused, again.agent_updated)
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert 1 == len(emulator.requests.matching(method="PATCH"))


async def test_last_known_reason(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Time that runs out while a create is tried again is told by what the provider said before."""
    emulator.faults.set(
        Fault(method="POST", path=CREATE, error="system_busy"),
        Fault(method="POST", path=CREATE, hold="before"),
    )

    assert "PROVIDER_BUSY" == (await refusal(cloner.PrepareCall(call(speech), timeout=2)))[0]
    emulator.faults.release()


async def test_shared_agent(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """While somebody else's call is in progress the agent keeps what it has; each answer has its own voice."""
    first = await cloner.PrepareCall(call(speech), timeout=10)
    second = await cloner.PrepareCall(another(speech), timeout=10)
    again = await cloner.PrepareCall(call(speech), timeout=10)

    assert [True, False, False] == [first.agent_updated, second.agent_updated, again.agent_updated]
    assert first.voice.voice_id != second.voice.voice_id
    config = emulator.agents["agent_demo"]["conversation_config"]
    assert first.voice.voice_id == config["tts"]["voice_id"]


async def test_agent_that_speaks_so_already_is_not_written(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A repeated delivery makes no new version of the agent."""
    await cloner.PrepareCall(call(speech), timeout=10)
    again = await cloner.PrepareCall(call(speech), timeout=10)

    assert again.agent_updated
    assert 1 == len(emulator.requests.matching(method="PATCH"))


@pytest.mark.parametrize(("mode", "expected"), [("never", [False, False]), ("always", [True, True])])
async def test_agent_update(cloning, speech: bytes, mode: str, expected: list[bool]) -> None:
    """The operator's choice goes before the rule."""
    async with cloning(agent_update=mode) as cloner:
        answers = [
            await cloner.PrepareCall(request, timeout=10) for request in (call(speech), another(speech))
        ]

    assert expected == [answer.agent_updated for answer in answers]


async def test_agent_that_was_given_to_another_call_since(cloning, emulator: Emulator, speech: bytes) -> None:
    """A repeated delivery never says that the agent has a voice which it has no more: it is given it again."""
    async with cloning(agent_update="always") as cloner:
        requests = call(speech), another(speech), call(speech), call(speech)
        answers = [await cloner.PrepareCall(request, timeout=10) for request in requests]

    assert [True] * 4 == [answer.agent_updated for answer in answers]
    assert (
        answers[0].voice.voice_id == emulator.agents["agent_demo"]["conversation_config"]["tts"]["voice_id"]
    )
    assert 3 == len(emulator.requests.matching(method="PATCH"))


async def test_many_callers_at_one_agent(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """Every caller gets a voice of their own, and the agent is written for none of them."""
    requests = [another(speech, number) for number in range(1, 21)]

    answers = await asyncio.gather(*(cloner.PrepareCall(request, timeout=20) for request in requests))

    assert 20 == len({answer.voice.voice_id for answer in answers})
    assert {voice.voice_id for voice in emulator.voices.custom} == {
        answer.voice.voice_id for answer in answers
    }
    assert [] == emulator.requests.matching(method="PATCH")


async def test_ten_megabytes(cloner: CloningServiceStub, emulator: Emulator) -> None:
    """The largest sample passes a caller with default options."""
    frames = 5 * 1024 * 1024 - 22
    sample = silence(frames / 44_100)[:44] + (b"\x00\x20\x00\xe0" * frames)[: 2 * frames]
    assert 10 * 1024 * 1024 == len(sample)

    answer = await cloner.PrepareCall(call(sample), timeout=30)

    assert answer.voice.voice_id in emulator.voices


async def test_cut_off_upload_is_never_cloned(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A connection that breaks half-way through a sample leaves nothing behind."""
    cut = asyncio.Event()

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs_reader, theirs_writer = await asyncio.open_connection("127.0.0.1", cloner.port)

        async def back() -> None:
            while piece := await theirs_reader.read(65536):
                writer.write(piece)

        backwards = asyncio.create_task(back())
        passed = 0
        while passed < 1_000_000 and (piece := await reader.read(65536)):
            theirs_writer.write(piece)
            passed += len(piece)
        await theirs_writer.drain()
        for each in (theirs_writer, writer):
            each.transport.abort()
        backwards.cancel()
        cut.set()

    async with await asyncio.start_server(cutting, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        options = (("grpc.enable_retries", 0),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await CloningServiceStub(channel).PrepareCall(call(speech + bytes(8_000_000)), timeout=10)
        await cut.wait()

    assert (await cloner.PrepareCall(another(speech), timeout=10)).voice.voice_id in emulator.voices
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_too_many_samples_at_once(cloning, emulator: Emulator, speech: bytes) -> None:
    """Memory is bounded: beyond it a request is refused at once, and told to come again."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning(sample_buffer_mb=1.5 * len(speech) / 1_048_576) as cloner:
        first = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=10))
        await emulator.requests.wait(path=CREATE, stage="held")

        reason, code, _ = await refusal(cloner.PrepareCall(another(speech), timeout=10))

        assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == (reason, code)
        emulator.faults.release()
        assert (await first).voice.voice_id
        assert (await cloner.PrepareCall(another(speech), timeout=10)).voice.voice_id


async def test_clone_voice_touches_no_agent(
    cloner: CloningServiceStub, emulator: Emulator, speech: bytes
) -> None:
    """A voice can be cloned without a call, and the call finds it."""
    caller = pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number="+31 612345678")
    cloned = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=caller, sample=speech), timeout=10)

    assert [] == emulator.requests.matching(path=AGENT)
    assert cloned.voice == (await cloner.PrepareCall(call(speech), timeout=10)).voice


async def test_get_voice(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Our voices can be read, and nobody else's."""
    made = (await cloner.PrepareCall(call(speech), timeout=10)).voice

    got = (await cloner.GetVoice(pb.GetVoiceRequest(voice_id=made.voice_id), timeout=10)).voice

    assert (made.voice_id, made.name) == (got.voice_id, got.name)
    assert got.HasField("create_time")
    premade = next(voice.voice_id for voice in emulator.voices if voice.is_premade)
    for voice_id in (premade, "nowhere"):
        answer = cloner.GetVoice(pb.GetVoiceRequest(voice_id=voice_id), timeout=10)
        assert ("NOT_FOUND", grpc.StatusCode.NOT_FOUND) == (await refusal(answer))[:2]


async def test_list_voices(cloner: CloningServiceStub, speech: bytes) -> None:
    """All of our voices, page by page."""
    made = {(await cloner.PrepareCall(another(speech, n), timeout=10)).voice.voice_id for n in range(1, 6)}

    listed: list[str] = []
    token = ""
    while True:
        page = await cloner.ListVoices(pb.ListVoicesRequest(page_size=2, page_token=token), timeout=10)
        listed += [voice.voice_id for voice in page.voices]
        if not (token := page.next_page_token):
            break

    assert 5 == len(listed)
    assert made == set(listed)
    answer = cloner.ListVoices(pb.ListVoicesRequest(page_size=-1), timeout=10)
    assert "FIELD_INVALID" == (await refusal(answer))[0]


async def test_health_and_reflection(cloner: CloningServiceStub) -> None:
    """The standard services answer, and name ours."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "precall.v1.CloningService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert health_pb2.HealthCheckResponse.SERVING == answer.status
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in reflection.ServerReflectionInfo(iter([asked])):
            assert "precall.v1.CloningService" in [s.name for s in answer.list_services_response.service]
        # Tools describe methods, too, and what there is not.
        symbols = ("precall.v1.CloningService.GetLimits", "precall.v1.Voice", "precall.v1.CloningService.No")
        asking = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=each) for each in symbols]
        assert ["file_descriptor_response", "file_descriptor_response", "error_response"] == [
            answer.WhichOneof("message_response")
            async for answer in reflection.ServerReflectionInfo(iter(asking))
        ]


async def test_one_trace(cloner: CloningServiceStub, spans, speech: bytes) -> None:
    """The caller's trace is continued, down to each request to the provider."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await cloner.PrepareCall(call(speech), timeout=10, metadata=(("traceparent", parent),))

    (server,) = await spans.wait(SERVER_SPAN)
    traced = [span for span in spans.finished() if span.context.trace_id == server.context.trace_id]
    assert "b7ad6b7169203331" == f"{server.parent.span_id:016x}"
    assert {
        ("inspect sample", server.context.span_id),
        (f"GET {AGENT}", server.context.span_id),
        (f"POST {CREATE}", server.context.span_id),
        (f"PATCH {AGENT}", server.context.span_id),
    } == {
        (span.name, span.parent.span_id)
        for span in traced
        if span.name != SERVER_SPAN and not span.name.startswith("registry ")
    }
    assert 0x0AF7651916CD43DD8448EB211C80319C == server.context.trace_id
    assert {StatusCode.UNSET} == {span.status.status_code for span in traced}
    assert {
        "rpc.system.name": "grpc",
        "rpc.method": "precall.v1.CloningService/PrepareCall",
        "rpc.response.status_code": "OK",
        "gen_ai.agent.id": "agent_demo",
        "gen_ai.conversation.id": "conv_1",
        "precall.sample.size": len(speech),
        "precall.outcome": "success",
    }.items() <= server.attributes.items()
    inspected = spans.one("inspect sample").attributes
    assert ("wav", 16_000) == (inspected["precall.sample.format"], inspected["precall.sample.rate"])
    assert 5 < inspected["precall.sample.duration"] < 7


async def test_short_deadline(cloner: CloningServiceStub, emulator: Emulator, speech: bytes) -> None:
    """Whoever has hardly any time can read why there was no answer, from us or from gRPC itself."""
    emulator.faults.set(Fault(method="POST", path="/v1/voices/add", hold="before"))
    ended = await failure(cloner.PrepareCall(call(speech), timeout=0.14))
    emulator.faults.clear()

    # Raises where the code and the message contradict the details.
    read(ended)
    assert "Unexpected" not in ended.details()
