"""Databases with their tables and nothing in them: migrated once, and copied or emptied for each test."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

import psycopg

from cloner.registry.opening import migrated
from tests.kit.child import Child
from tests.kit.postgres import drop_database, entered, new_database

# What a test may have changed beside rows of tables: columns, indexes, triggers, functions, settings, revision.
# Settings of other databases stand in the same table.
SHAPE = """
SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
    SELECT concat_ws(':', attrelid::regclass, attname, atttypid, attnotnull) AS part FROM pg_attribute
        WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    UNION ALL SELECT tgname::text FROM pg_trigger
    UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT version_num FROM alembic_version
) AS parts
"""
OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Until the connection ends: other workers of pytest may be about to make the same template.
ALONE = "SELECT pg_advisory_lock(1)"
# DELETE takes a quarter of what TRUNCATE does, which makes new files of tables, and of their indexes.
EMPTYING = """
WITH tables AS (SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version')
SELECT concat_ws('; ',
    (SELECT format('LOCK TABLE %s', string_agg(quote_ident(tablename), ', ')) FROM tables),
    (SELECT string_agg(format('DELETE FROM %I', tablename), '; ') FROM tables),
    (SELECT string_agg(format('SELECT setval(%L, %s, false)', sequencename, start_value), '; ') FROM pg_sequences)
)
"""


class Databases:
    """The databases of a Postgres server. One that a test has left as it was made goes to a later test.

    Making one takes the server as long as a usual test takes, and so does removing it; emptying it does not.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(ALONE)
            if not _one(connection, "SELECT count(*) FROM pg_database WHERE datname = 'migrated'"):
                # Under another name until it is done, which one that is killed meanwhile is not.
                made = new_database(server)
                migrate(made)
                connection.execute(f"ALTER DATABASE {made.rpartition('/')[2]} RENAME TO migrated")
        self._free: list[str] = []
        self._free.append(self.take())
        # Not of the template: nothing can be made of one that somebody is connected to.
        connection = entered(self._free[0])
        self._shape = _one(connection, SHAPE)
        self._emptying = _one(connection, EMPTYING)

    def take(self) -> str:
        """The URL of one, for one test alone."""
        if self._free:
            return self._free.pop()
        return new_database(self._server, template="migrated")

    def give_back(self, url: str) -> None:
        """Empties it, or removes it if it is not what it was."""
        with suppress(psycopg.Error):  # it is gone, or cannot be entered any more
            connection = entered(url)
            connection.execute(OTHERS)
            if self._shape == _one(connection, SHAPE):
                connection.execute(self._emptying)
                self._free.append(url)
                return
        drop_database(url)


@cache
def migrated_sqlite() -> bytes:
    """What a SQLite file with all tables and no rows holds. Making one takes as long as the rest of a start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "precall.sqlite3"
        migrate(f"sqlite:///{path}")
        return path.read_bytes()


@contextmanager
def in_memory(file: bytes) -> Iterator[sqlite3.Connection]:
    """A connection to what a SQLite file holds, in memory, which begins no transaction by itself."""
    # As the file says of itself (SQLite file format, 1.3), it has a log beside it; what is in memory has none.
    without_log = file[:18] + b"\x01\x01" + file[20:]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(without_log)
        yield connection


def migrate(url: str) -> None:
    """Gives an empty database its tables, as a cloner does when it starts.

    In another process, which has imported Alembic.
    """
    with closing(Child(migrated, url, files=[None, None, None])) as child:
        child.wait()
    assert 0 == child.returncode


def _one(connection: psycopg.Connection, query: str) -> object:
    return connection.execute(query).fetchone()[0]
