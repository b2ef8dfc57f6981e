import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from cloner import server as cloner
from cloner.settings import Settings as ClonerSettings
from emulator import Emulator
from environment import Secret
from gateway import app as gateway
from gateway.settings import Settings as GatewaySettings
from tests.kit.cloning import TICK_SECONDS
from tests.kit.inspection import OF_ITS_OWN, Inspection
from tests.system.signing import event, signed

API_KEY = "key-of-the-emulator"
SECRET = "secret-of-the-webhook"


@dataclass
class System:
    """The whole way of a delivery, over real sockets."""

    http: httpx.AsyncClient
    emulator: Emulator
    cloner: str
    """Where the cloner listens."""

    async def end(self, conversation_id: str = "conv_1", path: str = "/webhook/post-call") -> httpx.Response:
        """One signed event that says that a call is over."""
        data = {"conversation_id": conversation_id, "agent_id": "agent_demo"}
        body = json.dumps({"type": "post_call_transcription", "data": data}).encode()
        headers = {"ElevenLabs-Signature": signed(body, secret=SECRET)}
        return await self.http.post(path, content=body, headers=headers)

    async def deliver(
        self, sample: bytes, *, form: str = "json", encoding: str = "utf-8", **changes: Any
    ) -> httpx.Response:
        """One signed delivery."""
        if form == "json":
            data = {"format": "base64", "data": base64.b64encode(sample).decode(), "duration_seconds": 5.2}
            document = json.dumps({**event(**changes), "voice_sample": data}, ensure_ascii=False)
            request = self.http.build_request(
                "POST",
                "/webhook",
                content=document.encode(encoding, "backslashreplace"),
                headers={"Content-Type": "application/json"},
            )
        else:
            files = {
                "metadata": (
                    None,
                    json.dumps(event(**changes), ensure_ascii=False).encode(encoding, "backslashreplace"),
                    "application/json",
                ),
                "voice_sample": ("sample.mp3", sample, "audio/mpeg"),
            }
            request = self.http.build_request("POST", "/webhook", files=files)
        body = await request.aread()
        request.headers["ElevenLabs-Signature"] = signed(body, secret=SECRET)
        return await self.http.send(request)


Running = Callable[..., AbstractAsyncContextManager[System]]


@pytest.fixture
def running(spans, emulator: Emulator, emulator_url: str, sqlite: str, inspection: Inspection) -> Running:
    """Runs gateway and cloner with these settings, in front of the emulator."""

    @asynccontextmanager
    async def start(
        *,
        of_gateway: dict[str, Any] | None = None,
        of_cloner: dict[str, Any] | None = None,
        tracing: TracerProvider | None = None,
    ) -> AsyncIterator[System]:
        cloner_settings = ClonerSettings(
            elevenlabs_api_key=Secret(API_KEY),
            elevenlabs_base_url=emulator_url,
            cloner_port=0,
            database_url=sqlite,
            audio_workers=1,
            shutdown_grace_seconds=5.0,
            drain_seconds=0.0,
            **(of_cloner or {}),
        )
        async with cloner.serving(
            cloner_settings,
            tracing or spans.provider("cloner"),
            tick_seconds=TICK_SECONDS,
            still_seconds=0.0,  # the gateway is not connected any more
            inspector=None if (of_cloner or {}).keys() & OF_ITS_OWN else inspection,
        ) as port:
            gateway_settings = GatewaySettings(
                **{
                    "elevenlabs_webhook_secret": (Secret(SECRET),),
                    "precall_webhook_host": "127.0.0.1",
                    "precall_webhook_port": 0,
                    "cloner_target": f"127.0.0.1:{port}",
                    "shutdown_grace_seconds": 5,
                    "drain_seconds": 0.0,
                    **(of_gateway or {}),
                }
            )
            listener = gateway.listening(gateway_settings)
            async with (
                gateway.serving(gateway_settings, tracing or spans.provider("gateway"), listener) as url,
                # It speaks no TLS: to read whom it would trust takes 20 ms.
                httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http,
            ):
                yield System(http, emulator, f"127.0.0.1:{port}")

    return start


@pytest.fixture
async def system(running: Running) -> AsyncIterator[System]:
    """Gateway, cloner and emulator with their default settings."""
    async with running() as started:
        yield started
