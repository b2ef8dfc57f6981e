import asyncio
import base64
import contextlib
import json
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from emulator import Emulator, Fault
from tests.system.processes import Process
from tests.system.signing import event, signed

API_KEY = "key-of-the-emulator"
SECRET = "marked-webhook-secret-51c2"
NAME = "Markedname Zyxwvut"
BIRTH = "31.01.1901"
NUMBER = "+31655511122"
CONSENT = "Markedconsent of 31 Feb"
TOKEN = "marked-initiation-token-90ad"
MARKED = {
    "name": NAME,
    "part of the name": "Zyxwvut",
    "part of the name, as the provider has it": "Markedname",
    "date of birth": BIRTH,
    "number": NUMBER,
    "number without its sign": NUMBER.removeprefix("+"),
    "webhook secret": SECRET,
    "API key": API_KEY,
    "consent": CONSENT,
    "initiation token": TOKEN,
}
CREATE = "/v1/voices/add"
AGENT = "/v1/convai/agents/{agent_id}"


@pytest.mark.long
@pytest.mark.parametrize("form", ["text", "json"])
async def test_nothing_private_is_told(  # noqa: PLR0915 - one long story
    emulator: Emulator, emulator_url: str, speech: bytes, tmp_path: Path, form: str
) -> None:
    """Tells nobody a name, number, date of birth, key, secret, signature or sample.

    Not in a log line, a span, an error answer or a process list, through success and every failure, with all
    that can be said switched on.
    """
    imports = form == "json"  # once is enough for what a process list shows
    encoded = base64.b64encode(speech).decode()
    marked = {**MARKED, "sample": encoded[2_000:2_040], "sample's bytes": repr(speech[2_000:2_020])[2:-1]}
    caller = {"name": NAME, "date_of_birth": BIRTH, "phone_number": NUMBER, "consent": CONSENT}
    sample = {"format": "base64", "data": encoded}
    answers: list[httpx.Response] = []
    signatures: list[str] = []
    async with AsyncExitStack() as stack:
        cloner = await stack.enter_async_context(
            Process("cloner", tmp_path, form, {
                "ELEVENLABS_API_KEY": API_KEY, "ELEVENLABS_BASE_URL": emulator_url, "CLONER_PORT": "0",
                "PROVIDER_ATTEMPTS": "1", "REQUIRE_CONSENT": "true", "AUDIO_WORKERS": "1",
            }, imports=imports)
        )  # fmt: skip
        gateway = await stack.enter_async_context(
            Process("gateway", tmp_path, form, {
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, "PRECALL_WEBHOOK_HOST": "127.0.0.1",
                "PRECALL_WEBHOOK_PORT": "0", "CLONER_TARGET": cloner.address, "PRECALL_BUDGET_MS": "3000",
                "CONVERSATION_INIT_TOKEN": TOKEN, "DYNAMIC_VARIABLES": '{"who": "{name}, {phone_number}"}',
            }, imports=imports)
        )  # fmt: skip
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=gateway.address, timeout=30, verify=False)
        )

        async def deliver(body: bytes, **headers: str) -> None:
            signature = signed(body, secret=SECRET)
            signatures.append(signature.rpartition("=")[2])
            given = {"Content-Type": "application/json", "ElevenLabs-Signature": signature, **headers}
            # Who stops in the middle of a body is cut off after a second, and this process may stand still as long.
            while True:
                with contextlib.suppress(httpx.ReadError, httpx.WriteError):
                    answers.append(await http.post("/webhook", content=body, headers=given))
                    break

        number = 0

        async def call(**changes: object) -> None:
            nonlocal number
            number += 1
            # A caller of the same marks each time, but not one whose voice is known.
            marks = {**caller, "name": f"{NAME} {number}"}
            given = {"caller_metadata": marks, "voice_sample": sample, "conversation_id": f"conv_{number}"}
            await deliver(json.dumps(event(**{**given, **changes})).encode())

        await call()
        for token in (TOKEN, f"{TOKEN}x", ""):
            asked = {
                "agent_id": "agent_demo",
                "caller_id": NUMBER,
                "call_sid": NUMBER,
                "sip_headers": {"X": NAME},
            }
            headers = {"Authorization": f"Bearer {token}".strip()}
            answers.append(await http.post("/webhook/conversation-init", json=asked, headers=headers))
        assert f"{NAME} 1, {NUMBER}" == answers[-3].json()["dynamic_variables"]["who"]
        await call(caller_metadata={**caller, "name": "", "consent": ""})
        await call(caller_metadata={**caller, "consent": CONSENT * 10})
        await call(caller_metadata={**caller, "consent": f"{CONSENT}\n"})
        echo = {"detail": {"status": "x", "message": f"{NAME} {NUMBER} {BIRTH} {API_KEY} {encoded}"}}
        for method, path, fault in (
            ("POST", CREATE, {"status": 400, "body": echo}),
            ("POST", CREATE, {"status": 429, "body": echo, "headers": {"x-trace-id": "0" * 32}}),
            ("POST", CREATE, {"error": "invalid_api_key"}),
            ("POST", CREATE, {"error": "voice_limit_reached"}),
            ("POST", CREATE, {"requires_verification": True}),
            ("GET", AGENT, {"status": 404, "body": echo}),
            ("GET", AGENT, {"drop": "before"}),
        ):
            emulator.faults.set(Fault(method=method, path=path, **fault))
            await call()
        # After these a voice is looked for, which takes its time: side by side.
        unclear: list[dict[str, object]] = [
            {"status": 500, "body": echo},
            {"status": 200, "body": f"{NAME} {NUMBER}"},
            {"drop": "before"},
            {"truncate": True},
            {"hold": "before"},
        ]
        emulator.faults.set(*(Fault(method="POST", path=CREATE, **fault) for fault in unclear))
        await asyncio.gather(*(call() for _ in unclear))
        assert [] == [*emulator.faults]
        emulator.faults.clear()
        await call(voice_sample={"format": "base64", "data": base64.b64encode(NAME.encode() * 100).decode()})
        await call(voice_sample={"format": "base64", "data": f"?{NAME}"})
        await call(type=NAME)
        await call(agent_id=NAME)
        await call(agent_id=[NAME])
        await call(conversation_id=f"\n{NAME}")
        await call(caller_metadata={**caller, "name": f"{NAME}\x00"})
        await call(caller_metadata=[caller])
        await deliver(f'{{"{NAME}": {NUMBER}'.encode())
        await deliver(b"\xff" + NAME.encode())
        await deliver(f"{NAME}".encode(), **{"Content-Type": "multipart/form-data; boundary=x"})
        await deliver(f"{NAME}".encode(), **{"Content-Type": f"text/{NAME.replace(' ', '')}"})
        await deliver(NAME.encode(), **{"ElevenLabs-Signature": f"t=1,v0={NUMBER}"})
        await deliver(NAME.encode(), **{"ElevenLabs-Signature": f"t={NUMBER},v1={NAME}"})
        await deliver(NAME.encode() * 2_000_000)
        answers.append(await http.get(f"/{NUMBER}", params={"name": NAME, "number": NUMBER}))
        answers.append(await http.request("MARKEDNAME", "/webhook", headers={"baggage": f"name={NUMBER}"}))
        commands = [process.command() for process in (cloner, gateway)]

    refusals = [answer for answer in answers if answer.status_code != 200]
    assert 25 <= len(refusals)
    for answer in refusals:
        assert {"status", "error_code", "reason", "error_message", "conversation_id", "trace_id"} == set(
            answer.json()
        )
    assert "INTERNAL" not in {answer.json()["reason"] for answer in refusals}
    everything = {
        "cloner": cloner.written.decode(),
        "gateway": gateway.written.decode(),
        "commands": " ".join(commands),
        "answers": " ".join(answer.text for answer in refusals),
    }
    for what, mark in {**marked, **{f"signature {n}": text for n, text in enumerate(signatures)}}.items():
        for where, text in everything.items():
            assert mark not in text, f"{what} in {where}: {text[max(0, text.index(mark) - 300) :][:600]}"
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".key")
    # The name to greet by and the consent, and nothing else, stand there in clear.
    assert NAME.encode() in stored
    assert CONSENT.encode() in stored
    for what in (
        "date of birth", "number without its sign", "webhook secret", "API key", "initiation token",
        "sample's bytes",
    ):  # fmt: skip
        assert marked[what].encode() not in stored, what
    assert "Traceback" not in everything["cloner"] + everything["gateway"]
    assert '"gen_ai.conversation.id": "conv_1"' in everything["cloner"]
    assert len(signatures) <= everything["gateway"].count("delivery answered")
