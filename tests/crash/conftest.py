import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from emulator import NO_LATENCY, Emulator, Settings
from tests.crash.replicas import API_KEY, World
from tests.kit.databases import migrated_sqlite
from tests.kit.forked import Clock
from tests.kit.postgres import new_database

Worlds = Callable[..., AbstractAsyncContextManager[World]]


@asynccontextmanager
async def world(name: str, database: str, folder: Path) -> AsyncIterator[World]:
    """A provider of its own in front of a database without a row."""
    clock = Clock()
    emulator = Emulator(
        Settings(
            api_key=API_KEY,
            latency=NO_LATENCY,
            create_latency=NO_LATENCY,
            voice_limit=500,
            monthly_limit=None,
        ),
        clock=clock,
    )
    (folder / name).mkdir()
    async with emulator.listening() as url:
        made = World(emulator, url, database, folder / name, clock)
        watching = asyncio.create_task(made.watch())
        try:
            yield made
        finally:
            watching.cancel()
            emulator.faults.clear()


KINDS = ["sqlite", "postgres"]


@pytest.fixture
def worlds_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Worlds]:
    """Makes what makes worlds on a kind of database, with all tables unless it is to be empty."""

    def of(kind: str) -> Worlds:
        def made(name: str, *, empty: bool = False) -> AbstractAsyncContextManager[World]:
            if kind == "sqlite":
                path = tmp_path / f"{name}.sqlite3"
                if not empty:
                    path.write_bytes(migrated_sqlite())
                return world(name, f"sqlite:///{path}", tmp_path)
            if empty:
                return world(name, new_database(request.getfixturevalue("postgres")), tmp_path)
            return world(name, request.getfixturevalue("databases").take(), tmp_path)

        return made

    return of


@pytest.fixture(params=KINDS)
def worlds(request: pytest.FixtureRequest, worlds_of: Callable[[str], Worlds]) -> Worlds:
    """Makes worlds on one kind of database."""
    return worlds_of(request.param)


@pytest.fixture
def on_postgres(worlds_of: Callable[[str], Worlds]) -> Worlds:
    """Makes worlds on Postgres."""
    return worlds_of("postgres")
