"""The whole registry as rows, on either database: read in one view of it, and put together again.

The tables and columns of a revision are read from an empty database that its own migrations make, so they are
named in one place only. Rows that come from a file are put into such a database before anything is written.
"""

import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import msgspec

from cloner.database_url import is_sqlite, postgres_url, sqlite_file
from cloner.registry.integrity import check_whole, check_with_log
from cloner.registry.opening import (
    known_revisions,
    lacks_migrations,
    migrate,
    postgres_revision,
    sqlite_revision,
    telling_problems,
)
from cloner.registry.transaction import RegistryNotOpened

__all__ = ["RowsInvalid", "Snapshot", "Table", "assembled", "snapshot"]

# Which processes are at work is true only for a moment.
LEFT_OUT = ("alembic_version", "processes")
BUSY_MS = 10_000
AT_ONCE = 1_000


class RowsInvalid(Exception):
    """The rows do not make a registry: a table or a column is another, or they contradict each other."""


class Table(msgspec.Struct, frozen=True):
    """A table, and which of its columns are booleans, which SQLite stores as 0 and 1."""

    name: str
    columns: tuple[str, ...]
    booleans: frozenset[int]

    @property
    def query(self) -> str:
        """The statement that reads the whole table."""
        return f"SELECT {', '.join(self.columns)} FROM {self.name}"


class Snapshot:
    """One view of a registry, however much is written to it meanwhile."""

    def __init__(self, connection: Any, *, revision: str, name: str, tables: list[Table]) -> None:
        self._connection = connection
        self.revision = revision
        self.name = name
        self.tables = tables

    def count(self, name: str) -> int:
        """How many rows a table has."""
        return int(self._connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0])

    @property
    def key_check(self) -> str | None:
        """The text by which the key of the hashes is recognised; None where no key was settled."""
        (table,) = (table for table in self.tables if table.name == "deployment")
        (row,) = self.rows(table)
        found: str | None = dict(zip(table.columns, row, strict=True)).get("key_check")
        return found

    def rows(self, table: Table) -> Iterator[list[Any]]:
        """Every row of a table, with the values of its columns."""
        if isinstance(self._connection, sqlite3.Connection):
            for row in self._connection.execute(table.query):
                yield _typed(table, row)
            return
        # A named cursor: the server keeps what was not fetched yet.
        with self._connection.cursor("registry_rows") as cursor:
            cursor.itersize = AT_ONCE
            for row in cursor.execute(table.query.encode()):
                yield list(row)


@contextmanager
def snapshot(url: str) -> Iterator[Snapshot]:
    """The registry at the URL as it is now, without a lock that anybody else would notice.

    Raises RegistryOfOtherRelease, and RegistryNotOpened where there is no registry.
    """
    with telling_problems(url), _read_only(url) as connection:
        sqlite = isinstance(connection, sqlite3.Connection)
        revision = sqlite_revision(connection) if sqlite else postgres_revision(connection)
        lacks_migrations(revision)
        deployment = (
            None if revision is None else connection.execute("SELECT name FROM deployment").fetchone()
        )
        if revision is None or deployment is None:
            raise RegistryNotOpened("DATABASE_URL: the database holds no registry")
        with _empty(revision) as pattern:
            tables = _tables_of(pattern)
        yield Snapshot(connection, revision=revision, name=str(deployment[0]), tables=tables)


@contextmanager
def assembled(
    revision: str, parts: Iterable[tuple[str, list[str], Iterator[list[Any]]]]
) -> Iterator[Snapshot]:
    """The rows of a registry of that revision, as the newest one has them, in a database of their own.

    Each part is a table, its columns and its rows. Raises RowsInvalid, and whatever the parts raise.
    """
    if revision not in known_revisions():
        raise RowsInvalid
    with _empty(revision) as connection:
        known = {table.name: table for table in _tables_of(connection)}
        try:
            connection.execute("BEGIN")
            for name, columns, rows in parts:
                table = known.pop(name, None)
                if table is None or set(columns) != set(table.columns):
                    raise RowsInvalid
                marks = ", ".join("?" * len(columns))
                connection.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows)
            connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as failure:
            # What it says may hold values.
            raise RowsInvalid from failure
        names = connection.execute("SELECT name FROM deployment").fetchall()
        if known or len(names) != 1:
            raise RowsInvalid
        if lacks_migrations(revision):
            _migrated(connection, "head")
        yield Snapshot(
            connection, revision=known_revisions()[-1], name=names[0][0], tables=_tables_of(connection)
        )


def _tables_of(connection: sqlite3.Connection) -> list[Table]:
    """The tables of a registry that hold what is remembered."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    tables = []
    for (name,) in names:
        if name in LEFT_OUT or name.startswith("sqlite_"):
            continue
        columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
        booleans = frozenset(place for place, column in enumerate(columns) if column[2] == "BOOLEAN")
        tables.append(Table(name, tuple(column[1] for column in columns), booleans))
    return tables


@contextmanager
def _read_only(url: str) -> Iterator[Any]:
    """A connection within a transaction that sees one state of the database."""
    if is_sqlite(url):
        path = sqlite_file(url)
        try:
            is_file = stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError as failure:
            raise RegistryNotOpened(f"DATABASE_URL: {path} does not exist") from failure
        if not is_file:
            raise RegistryNotOpened(f"DATABASE_URL: {path} is not a file")
        checked = check_with_log(path)
        # Opened for writing: SQLite may first have to take in what a killed cloner had committed to the log.
        with closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_MS / 1000
            )
        ) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            if not checked:
                check_whole(connection, path)
            yield connection
        return

    from cloner.registry import postgres

    with closing(postgres.connected(postgres_url(url))) as server:
        server.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0")
        yield server


@contextmanager
def _empty(revision: str) -> Iterator[sqlite3.Connection]:
    """A registry of that revision without a row, in a file that has no name."""
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as connection:
        _migrated(connection, revision)
        yield connection


def _migrated(connection: sqlite3.Connection, revision: str) -> None:
    def begin() -> bool:
        connection.execute("BEGIN")
        return True

    migrate("sqlite://", connection, begin=begin, to=revision)


def _typed(table: Table, row: tuple[Any, ...]) -> list[Any]:
    return [bool(value) if place in table.booleans else value for place, value in enumerate(row)]
