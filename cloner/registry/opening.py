"""Opens the registry: makes what is missing, brings it up to date, and says what is in the way."""

import asyncio
import contextlib
import secrets
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from cloner.database_url import is_sqlite, postgres_url, sqlite_file
from cloner.registry import deployment
from cloner.registry.integrity import BROKEN, check_with_log
from cloner.registry.server_problem import NOT_OURS, server_problem
from cloner.registry.sqlite import SqliteStore, connected, made_private
from cloner.registry.store import Store
from cloner.registry.transaction import RegistryNotOpened, RegistryOfOtherRelease, RegistryUnavailable

__all__ = [
    "MIGRATIONS",
    "MIGRATION_LOCK",
    "Migration",
    "bring_up_to_date",
    "known_revisions",
    "lacks_migrations",
    "migrate",
    "migrated",
    "opened",
    "postgres_revision",
    "sqlite_revision",
    "telling_problems",
]

log = structlog.get_logger()

MIGRATIONS = Path(__file__).parent / "migrations"
TABLES_OF_ALEMBIC = b"""
    SELECT 1 FROM pg_catalog.pg_tables
    WHERE tablename = 'alembic_version' AND schemaname = ANY (current_schemas(false))
"""
# Any number will do, as long as every replica uses the same.
MIGRATION_LOCK = 7_274_496_313
MIGRATION_SECONDS = 60
MOST_CHECKED_BYTES = 100_000_000

HELD = "is held by another process"
NOT_WRITTEN = "cannot be written, or its folder cannot"
FILE_PROBLEMS = {
    sqlite3.SQLITE_CORRUPT: BROKEN,
    sqlite3.SQLITE_NOTADB: "is not a SQLite database, or a broken one",
    sqlite3.SQLITE_BUSY: HELD,
    sqlite3.SQLITE_LOCKED: HELD,
    sqlite3.SQLITE_READONLY: NOT_WRITTEN,
    sqlite3.SQLITE_CANTOPEN: NOT_WRITTEN,
    sqlite3.SQLITE_PERM: NOT_WRITTEN,
    sqlite3.SQLITE_FULL: "cannot be written: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk is full or broken",
}


class Migration(NamedTuple):
    """The revisions of a database before and after it was brought up to date; None is an empty database."""

    before: str | None
    after: str


@asynccontextmanager
async def opened(url: str, *, name: str | None, now: float) -> AsyncIterator[Store]:
    """Opens the database at the URL and applies what migrations it lacks, however many start at once.

    A new database takes `name` for its deployment, or makes one up if it is empty. A database that has a
    name keeps it. Raises RegistryNotOpened.
    """
    store = await _left_alone(lambda: _up_to_date(url))
    try:
        try:
            row = await store.write(deployment.settle, name or secrets.token_hex(4), now)
        except RegistryUnavailable as failure:
            raise RegistryNotOpened("DATABASE_URL: the database cannot be written to") from failure
        store.name, store.created_at = row
        yield store
    finally:
        await store.close()


async def _left_alone(work: Callable[[], Store]) -> Store:
    """What the work returns, which is done in a thread that no process waits for at its end.

    The work may be waiting for a server that says nothing. What it has begun in the database is undone when
    the process ends, as it is when that is killed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Store] = loop.create_future()

    def tell(step: Callable[[Any], None], outcome: object) -> None:
        def told() -> None:
            if not done.cancelled():
                step(outcome)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told)

    def run() -> None:
        try:
            store = work()
        except BaseException as failure:  # noqa: BLE001 - it is raised where somebody waits for it
            tell(done.set_exception, failure)
        else:
            tell(done.set_result, store)

    threading.Thread(target=run, name="opening", daemon=True).start()
    return await done


def migrated(url: str) -> Migration:
    """Applies the missing migrations at the URL, even if several do so at once.

    Raises RegistryOfOtherRelease and RegistryNotOpened.
    """
    with telling_problems(url):
        if is_sqlite(url):
            made_private(sqlite_file(url))
            # A crash leaves a log as well. A start without one reads nothing twice, nor does one with a
            # registry of which that would take longer than a few seconds.
            check_with_log(sqlite_file(url), most=MOST_CHECKED_BYTES)
            with contextlib.closing(connected(sqlite_file(url))) as connection:
                return bring_up_to_date(connection)

        from cloner.registry import postgres

        with postgres.connected(postgres_url(url)) as connection:
            return bring_up_to_date(connection)


def _up_to_date(url: str) -> Store:
    if not is_sqlite(url):
        with telling_problems(url):
            return _postgres_store(postgres_url(url))
    migrated(url)
    with telling_problems(url):
        try:
            return SqliteStore(sqlite_file(url))
        except FileNotFoundError as failure:
            raise RegistryNotOpened(f"DATABASE_URL: {sqlite_file(url)} was just deleted") from failure


def _postgres_store(url: str) -> Store:
    from cloner.registry import postgres

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(postgres.connected(url)))
        migration = bring_up_to_date(first)
        if migration.before != migration.after:
            # SQLAlchemy has made that connection its own.
            return postgres.PostgresStore(url)
        stack.pop_all()
        return postgres.PostgresStore(url, first)


def bring_up_to_date(connection: Any) -> Migration:
    """Applies what migrations the database lacks.

    Raises RegistryOfOtherRelease, RegistryNotOpened and what its driver does.
    """
    if isinstance(connection, sqlite3.Connection):
        before = sqlite_revision(connection)
        if lacks_migrations(before):
            connection.execute(f"PRAGMA busy_timeout={MIGRATION_SECONDS * 1000}")
            before = _migrate_alone("sqlite://", connection, sqlite_revision, "BEGIN IMMEDIATE")
    else:
        if connection.info.parameter_status("server_encoding") != "UTF8":
            raise RegistryNotOpened(
                "DATABASE_URL: the database must have the encoding UTF8, as names have it"
            )
        before = postgres_revision(connection)
        if lacks_migrations(before):
            alone = f"BEGIN; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
            before = _migrate_alone("postgresql+psycopg://", connection, postgres_revision, alone)
    return Migration(before=before, after=known_revisions()[-1])


@contextmanager
def telling_problems(url: str) -> Iterator[None]:
    """A block that works on the database; what its driver raises becomes a RegistryNotOpened."""
    if is_sqlite(url):
        try:
            file = sqlite_file(url)
        except FileNotFoundError as failure:
            raise RegistryNotOpened("DATABASE_URL: the working directory was deleted") from failure
        try:
            yield
        except sqlite3.Error as failure:
            raise RegistryNotOpened(f"DATABASE_URL: {file} {_file_problem(failure)}") from failure
        return

    import psycopg

    try:
        yield
    except psycopg.Error as failure:
        raise RegistryNotOpened(f"DATABASE_URL: {server_problem(failure)}") from failure


def _file_problem(failure: sqlite3.Error) -> str:
    if problem := FILE_PROBLEMS.get(getattr(failure, "sqlite_errorcode", 0) & 0xFF):
        return problem
    return NOT_OURS if "already exists" in str(failure) else "cannot be used as a SQLite database"


def sqlite_revision(connection: sqlite3.Connection) -> str | None:
    """The last migration of a SQLite database; None for an empty one."""
    wanted = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.execute(wanted).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def postgres_revision(connection: Any) -> str | None:
    """The last migration of a Postgres database; None for an empty one."""
    # Not to_regclass: within a transaction its answer may be cached from before the table was created.
    if connection.execute(TABLES_OF_ALEMBIC).fetchone() is None:
        return None
    row = connection.execute(b"SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def lacks_migrations(revision: str | None) -> bool:
    """Whether a database of that revision is to be migrated. Raises RegistryOfOtherRelease."""
    known = known_revisions()
    if revision is not None and revision not in known:
        raise RegistryOfOtherRelease(
            f"DATABASE_URL: the database was made by another release (revision {revision}, and this one"
            f" knows {known[-1]}): run that release, or restore a back-up"
        )
    return revision != known[-1]


def known_revisions() -> list[str]:
    """The revisions that there are, oldest first: each file's name begins with its own."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _migrate_alone(
    dialect: str, connection: Any, revision: Callable[[Any], str | None], alone: str
) -> str | None:
    """Applies the missing migrations in one transaction, which begins `alone`.

    Returns the revision that this transaction found: another process may have been first.
    """
    before = None

    def begin() -> bool:
        nonlocal before
        connection.execute(alone)
        before = revision(connection)
        return lacks_migrations(before)

    if migrate(dialect, connection, begin=begin):
        log.info("registry migrated", before=before or "empty", after=known_revisions()[-1])
    return before


def migrate(dialect: str, connection: Any, *, begin: Callable[[], bool], to: str = "head") -> bool:
    """Applies migrations in one transaction, unless its first step finds that there are none to apply.

    Raises what the driver does. SQLAlchemy is loaded only here: a database that is up to date is opened
    without it.
    """
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import StaticPool, create_engine
    from sqlalchemy.exc import DBAPIError

    engine = create_engine(dialect, creator=lambda: connection, poolclass=StaticPool)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # Alembic works in the transaction that it finds here, and neither begins nor ends one.
    try:
        with engine.begin() as borrowed:
            # Begun only now, because SQLAlchemy rolls back what was begun on a connection before it took it
            # over.
            if not begin():
                return False
            config.attributes["connection"] = borrowed
            command.upgrade(config, to)
    except DBAPIError as failure:
        if failure.orig is None:
            raise
        raise failure.orig from None
    return True
