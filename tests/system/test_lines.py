"""What real processes write, line by line."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from precall_client import connect

from emulator import Emulator, Fault
from tests.kit.lines import EVERYWHERE, table
from tests.system.processes import Process
from tests.system.signing import event, signed

SECRET, API_KEY = "secret-of-the-webhook", "key-of-the-emulator"
QUIET = {"OTEL_TRACES_EXPORTER": "none", "LOG_LEVEL": "INFO"}
IDS = {
    "gen_ai.agent.id": "agent_demo",
    "gen_ai.conversation.id": "conv_1",
}


@pytest.mark.long
async def test_every_line_is_one_of_the_table(
    emulator: Emulator, emulator_url: str, speech: bytes, tmp_path: Path, eventually: Any
) -> None:
    """The story of a call, with what goes wrong on its way, in lines that `docs/LOGS.md` lists."""
    sample = {"format": "base64", "data": base64.b64encode(speech).decode()}
    cloner = Process(
        "cloner", tmp_path, "json",
        {
            "ELEVENLABS_API_KEY": API_KEY, "ELEVENLABS_BASE_URL": emulator_url, "CLONER_PORT": "0",
            "PROVIDER_ATTEMPTS": "1", "AUDIO_WORKERS": "1", **QUIET,
        },
    )  # fmt: skip
    async with cloner:
        gateway = Process(
            "gateway", tmp_path, "json",
            {
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, "PRECALL_WEBHOOK_HOST": "127.0.0.1",
                "PRECALL_WEBHOOK_PORT": "0", "CLONER_TARGET": cloner.address, **QUIET,
            },
        )  # fmt: skip
        async with gateway, httpx.AsyncClient(base_url=gateway.address, timeout=30, verify=False) as http:

            async def send(told: dict[str, Any], path: str = "/webhook", secret: str = SECRET) -> int:
                body = json.dumps(told).encode()
                headers = {
                    "Content-Type": "application/json",
                    "ElevenLabs-Signature": signed(body, secret=secret),
                }
                return (await http.post(path, content=body, headers=headers)).status_code

            call = event(voice_sample=sample)
            assert 200 == await send(call)
            assert 200 == await send(call)
            assert 401 == await send(call, secret="another")
            ended = {
                "type": "post_call_transcription",
                "data": {"conversation_id": "conv_1", "agent_id": "agent_demo"},
            }
            assert 404 == await send(ended, "/webhook/post-cal")
            assert 200 == await send(ended, "/webhook/post-call")
            await eventually(lambda: 2 == len(emulator.requests.matching(method="PATCH")))
            emulator.faults.set(Fault(method="POST", path="/v1/voices/add", error="invalid_api_key"))
            another = {"name": "Maria", "phone_number": "+31612345679"}
            assert 502 == await send({**call, "conversation_id": "conv_2", "caller_metadata": another})
            async with connect(cloner.address) as client:
                (voice,) = emulator.voices.custom
                await client.delete_voice(voice.voice_id)
            await eventually(lambda: not [*emulator.voices.custom])

    lines = [
        json.loads(line)
        for process in (cloner, gateway)
        for line in process.written.decode().splitlines()
        if " ready on " not in line
    ]
    listed = table()
    for line in lines:
        known = listed[line["event"]]
        assert line["level"] in known.levels, line
        assert known.by in (line["service.name"], "both"), line
        assert line.keys() <= EVERYWHERE | known.keys, line
    story = [(line["event"], line.get("precall.reason")) for line in lines]
    for expected in (
        ("delivery answered", None), ("delivery answered", "SIGNATURE_MISMATCH"),
        ("delivery answered", "PROVIDER_UNAUTHORIZED"), ("delivery answered", "call_ended"),
        ("request refused", "NOT_FOUND"), ("request answered", None), ("call opened", None),
        ("voice created", None), ("voice used", None), ("agent given", None), ("call ended", "reported"),
        ("agent restored", None), ("provider refused", "PROVIDER_UNAUTHORIZED"), ("voice given up", "deleted"),
        ("voice deleted", "deleted"),
    ):  # fmt: skip
        assert expected in story
    of_call = [
        line
        for line in lines
        if line["event"] in ("call opened", "voice created", "agent given", "call ended")
    ]
    assert all(
        IDS.items() <= line.items() for line in of_call if line.get("gen_ai.conversation.id") != "conv_2"
    )
    (mistyped,) = [line for line in lines if line["event"] == "request refused"]
    assert ("/webhook/post-cal", "warning", 404) == (
        mistyped["url.path"], mistyped["level"], mistyped["http.response.status_code"],
    )  # fmt: skip
