"""An emulator of its own for each test, on a real socket, and clients for it."""

from collections.abc import AsyncIterator

import httpx
import pytest
from elevenlabs import AsyncElevenLabs

from emulator import NO_LATENCY, Emulator, Settings

KEY = "a-key-of-the-tests"


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
    async with httpx.AsyncClient(base_url=url, headers={"xi-api-key": KEY}) as client:
        yield client


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[AsyncElevenLabs]:
    """The vendor's own client."""
    async with httpx.AsyncClient() as client:
        yield AsyncElevenLabs(base_url=url, api_key=KEY, httpx_client=client)
