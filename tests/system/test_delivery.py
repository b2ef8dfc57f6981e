import asyncio
import hashlib
import time
from typing import Any

import pytest

from emulator import Fault

CREATE = "/v1/voices/add"
AGENT = "/v1/convai/agents/{agent_id}"


@pytest.mark.parametrize("form", ["json", "multipart"])
async def test_success(system, speech: bytes, form: str) -> None:
    """A signed delivery is answered with the caller's voice, and the agent speaks with it."""
    answer = await system.deliver(speech, form=form)

    assert 200 == answer.status_code
    (voice,) = system.emulator.voices.custom
    told = answer.json()
    assert 0 <= told.pop("processing_time_ms") < 5_000
    assert told["voice_name"].startswith("Ivan_Clone_2")
    call_id = told["conversation_initiation_client_data"]["dynamic_variables"]["precall_call_id"]
    assert {
        "status": "success",
        "conversation_id": "conv_1",
        "voice_id": voice.voice_id,
        "voice_name": voice.name,
        "agent_updated": True,
        "caller_info": {"Name": "Ivan", "DateOfBirth": "11.12.2007"},
        "voice_reused": False,
        "conversation_initiation_client_data": {
            "type": "conversation_initiation_client_data",
            "dynamic_variables": {"precall_call_id": call_id},
            "conversation_config_override": {
                "agent": {"first_message": "Hallo Ivan, fijn dat je belt!"},
                "tts": {"voice_id": voice.voice_id},
            },
        },
    } == told
    (file,) = [part for part in system.emulator.requests.matching(path=CREATE)[0].form if part.filename]
    assert (hashlib.sha256(speech).hexdigest(), "audio/wav") == (file.sha256, file.content_type)


async def test_every_format(system, samples) -> None:
    """Whatever a recording is, it reaches the provider untouched and under its true type."""
    for number, (name, media_type) in enumerate(
        [
            ("speech.wav", "audio/wav"), ("speech.mp3", "audio/mpeg"), ("speech.ogg", "audio/ogg"),
            ("speech.opus", "audio/ogg"), ("speech.flac", "audio/flac"), ("speech.m4a", "audio/mp4"),
            ("speech.webm", "audio/webm"),
        ]
    ):  # fmt: skip
        sample = (samples / name).read_bytes()
        caller = {"phone_number": f"+3161234500{number}"}

        answer = await system.deliver(sample, conversation_id=f"conv_{number}", caller_metadata=caller)

        assert 200 == answer.status_code, name
        (file,) = [part for part in system.emulator.requests.matching(path=CREATE)[-1].form if part.filename]
        assert (hashlib.sha256(sample).hexdigest(), media_type) == (file.sha256, file.content_type)


# How the provider fails, and what the sender is told. `attempts` is 1, so that the table is quick.
FAILURES = [
    ("POST", CREATE, {"error": "invalid_content"}, 422, "VOICE_CLONING_FAILED", "SAMPLE_REJECTED"),
    ("POST", CREATE, {"requires_verification": True}, 422, "VOICE_CLONING_FAILED", "VOICE_NEEDS_VERIFICATION"),
    ("GET", AGENT, {"error": "agent_not_found"}, 422, "AGENT_UPDATE_FAILED", "AGENT_NOT_FOUND"),
    ("PATCH", AGENT, {"status": 400, "body": {"detail": "no"}}, 422, "AGENT_UPDATE_FAILED", "AGENT_REJECTED"),
    ("POST", CREATE, {"error": "invalid_api_key"}, 502, "PROVIDER_ERROR", "PROVIDER_UNAUTHORIZED"),
    ("POST", CREATE, {"error": "can_not_use_instant_voice_cloning"}, 502, "PROVIDER_ERROR", "PROVIDER_PLAN_LIMIT"),
    ("POST", CREATE, {"error": "voice_limit_reached_2026"}, 502, "PROVIDER_ERROR", "VOICE_SLOTS_EXHAUSTED"),
    ("POST", CREATE, {"error": "voice_add_edit_limit_reached"}, 502, "PROVIDER_ERROR", "VOICE_MONTHLY_LIMIT"),
    ("POST", CREATE, {"status": 200, "body": "?"}, 502, "PROVIDER_ERROR", "PROVIDER_PROTOCOL"),
    ("POST", CREATE, {"error": "concurrent_limit_exceeded"}, 503, "PROVIDER_ERROR", "PROVIDER_BUSY"),
    ("POST", CREATE, {"error": "service_unavailable"}, 503, "PROVIDER_ERROR", "PROVIDER_UNAVAILABLE"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "fault", "status", "error_code", "reason"), FAILURES)
async def test_provider_failure(
    running, emulator, speech: bytes, method: str, path: str, fault: dict[str, Any], status: int,
    error_code: str, reason: str,
) -> None:  # fmt: skip
    """Each failure of the provider reaches the sender as the contract says."""
    emulator.faults.set(Fault(method=method, path=path, times=None, **fault))

    async with running(of_cloner={"provider_attempts": 1}) as system:
        answer = await system.deliver(speech)

    told = answer.json()
    assert (status, "error", error_code, reason) == (
        answer.status_code, told["status"], told["error_code"], told["reason"],
    )  # fmt: skip
    assert "conv_1" == told["conversation_id"]
    assert told["trace_id"] == answer.headers["traceresponse"].split("-")[1]


async def test_sample_too_short(system, silence) -> None:
    """The words of the contract."""
    told = (await system.deliver(silence(2.1))).json()

    assert "Voice sample too short: 2.1 s, at least 3.0 s needed" == told["error_message"]


async def test_budget(running, emulator, speech: bytes) -> None:
    """The answer leaves within the budget; what was begun is finished, and the next delivery finds it."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))

    async with running(of_gateway={"precall_budget_ms": 2_000}) as system:
        began = time.monotonic()
        answer = await system.deliver(speech)

        assert 10 > time.monotonic() - began, "unless told otherwise, the budget is fifteen seconds"
        assert (504, "PROVIDER_TIMEOUT") == (answer.status_code, answer.json()["reason"])
        emulator.faults.release()
        await emulator.requests.wait(path=CREATE, stage="finished")
        again = await system.deliver(speech)

    assert (200, True) == (again.status_code, again.json()["voice_reused"])
    assert 1 == len(emulator.voices.custom)


async def test_cloner_that_is_not_there(running, speech: bytes) -> None:
    """The sender is told to come again; the gateway lives, and says that it is not ready."""
    async with running(of_gateway={"cloner_target": "127.0.0.1:1"}) as system:
        answer = await system.deliver(speech)
        ready = await system.http.get("/health/ready")
        live = await system.http.get("/health/live")

    assert (503, "CLONER_UNAVAILABLE") == (answer.status_code, answer.json()["reason"])
    assert (503, 200) == (ready.status_code, live.status_code)


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "nonsense",
        "t=1,v0=" + "0" * 64,
        f"t={int(time.time())},v0=" + "0" * 64,
    ],
    ids=["missing", "malformed", "stale", "wrong"],
)
async def test_strangers_cause_no_work(system, speech: bytes, spans, asked, signature: str | None) -> None:
    """Neither the cloner nor the provider hears of a delivery that is not signed, or not now."""
    headers = {} if signature is None else {"ElevenLabs-Signature": signature}

    answer = await system.http.post("/webhook", json={"data": speech.hex()}, headers=headers)

    assert (401, "INVALID_SIGNATURE") == (answer.status_code, answer.json()["error_code"])
    assert [] == asked()
    assert {"POST /webhook"} == {span.name for span in spans.of_delivery()} - {"receive body"}


@pytest.mark.parametrize("form", ["json", "multipart"])
async def test_ten_megabytes(system, silence, form: str) -> None:
    """The largest sample passes both hops in both forms; one byte more is refused."""
    frames = 5 * 1024 * 1024 - 22
    sample = silence(frames / 44_100)[:44] + (b"\x00\x20\x00\xe0" * frames)[: 2 * frames]

    answer = await system.deliver(sample, form=form)
    refused = await system.deliver(sample + b"\x00", form=form)

    assert (200, 413) == (answer.status_code, refused.status_code)
    assert "SAMPLE_TOO_LARGE" == refused.json()["reason"]


async def test_repeated_deliveries_at_once(system, speech: bytes) -> None:
    """Ten at once name one voice."""
    answers = await asyncio.gather(*(system.deliver(speech) for _ in range(10)))

    assert [200] * 10 == [answer.status_code for answer in answers]
    assert 1 == len({answer.json()["voice_id"] for answer in answers})
    assert 1 == len(system.emulator.voices.custom)
