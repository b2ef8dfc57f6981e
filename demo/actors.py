"""The parties of a call: a bridge that knows the caller, ElevenLabs, a colleague's service."""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

__all__ = ["ANSWER_SECONDS", "Actors", "Person"]

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.mp3"
AGENT = "agent_demo"
ANSWER_SECONDS = 30


class Person(NamedTuple):
    """Somebody who calls."""

    name: str
    number: str
    consent: str


class Actors:
    """Speaks to gateway, cloner and emulator from outside, as other programs do."""

    def __init__(self, http: httpx.Client, *, gateway: str, cloner: str, emulator: str, secret: str) -> None:
        self._http = http
        self._gateway = gateway
        self._cloner = cloner
        self._emulator = f"{emulator}/emulator"
        self._secret = secret

    def configure(self, token: str) -> None:
        """Sets the webhooks that ElevenLabs calls."""
        self._elevenlabs(
            "PUT",
            "/webhooks",
            {
                "initiation_url": f"{self._gateway}/webhook/conversation-init",
                "initiation_headers": {"Authorization": f"Bearer {token}"},
                "post_call_url": f"{self._gateway}/webhook/post-call",
                "post_call_secret": self._secret,
            },
        )

    def enrol(self, person: Person) -> pb.Voice:
        """A colleague's service hands in a recording ahead of time, over gRPC."""
        caller = pb.Caller(name=person.name, phone_number=person.number)
        with grpc.insecure_channel(self._cloner, options=(("grpc.enable_http_proxy", 0),)) as channel:
            request = pb.CloneVoiceRequest(caller=caller, sample=SPEECH.read_bytes(), consent=person.consent)
            return CloningServiceStub(channel).CloneVoice(request, timeout=ANSWER_SECONDS).voice

    def deliver(self, person: Person, conversation_id: str, form: str) -> httpx.Response:
        """A bridge announces a call, with a recording, as JSON or as a form."""
        call: dict[str, Any] = {
            "type": "pre_call",
            "event_timestamp": int(time.time()),
            "conversation_id": conversation_id,
            "agent_id": AGENT,
            "caller_metadata": {
                "name": person.name, "phone_number": person.number, "consent": person.consent,
            },
        }  # fmt: skip
        if form == "json":
            sample = {"format": "base64", "data": base64.b64encode(SPEECH.read_bytes()).decode()}
            request = httpx.Request("POST", f"{self._gateway}/webhook", json={**call, "voice_sample": sample})
        else:
            files = [
                ("metadata", (None, json.dumps(call).encode())),
                ("voice_sample", (SPEECH.name, SPEECH.read_bytes())),
            ]
            request = httpx.Request("POST", f"{self._gateway}/webhook", files=files)
        stamp = str(int(time.time()))
        signed = hmac.new(self._secret.encode(), stamp.encode() + b"." + request.read(), hashlib.sha256)
        request.headers["ElevenLabs-Signature"] = f"t={stamp},v0={signed.hexdigest()}"
        return self._http.send(request)

    def rings(self, person: Person, client_data: dict[str, Any] | None = None) -> dict[str, Any]:
        """ElevenLabs takes a call, with data from a bridge, or after asking the webhook."""
        call = {"agent_id": AGENT, "external_number": person.number, "client_data": client_data}
        return self._elevenlabs("POST", "/calls", call)

    def hangs_up(self, conversation: dict[str, Any]) -> list[int]:
        """The call is over, and ElevenLabs reports it; returns how that was answered."""
        told = self._elevenlabs("POST", f"/calls/{conversation['conversation_id']}/end", {})
        statuses: list[int] = told["statuses"]
        return statuses

    def voices(self) -> list[str]:
        """The names of the cloned voices that ElevenLabs has."""
        state = self._elevenlabs("GET", "/state", None)
        return [voice["name"] for voice in state["voices"] if voice["category"] == "cloned"]

    def _elevenlabs(self, method: str, path: str, content: object) -> dict[str, Any]:
        answer = self._http.request(method, f"{self._emulator}{path}", json=content)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
