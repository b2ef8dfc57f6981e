"""Opens the database, brings it up to date, and runs transactions."""

import asyncio
import functools
import inspect
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cloner.registry.schema import deployment

__all__ = ["Registry", "RegistryUnavailable", "by", "opened", "unbroken"]

T = TypeVar("T")
K = TypeVar("K")

log = structlog.get_logger()

MIGRATIONS = Path(__file__).parent.parent / "migrations"
# Any number will do, as long as every replica takes the same.
MIGRATION_LOCK = 7_274_496_313
BUSY_MS = 5_000
CONNECT_SECONDS = 5
# For a connection of ours to be free.
WAIT_SECONDS = 30
POSTGRES_CONNECTIONS = 20


class RegistryUnavailable(Exception):
    """The database cannot be reached, or did not answer in time."""

    def __init__(self) -> None:
        super().__init__("The registry of voices cannot be reached; try again later.")


class Registry:
    """A database that is up to date. `name` and `created_at` are those of the deployment."""

    def __init__(self, engine: AsyncEngine, *, connections: int, name: str, created_at: float) -> None:
        self._engine = engine
        # The pool's own queue lets whoever comes at the right moment pass those who wait.
        self._turns = asyncio.Semaphore(connections)
        self._running: set[asyncio.Task[Any]] = set()
        self.name = name
        self.created_at = created_at

    @property
    def postgres(self) -> bool:
        """Whether several processes on several machines may share it."""
        return self._engine.dialect.name == "postgresql"

    async def unbroken(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work to its end, also when whoever waits for it is cancelled.

        A driver that is cancelled in the middle of a statement (aiosqlite 0.22) may leave its
        connection waiting for ever.
        """
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what is running, and closes every connection."""
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block. Raises RegistryUnavailable."""
        try:
            async with self._turn(), self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as failure:
            # The text would hold the statement and its values; the types say enough.
            cause = getattr(failure, "orig", None) or failure
            log.warning(
                "registry not available", reason=type(getattr(cause, "__cause__", None) or cause).__name__
            )
            raise RegistryUnavailable from failure


@asynccontextmanager
async def by(deadline: float) -> AsyncIterator[None]:
    """A block that asks the registry and nobody else; raises RegistryUnavailable at the deadline.

    Whether what was asked for is done then, nobody knows.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        log.warning("registry did not answer in time")
        raise RegistryUnavailable from None


@asynccontextmanager
async def opened(url: str, *, name: str | None, now: float) -> AsyncIterator[Registry]:
    """Opens the database at the URL and applies what migrations it lacks, however many start at once.

    `name` is what the deployment should be called if the database is new; one that has a name keeps
    it, and an empty one makes one up. Raises RegistryUnavailable.
    """
    engine = _engine(make_url(url))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
        async with engine.begin() as connection:
            row = await _deployment(connection, name, now)
    except (SQLAlchemyError, OSError, TimeoutError) as failure:
        await engine.dispose()
        raise RegistryUnavailable from failure
    connections = POSTGRES_CONNECTIONS if engine.dialect.name == "postgresql" else 1
    registry = Registry(engine, connections=connections, name=row[0], created_at=row[1])
    try:
        yield registry
    finally:
        await registry.close()


def unbroken(kind: type[K]) -> type[K]:
    """Makes every public method of a class one that a cancelled caller does not break off."""

    def wrapped(method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(method)
        async def call(self: Any, *args: Any, **named: Any) -> Any:
            return await self._registry.unbroken(method(self, *args, **named))

        return call

    for name, method in list(vars(kind).items()):
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            setattr(kind, name, wrapped(method))
    return kind


def _engine(url: URL) -> AsyncEngine:
    """An engine for `sqlite:///file` or `postgresql://...`; neither needs a driver in the URL."""
    if url.get_backend_name() == "sqlite":
        # One connection: SQLite has one writer anyway, and here whoever waits does so in order.
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), pool_size=1, max_overflow=0)
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        pool_size=POSTGRES_CONNECTIONS // 2,
        max_overflow=POSTGRES_CONNECTIONS // 2,
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_SECONDS, "command_timeout": 10},
    )


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin a transaction only at the first write, too late for what was read before.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # What was committed is on the disk, also after a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    # SQLite: BEGIN IMMEDIATE has the whole file for itself already.
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def _deployment(connection: AsyncConnection, name: str | None, now: float) -> tuple[str, float]:
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    wanted = select(deployment.c.name, deployment.c.created_at)
    row = (await connection.execute(wanted)).one_or_none()
    if row is None:
        chosen = name or secrets.token_hex(4)
        await connection.execute(deployment.insert().values(id=1, name=chosen, created_at=now))
        return chosen, now
    return row[0], row[1]
