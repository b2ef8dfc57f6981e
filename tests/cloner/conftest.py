import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from opentelemetry.metrics import MeterProvider
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from cloner.server import ASKING_SECONDS, serving
from cloner.settings import Settings
from environment import Secret
from telemetry.metrics import NOWHERE
from tests.kit import forked
from tests.kit.cloning import TICK_SECONDS
from tests.kit.figures import Figures
from tests.kit.inspection import OF_ITS_OWN, Inspection
from tests.kit.promises import Promises

API_KEY = "key-of-the-emulator"
Cloning = Callable[..., AbstractAsyncContextManager[CloningServiceStub]]


@pytest.fixture(scope="session")
def completed() -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Exit status, output and errors of a command of ours, which starts with its modules imported."""
    forked.import_everything()
    return forked.completed


@pytest.fixture
def cloning(spans, emulator_url, database: str, inspection: Inspection) -> Cloning:
    """Serves a cloner with these settings, and yields a client of it."""

    @asynccontextmanager
    async def start(
        now: Callable[[], float] = time.time,
        *,
        meters: MeterProvider = NOWHERE,
        asking_seconds: float = ASKING_SECONDS,
        **settings: Any,
    ) -> AsyncIterator[CloningServiceStub]:
        chosen = {
            "elevenlabs_api_key": Secret(API_KEY),
            "elevenlabs_base_url": emulator_url,
            "cloner_port": 0,
            "database_url": database,
            "caller_hash_key": Secret("key-of-the-hashes"),
            "audio_workers": 1,
            "shutdown_grace_seconds": 5.0,
            "drain_seconds": 0.0,
            **settings,
        }
        promises = Promises()
        async with (
            serving(
                Settings(**chosen),
                spans.provider("cloner"),
                now=now,
                tick_seconds=TICK_SECONDS,
                census_seconds=TICK_SECONDS,
                still_seconds=0.0,  # no client is connected any more
                asking_seconds=asking_seconds,
                meters=meters,
                inspector=None if settings.keys() & OF_ITS_OWN else inspection,
            ) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=(promises,)) as channel,
        ):
            stub = CloningServiceStub(channel)
            stub.port = port
            yield stub
        assert [] == promises.broken

    return start


@pytest.fixture
def patient(cloning: Cloning) -> Cloning:
    """The same, whose calls wait for ElevenLabs' word as long as a busy machine needs for what is tried."""
    return partial(cloning, asking_seconds=60.0)


@pytest.fixture
def figures() -> Figures:
    """What is measured."""
    return Figures()


@pytest.fixture
async def cloner(cloning: Cloning) -> AsyncIterator[CloningServiceStub]:
    """A client of a cloner with the default settings."""
    async with cloning() as stub:
        yield stub
