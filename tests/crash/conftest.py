import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from emulator import NO_LATENCY, Emulator, Settings
from tests.crash.replicas import API_KEY, World
from tests.postgres import new_database

Worlds = Callable[[str], AbstractAsyncContextManager[World]]


@asynccontextmanager
async def world(name: str, database: str, folder: Path) -> AsyncIterator[World]:
    """A provider of its own in front of an empty database."""
    emulator = Emulator(
        Settings(
            api_key=API_KEY,
            latency=NO_LATENCY,
            create_latency=NO_LATENCY,
            voice_limit=500,
            monthly_limit=None,
        )
    )
    (folder / name).mkdir()
    async with emulator.listening() as url:
        made = World(emulator, url, database, folder / name)
        watching = asyncio.create_task(made.watch())
        try:
            yield made
        finally:
            watching.cancel()
            emulator.faults.clear()


KINDS = ["sqlite", "postgres"]


@pytest.fixture
def worlds_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Worlds]:
    """Makes what makes worlds on a kind of database."""

    def of(kind: str) -> Worlds:
        if kind == "sqlite":
            return lambda name: world(name, f"sqlite:///{tmp_path}/{name}.sqlite3", tmp_path)
        server = request.getfixturevalue("postgres")
        return lambda name: world(name, new_database(server), tmp_path)

    return of


@pytest.fixture(params=KINDS)
def worlds(request: pytest.FixtureRequest, worlds_of: Callable[[str], Worlds]) -> Worlds:
    """Makes worlds on one kind of database."""
    return worlds_of(request.param)


@pytest.fixture
def on_postgres(worlds_of: Callable[[str], Worlds]) -> Worlds:
    """Makes worlds on Postgres."""
    return worlds_of("postgres")
