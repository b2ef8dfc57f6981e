import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from precall.v1.cloning_pb2 import (
    CompleteCallRequest,
    CompleteCallResponse,
    OpenCallRequest,
    OpenCallResponse,
    PrepareCallRequest,
    PrepareCallResponse,
    Voice,
)
from precall.v1.cloning_pb2_grpc import CloningServiceServicer, add_CloningServiceServicer_to_server

from environment import Secret
from gateway.app import listening, serving
from gateway.settings import Settings
from tests.kit.processes.gateway import Process, Start, process

SECRET = "test-webhook-secret-0001"
JSON = "application/json"

Sign = Callable[..., str]


class Cloner(CloningServiceServicer):
    """Answers as `reply` and `completed` say, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[PrepareCallRequest] = []
        self.remaining: list[float] = []
        self.cancelled = asyncio.Event()
        self.reply: Callable[[Any], Awaitable[PrepareCallResponse]] = self.prepared
        self.ended: list[CompleteCallRequest] = []
        self.completed: Callable[[Any], Awaitable[CompleteCallResponse]] = self.found
        self.opened: list[OpenCallRequest] = []
        self.opening: Callable[[Any], Awaitable[OpenCallResponse]] = self.known
        self.credentials: list[str | None] = []

    async def prepared(self, _context: Any) -> PrepareCallResponse:
        return PrepareCallResponse(
            voice=Voice(voice_id="voice_1", name="Ivan_Clone_20251210_123456_xyz"),
            voice_reused=True,
            agent_updated=True,
            first_message="Hallo Ivan, fijn dat je belt!",
            call_id="call_1",
        )

    async def PrepareCall(self, request: PrepareCallRequest, context: Any) -> PrepareCallResponse:  # noqa: N802
        self.asked.append(request)
        self._note(context)
        try:
            return await self.reply(context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def found(self, _context: Any) -> CompleteCallResponse:
        return CompleteCallResponse(found=True)

    async def CompleteCall(self, request: CompleteCallRequest, context: Any) -> CompleteCallResponse:  # noqa: N802
        self.ended.append(request)
        self._note(context)
        return await self.completed(context)

    async def known(self, _context: Any) -> OpenCallResponse:
        return OpenCallResponse(
            call_id="call_1",
            voice=Voice(voice_id="voice_1", name="Ivan_Clone_20251210_123456_xyz"),
            name="Ivan",
            first_message="Hallo Ivan, fijn dat je belt!",
        )

    async def OpenCall(self, request: OpenCallRequest, context: Any) -> OpenCallResponse:  # noqa: N802
        self.opened.append(request)
        self._note(context)
        return await self.opening(context)

    def _note(self, context: Any) -> None:
        self.remaining.append(context.time_remaining())
        self.credentials.append(dict(context.invocation_metadata()).get("authorization"))


@pytest.fixture
def sign() -> Sign:
    """Signs a body as ElevenLabs does."""

    def header(body: bytes, *, at: float | None = None, secret: str = SECRET) -> str:
        stamp = str(int(time.time() if at is None else at))
        digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        return f"t={stamp},v0={digest}"

    return header


@pytest.fixture
def document() -> Callable[..., bytes]:
    """A delivery as JSON; keyword arguments replace its fields, None takes one away."""

    def build(sample: bytes = b"RIFF" * 64, **fields: Any) -> bytes:
        whole = {
            "type": "pre_call",
            "event_timestamp": 1702425485,
            "conversation_id": "conv_abc123xyz",
            "agent_id": "agent_def456uvw",
            "caller_metadata": {
                "name": "Ivan",
                "date_of_birth": "11.12.2007",
                "phone_number": "+31612345678",
            },
            "voice_sample": {"format": "base64", "data": base64.b64encode(sample).decode()},
        } | fields
        return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()

    return build


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings for a gateway on any free port."""

    def build(**fields: Any) -> Settings:
        whole: dict[str, Any] = {
            "elevenlabs_webhook_secret": (Secret(SECRET),),
            "precall_webhook_host": "127.0.0.1",
            "precall_webhook_port": 0,
            "drain_seconds": 0.0,
        } | fields
        return Settings(**whole)

    return build


@pytest.fixture
def cloner() -> Cloner:
    """The other side of the gateway."""
    return Cloner()  # type: ignore[abstract]


@pytest.fixture
async def cloner_target(cloner: Cloner) -> AsyncIterator[str]:
    """Where the cloner listens."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", 32 * 1_048_576), ("grpc.so_reuseport", 0)]
    )
    add_CloningServiceServicer_to_server(cloner, server)
    healthy = health.aio.HealthServicer()
    await healthy.set("precall.v1.CloningService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def gateway(
    settings: Callable[..., Settings], cloner_target: str, spans: Any
) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Starts gateways, each on a port of its own, and stops them at the end."""
    async with AsyncExitStack() as stack:
        # A storage of counts that is slow, and not away, is the machine's fault, unless the test is about that.
        async def start(*, count_seconds: float = 20.0, **fields: Any) -> str:
            chosen = settings(**({"cloner_target": cloner_target} | fields))
            server = serving(
                chosen, spans.provider("gateway"), listening(chosen), count_seconds=count_seconds
            )
            return await stack.enter_async_context(server)

        yield start


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client. It speaks no TLS: to read whom it would trust takes 20 ms. And to no proxy."""
    async with httpx.AsyncClient(verify=False, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture
def deliver(client: httpx.AsyncClient, sign: Sign) -> Callable[..., Awaitable[httpx.Response]]:
    """Sends a signed body to a gateway."""

    async def send(url: str, body: bytes, *, content_type: str = JSON, **headers: str) -> httpx.Response:
        given = {"Content-Type": content_type, "ElevenLabs-Signature": sign(body)} | headers
        return await client.post(f"{url}/webhook", content=body, headers=given)

    return send


@pytest.fixture
def tell(client: httpx.AsyncClient, sign: Sign) -> Callable[..., Awaitable[httpx.Response]]:
    """Sends a signed event to a gateway."""

    async def send(url: str, body: bytes, **headers: str) -> httpx.Response:
        given = {"Content-Type": "application/json", "ElevenLabs-Signature": sign(body)} | headers
        return await client.post(f"{url}/webhook/post-call", content=body, headers=given)

    return send


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def connected() -> Callable[[str], AbstractAsyncContextManager[Streams]]:
    """A bare connection to a gateway."""

    @asynccontextmanager
    async def connect(url: str) -> AsyncIterator[Streams]:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.close()

    return connect


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts gateways as processes of their own and ends those that the test has not."""
    async with AsyncExitStack() as stack:

        async def run(*, imports: bool = False, **settings: str) -> Process:
            own = {"PRECALL_WEBHOOK_PORT": "0", "DRAIN_SECONDS": "0"} | settings
            return await stack.enter_async_context(process(imports=imports, **own))

        yield run
