"""A whole life of two callers, with the emulator as ElevenLabs, and with each part down or hanging at each step."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from cloner import server as cloner
from cloner.settings import Settings as ClonerSettings
from emulator import Conversation, Emulator, Webhooks
from environment import Secret
from gateway import app as gateway
from gateway.settings import Settings as GatewaySettings
from tests.kit.cloning import TICK_SECONDS
from tests.kit.failures import read
from tests.kit.inspection import Inspection
from tests.kit.postgres import new_database
from tests.kit.relay import Relay
from tests.kit.rows import rows
from tests.system.signing import event, signed

API_KEY = "key-of-the-emulator"
SECRET = "secret-of-the-webhook"
TOKEN = "token-of-the-initiation"
AGENT = "agent_demo"
ITSELF = ("EXAVITQu4vr4xnSDxMaL", "Hello! How can I help you today?")
MARIA = {"name": "Maria", "phone_number": "+31687654321"}
IVAN = {"name": "Ivan", "phone_number": "+31612345678"}
GREETING = "Hallo {}, fijn dat je belt!"

PRECALL_MS, INIT_MS = 2_000, 800
ENROL_SECONDS = 2.0
COMPLETE_SECONDS = 5.0  # what the gateway gives the cloner for the end of a call
# How long ElevenLabs and a bridge wait for the gateway, and while nothing comes of it.
LONG_SECONDS, SHORT_SECONDS = 30.0, 1.0
ROUND_SECONDS = 1.0  # what a busy machine may add
LEISURE_MS = 20_000  # where nothing is down, and it is not about time
ATTEMPTS = 6
PARTS = ("gateway", "cloner", "provider", "database")


@dataclass
class Life:
    """Everything there is, with a relay in front of each part, and what was seen."""

    emulator: Emulator
    relays: dict[str, Relay]
    http: httpx.AsyncClient
    stub: CloningServiceStub
    database: str
    took: float = 0.0
    calls: dict[str, Conversation] = field(default_factory=dict)

    def patient(self, seconds: float) -> None:
        """From now on ElevenLabs and the bridge wait so long for an answer of the gateway."""
        self.emulator.calls.webhooks = msgspec.structs.replace(
            self.emulator.calls.webhooks, timeout_seconds=seconds
        )
        self.http.timeout = seconds

    async def enrol(self, speech: bytes) -> str:
        """Maria's recording is handed in ahead of time. What came of it, in one word."""
        request = pb.CloneVoiceRequest(caller=pb.Caller(**MARIA), sample=speech, consent="form 17")
        try:
            await self.stub.CloneVoice(request, timeout=ENROL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            return _reason(failure)
        return "enrolled"

    async def rings(self, number: str = MARIA["phone_number"], data: Any = None) -> Conversation:
        """ElevenLabs takes a call, and asks how it is to start, unless a bridge says so."""
        call = await self.emulator.calls.start(agent_id=AGENT, external_number=number, client_data=data)
        self.calls[call.conversation_id] = call
        return call

    async def deliver(self, speech: bytes, conversation_id: str) -> dict[str, Any]:
        """A bridge announces Ivan's call with a recording. The answer, or why there is none."""
        sample = {"format": "base64", "data": base64.b64encode(speech).decode()}
        told = event(conversation_id=conversation_id, caller_metadata=IVAN, voice_sample=sample)
        body = json.dumps(told).encode()
        headers = {"Content-Type": "application/json", "ElevenLabs-Signature": signed(body, secret=SECRET)}
        try:
            answer = await self.http.post("/webhook", content=body, headers=headers)
        except httpx.TransportError as failure:
            return {"status": type(failure).__name__}
        assert 200 == answer.status_code, answer.text
        return answer.json()

    async def hangs_up(self, call: Conversation, *events: str) -> list[int]:
        """The call is over, and ElevenLabs says so."""
        return await self.emulator.calls.end(
            call.conversation_id, events=events or ("post_call_transcription",)
        )

    @property
    def agent(self) -> tuple[str, str]:
        """How the agent speaks."""
        config = self.emulator.agents[AGENT]["conversation_config"]
        return config["tts"]["voice_id"], config["agent"]["first_message"]

    def voices(self) -> list[str]:
        """Whose voices ElevenLabs has."""
        return sorted(voice.name.split("_")[0] for voice in self.emulator.voices.custom)

    async def rows(self) -> list[tuple[str, str]]:
        """The voices in the registry that are not over: whose, and in which state."""
        found = await rows(self.database, "SELECT name, state FROM voices WHERE closed_at IS NULL")
        return sorted((row["name"].split("_")[0], row["state"]) for row in found)

    async def settled(self, *expected: str) -> None:
        """Waits until there are just these voices, everywhere, and the agent speaks as itself."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 30
        while True:
            seen = (self.voices(), await self.rows(), self.agent)
            if seen == (sorted(expected), [(name, "ready") for name in sorted(expected)], ITSELF):
                return
            assert loop.time() < until, seen
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _lived(
    emulator: Emulator,
    emulator_url: str,
    postgres: str,
    spans: Any,
    inspection: Inspection,
    *,
    precall_ms: int,
    init_ms: int,
) -> AsyncIterator[Life]:
    database = new_database(postgres)
    async with AsyncExitStack() as stack:

        async def relay(target: str) -> Relay:
            return await stack.enter_async_context(Relay(target).listening())

        to_database = await relay(postgres.rpartition("@")[2])
        to_provider = await relay(emulator_url.removeprefix("http://"))
        port = await stack.enter_async_context(
            cloner.serving(
                ClonerSettings(
                    elevenlabs_api_key=Secret(API_KEY),
                    elevenlabs_base_url=f"http://{to_provider.address}",
                    cloner_port=0,
                    database_url=database.replace(postgres.rpartition("@")[2], to_database.address),
                    caller_hash_key=Secret("key-of-the-hashes"),
                    audio_workers=1,
                    voice_clone_keep_hours=0,
                    require_consent=False,
                    provider_timeout_seconds=4.0,
                    reconcile_seconds=1.0,
                    reconcile_grace_seconds=0.0,
                    shutdown_grace_seconds=0.0,
                ),
                spans.provider("cloner"),
                tick_seconds=TICK_SECONDS,
                inspector=inspection,
            )
        )
        to_cloner = await relay(f"127.0.0.1:{port}")
        settings = GatewaySettings(
            elevenlabs_webhook_secret=(Secret(SECRET),),
            precall_webhook_host="127.0.0.1",
            precall_webhook_port=0,
            cloner_target=to_cloner.address,
            precall_fallback="default_voice",
            precall_budget_ms=precall_ms,
            conversation_init_token=(Secret(TOKEN),),
            conversation_init_budget_ms=init_ms,
            dynamic_variables={"customer_name": "{name|friend}"},
            shutdown_grace_seconds=0.0,
        )
        url = await stack.enter_async_context(
            gateway.serving(settings, spans.provider("gateway"), gateway.listening(settings))
        )
        to_gateway = await relay(url.removeprefix("http://"))
        emulator.calls.webhooks = Webhooks(
            initiation_url=f"http://{to_gateway.address}/webhook/conversation-init",
            initiation_headers={"Authorization": f"Bearer {TOKEN}"},
            post_call_url=f"http://{to_gateway.address}/webhook/post-call",
            post_call_secret=SECRET,
        )
        placeholders = {"customer_name": "somebody"}
        variables = emulator.agents[AGENT]["conversation_config"]["agent"]["dynamic_variables"]
        variables["dynamic_variable_placeholders"] = placeholders
        relays = {
            "gateway": to_gateway, "cloner": to_cloner, "provider": to_provider, "database": to_database,
        }  # fmt: skip
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{to_gateway.address}", verify=False)
        )
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(
                to_cloner.address,
                options=(("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 100)),
            )
        )
        lived = Life(emulator, relays, http, CloningServiceStub(channel), database)
        lived.patient(LONG_SECONDS)
        yield lived
        for relay_ in relays.values():
            await relay_.mend()


@pytest.fixture
def lives(
    emulator: Emulator, emulator_url: str, postgres: str, spans: Any, inspection: Inspection
) -> Callable[..., Any]:
    """Begins a life, on Postgres."""
    return partial(_lived, emulator, emulator_url, postgres, spans, inspection)


async def test_whole_life(lives: Callable[[], Any], speech: bytes) -> None:
    """Enrol, initiation webhook, call, events, clean-up, second call: each is heard, and nothing is left."""
    async with lives(precall_ms=LEISURE_MS, init_ms=LEISURE_MS) as life:
        assert "enrolled" == await life.enrol(speech)
        first = await life.rings()
        answer = await life.deliver(speech, "conv_ivan")
        second = await life.rings(IVAN["phone_number"], answer["conversation_initiation_client_data"])
        others = await life.rings("+31600000000")

        (maria, ivan) = (
            next(voice.voice_id for voice in life.emulator.voices.custom if voice.name.startswith(name))
            for name in ("Maria", "Ivan")
        )
        # Maria's call at the agent is in progress, so the agent was not updated for Ivan's.
        assert ("success", False, ITSELF) == (answer["status"], answer["agent_updated"], life.agent)
        assert [
            (maria, GREETING.format("Maria"), "Maria"),
            (ivan, GREETING.format("Ivan"), "Ivan"),
            (*ITSELF, "friend"),
        ] == [
            (call.voice_id, call.first_message, call.dynamic_variables["customer_name"])
            for call in (first, second, others)
        ]

        audio = (
            "post_call_audio",
            "post_call_transcription_otel",
            "post_call_transcription",
            "something_new",
        )
        assert [200] * 4 == await life.hangs_up(first, *audio)
        assert [200] == await life.hangs_up(second)
        assert [200] == await life.hangs_up(others, "call_initiation_failure")
        await life.settled("Maria")

        again = await life.rings()
        answer = await life.deliver(speech, "conv_ivan_2")
        assert (maria, "success") == (again.voice_id, answer["status"])
        # Nobody tells the end of a call that was announced and never taken; this one is told by its id.
        await life.stub.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_ivan_2"))
        assert [200] == await life.hangs_up(again)
        await life.settled("Maria")
        await life.stub.ForgetCaller(pb.ForgetCallerRequest(caller=pb.Caller(**MARIA)), timeout=10)
        await life.settled()
        assert [] == [fault for call in life.calls.values() for fault in call.faults]


async def test_restart(running: Any, emulator: Emulator, speech: bytes) -> None:
    """A call that began before everything was restarted ends after it, and the next one is known."""
    settings = {
        "of_gateway": {"conversation_init_token": (Secret(TOKEN),)},
        "of_cloner": {"voice_clone_keep_hours": 0.0},
    }

    def point_to(system: Any) -> None:
        emulator.calls.webhooks = Webhooks(
            initiation_url=f"{system.http.base_url}/webhook/conversation-init",
            initiation_headers={"Authorization": f"Bearer {TOKEN}"},
            post_call_url=f"{system.http.base_url}/webhook/post-call",
            post_call_secret=SECRET,
        )

    async with running(**settings) as system:
        point_to(system)
        answer = (await system.deliver(speech)).json()
        heard = answer["conversation_initiation_client_data"]
        delivered = await emulator.calls.start(agent_id=AGENT, client_data=heard)
        opened = await emulator.calls.start(
            agent_id=AGENT, external_number=IVAN["phone_number"], tell_conversation_id=False
        )
        assert answer["voice_id"] == delivered.voice_id == opened.voice_id
    async with running(**settings) as system:
        point_to(system)
        again = await emulator.calls.start(agent_id=AGENT, external_number=IVAN["phone_number"])
        statuses = [
            await emulator.calls.end(call.conversation_id) for call in (opened, delivered, opened, again)
        ]
        assert ([[200]] * 4, answer["voice_id"]) == (statuses, again.voice_id)
        async with asyncio.timeout(60):
            while emulator.voices.custom:
                await asyncio.sleep(0.02)
        config = emulator.agents[AGENT]["conversation_config"]
        assert ITSELF == (config["tts"]["voice_id"], config["agent"]["first_message"])


# What comes of each step while a part is down, and while it hangs.
ENROL = {
    "gateway": ("enrolled", "enrolled"),
    "cloner": ("UNAVAILABLE", "DEADLINE_EXCEEDED"),
    "provider": ("PROVIDER_UNAVAILABLE", "PROVIDER_TIMEOUT"),
    "database": ("REGISTRY_UNAVAILABLE", "REGISTRY_UNAVAILABLE"),
}
RING = {
    "gateway": ("not started", "not started"),
    "cloner": ("itself", "itself"),
    "provider": ("Maria", "Maria"),
    "database": ("itself", "itself"),
}
DELIVER = {
    "gateway": ("ConnectError", "ReadTimeout"),
    "cloner": ("CLONER_UNAVAILABLE", "PROVIDER_TIMEOUT"),
    "provider": ("PROVIDER_UNAVAILABLE", "PROVIDER_TIMEOUT"),
    "database": ("REGISTRY_UNAVAILABLE", "REGISTRY_UNAVAILABLE"),
}
HANG_UP = {"gateway": (0, 0), "cloner": (503, 503), "provider": (200, 200), "database": (503, 503)}
MODES = ("down", "hang")


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", PARTS)
async def test_part_that_fails(lives: Callable[[], Any], speech: bytes, part: str, mode: str) -> None:
    """Whatever fails at whatever step, each answer is what it should be, in time, and nothing is left behind."""
    which = MODES.index(mode)
    async with lives(precall_ms=PRECALL_MS, init_ms=INIT_MS) as life:
        relay = life.relays[part]

        async def comes_out(expected: Any, attempt: Callable[[], Any], *, seconds: float) -> None:
            """So does the step, no later than this, and after it the part works again.

            A machine that stands still for a moment makes it late, or otherwise, now and then, and not each time.
            """
            await getattr(relay, mode)()
            if part == "gateway":
                life.patient(SHORT_SECONDS)
            for _ in range(ATTEMPTS):
                began = time.monotonic()
                seen = await attempt()
                in_time = time.monotonic() - began < seconds
                if (seen, in_time) == (expected, True):
                    break
            await relay.mend()
            life.patient(LONG_SECONDS)
            assert (expected, True) == (seen, in_time)

        await comes_out(
            ENROL[part][which], lambda: life.enrol(speech), seconds=ENROL_SECONDS + 3 * ROUND_SECONDS
        )
        # Handed in again, until it is taken: what was begun is found, and made no second time.
        await _until(lambda: life.enrol(speech), "enrolled")
        await life.settled("Maria")

        # The gateway's own part is what it answers; with it gone, ElevenLabs has nobody to ask.
        async def rings() -> tuple[str, bool]:
            call = await life.rings()
            return _heard(call), bool(call.faults)

        await comes_out(
            (RING[part][which], part == "gateway"),
            rings,
            seconds=INIT_MS / 1000 + 3 * ROUND_SECONDS,
        )
        call = await _until_heard(life)

        answer: dict[str, Any] = {}

        async def deliver() -> tuple[str, bool]:
            nonlocal answer
            answer = await life.deliver(speech, "conv_1")
            in_time = answer.get("processing_time_ms", 0) <= PRECALL_MS + 1000 * ROUND_SECONDS
            return answer.get("reason", answer["status"]), in_time

        # A sender whose gateway hangs gives up by itself.
        await comes_out((DELIVER[part][which], True), deliver, seconds=PRECALL_MS / 1000 + 3 * ROUND_SECONDS)
        if answer["status"] == "fallback":
            ivan = await life.rings(IVAN["phone_number"], answer["conversation_initiation_client_data"])
            assert ("itself", []) == (_heard(ivan), ivan.faults)
        # Late work never touches an agent.
        assert ITSELF == life.agent
        answer = await _until_prepared(life, speech)
        ivan = await life.rings(IVAN["phone_number"], answer["conversation_initiation_client_data"])
        assert "Ivan" == _heard(ivan)

        async def hang_up() -> list[list[int]]:
            return await asyncio.gather(life.hangs_up(call), life.hangs_up(ivan))

        await comes_out([[HANG_UP[part][which]]] * 2, hang_up, seconds=COMPLETE_SECONDS + 3 * ROUND_SECONDS)
        for ended in (call, ivan):
            # Sent again, as ElevenLabs does after a 5xx.
            await _until(lambda ended=ended: life.hangs_up(ended), [200])
        for told in list(life.calls.values()):
            await life.hangs_up(told)
        await life.stub.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_1"), timeout=10)
        await life.settled("Maria")
        await _until_heard(life)


async def _until(attempt: Callable[[], Any], expected: Any) -> None:
    """Tries again until it comes out as expected."""
    async with asyncio.timeout(60):
        while await attempt() != expected:
            await asyncio.sleep(0.1)


async def _until_heard(life: Life) -> Conversation:
    async with asyncio.timeout(60):
        while True:
            call = await life.rings()
            if _heard(call) == "Maria":
                return call
            await life.hangs_up(call)


async def _until_prepared(life: Life, speech: bytes) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (answer := await life.deliver(speech, "conv_1"))["status"] != "success":
            await asyncio.sleep(0.1)
        return answer


def _heard(call: Conversation) -> str:
    """Whose voice and greeting a call began with."""
    if call.voice_id is None:
        return "not started"
    if (call.voice_id, call.first_message) == ITSELF:
        return "itself"
    return call.first_message.split()[1].rstrip(",")


def _reason(failure: grpc.aio.AioRpcError) -> str:
    found = read(failure)
    return failure.code().name if found is None else found.reason
