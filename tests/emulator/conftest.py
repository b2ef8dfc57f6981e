"""An emulator of its own for each test, on a real socket, and clients for it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import elevenlabs  # which imports itself only when something of it is asked for, and takes long
import httpx
import pytest
import uvicorn

from emulator import NO_LATENCY, Emulator, Settings, Webhooks
from emulator.calls import Calls
from emulator.server import _Server

KEY = "a-key-of-the-tests"
SECRET = "wsec_of_the_tests"
GOOD = {
    "type": "conversation_initiation_client_data",
    "dynamic_variables": {"name": "Ana", "visits": 3, "vip": True, "ratio": 0.5},
}


@pytest.fixture
def emulator() -> Emulator:
    """An emulator that loses no time."""
    return Emulator(Settings(api_key=KEY, create_latency=NO_LATENCY, latency=NO_LATENCY))


@pytest.fixture
async def url(emulator: Emulator) -> AsyncIterator[str]:
    """Where it listens."""
    async with emulator.listening() as base_url:
        yield base_url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that knows the key."""
    async with httpx.AsyncClient(verify=False, base_url=url, headers={"xi-api-key": KEY}) as client:
        yield client


@pytest.fixture
async def sdk(url: str) -> AsyncIterator["elevenlabs.AsyncElevenLabs"]:
    """The vendor's own client."""
    async with httpx.AsyncClient(verify=False) as client:
        yield elevenlabs.AsyncElevenLabs(base_url=url, api_key=KEY, httpx_client=client)


@dataclass
class Client:
    """The client's side: keeps what it is sent, and answers what it is told to."""

    url: str = ""
    status: int = 200
    body: bytes = json.dumps(GOOD).encode()
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    requests: list[SimpleNamespace] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, once the gate is open."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(SimpleNamespace(path=scope["path"], headers=headers, body=body))
        self.arrived.set()
        await self.gate.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})

    @property
    def asked(self) -> dict[str, Any]:
        """The latest request's JSON."""
        return json.loads(self.requests[-1].body)

    def event(self, secret: str = SECRET) -> dict[str, Any]:
        """The latest event, verified by the vendor's own code."""
        request = self.requests[-1]
        return elevenlabs.ElevenLabs(api_key="x").webhooks.construct_event(
            rawBody=request.body.decode(),
            sig_header=request.headers["elevenlabs-signature"],
            secret=secret,
        )


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client that answers at once."""
    client = Client()
    client.gate.set()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        client.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        server = _Server(uvicorn.Config(client, lifespan="off", ws="none", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await server.serves.wait()
        yield client
        client.gate.set()
        server.leave.set()
        await serving


@pytest.fixture
def calls(emulator: Emulator, client: Client) -> Calls:
    """The calls of an emulator that knows the client."""
    emulator.calls.webhooks = Webhooks(
        initiation_url=f"{client.url}/initiation",
        initiation_headers={"Authorization": "Bearer of-the-tests"},
        post_call_url=f"{client.url}/post-call",
        post_call_secret=SECRET,
    )
    return emulator.calls
