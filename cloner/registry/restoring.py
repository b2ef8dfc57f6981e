"""Writes a whole registry into a database that no cloner is at, in one transaction.

The registry's own history is set back. Changes at ElevenLabs cannot be, so what the replaced registry knows
of them is kept:

voices    that only the replaced registry knows are given up for deletion; those that were being deleted
          still are. So are those that were being made, which nobody may know by an id yet: they are
          looked for by their markers. Each restored voice is looked for at ElevenLabs before it is used
agents    keep the rows of the replaced registry, and each agent is put back
calls     keep these rows too: a call that is over must not begin again
consents  and requests keep these rows too: withdrawals still count, and requests stay answered
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from cloner.database_url import is_sqlite, postgres_url, sqlite_file
from cloner.registry import departures
from cloner.registry.integrity import check_whole, check_with_log
from cloner.registry.opening import (
    MIGRATION_LOCK,
    bring_up_to_date,
    lacks_migrations,
    postgres_revision,
    telling_problems,
)
from cloner.registry.reasons import RESTORED, UNANSWERED
from cloner.registry.snapshot import Snapshot, Table
from cloner.registry.sqlite import SqliteTransaction, made_private
from cloner.registry.statement import Statement
from cloner.registry.transaction import RegistryNotOpened, Transaction

__all__ = ["RegistryInUse", "RegistryNotEmpty", "Restored", "restoring"]

# A cloner reads its registry every second, and gives a sign of life every other second while it is at an
# intent.
RECENT_SECONDS = 10
# How long a cloner that is stopping may take.
GONE_SECONDS = RECENT_SECONDS + 2.0
# The rows of these tables are added to those that are there; where both have a row, the one there stays.
STAYING = ("agents", "calls", "consents", "requests")

# A create without an answer may have made a voice all the same. Reconciliation finds none of another name.
LEFT = f"state IN ('ready', 'deleting', 'intended') OR (state = 'failed' AND reason = '{UNANSWERED}')"
BEGUN = Statement("SELECT 1 FROM deployment")
VOICES_DROPPED = Statement("DELETE FROM voices")
# A request whose voice was being made counts as new.
REQUEST_DROPPED = Statement("DELETE FROM requests WHERE marker = :marker")
PROCESSES_DROPPED = Statement("DELETE FROM processes")
DEPLOYMENT_DROPPED = Statement("DELETE FROM deployment")
# What the provider has now is checked before anything else is done.
TO_BE_RECONCILED = Statement("UPDATE deployment SET reconciled_until = 0")
# In a back-up of an earlier release the heading alone tells it.
KEYED = Statement("UPDATE deployment SET key_check = :check WHERE key_check IS NULL")
TO_BE_CHECKED = Statement("UPDATE voices SET checked_at = 0")
TO_BE_PUT_BACK = Statement("""
    UPDATE agents SET restoring = (marker IS NOT NULL), held_until = 0, holder = ''
""")
# Postgres hides from an ordinary user when the sessions of other users were last at work.
AT_WORK = f"""
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        AND (usename = current_user OR application_name = current_setting('application_name'))
        AND state_change > clock_timestamp() - interval '{RECENT_SECONDS} seconds'
    LIMIT 1
"""
ALIVE = Statement("SELECT 1 FROM processes WHERE alive_at >= :since LIMIT 1")

Connection: TypeAlias = Any


class RegistryInUse(RegistryNotOpened):
    """A cloner is at the registry, or somebody else is."""


class RegistryNotEmpty(RegistryNotOpened):
    """There is a registry already, and `replace` was not given."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the registry that was there."""

    replaced: bool
    given_up: int
    """How many of its voices the restored registry deletes."""

    looked_for: int
    """How many more may have been made, which the restored registry looks for and deletes."""


@contextmanager
def restoring(url: str, source: Snapshot, *, key_check: str | None, replace: bool) -> Iterator[Restored]:
    """Writes the registry, and commits it when the block ends without a failure.

    `key_check` is the text by which its key is recognised, where that is known. Raises RegistryInUse,
    RegistryNotEmpty unless it may `replace` what there is, RegistryOfOtherRelease and RegistryNotOpened.
    """
    alone = _alone_in_file(sqlite_file(url)) if is_sqlite(url) else _alone_at_server(postgres_url(url))
    with telling_problems(url), alone as (connection, transaction):
        there = transaction.one(BEGUN) is not None
        if there and not replace:
            raise RegistryNotEmpty("DATABASE_URL: there is a registry already, which --replace replaces")
        tables = {table.name: table for table in source.tables}
        left = _left(transaction, source, tables["voices"]) if there else {}
        for statement in (VOICES_DROPPED, PROCESSES_DROPPED, DEPLOYMENT_DROPPED):
            transaction.run(statement)
        place = tables["voices"].columns.index("voice_id")
        unknown = [marker for marker, row in left.items() if row[place] is None]
        for marker in unknown:
            transaction.run(REQUEST_DROPPED, marker=marker)
        for table in source.tables:
            rows = source.rows(table)
            if table.name == "voices":
                rows = (row for row in rows if row[table.columns.index("marker")] not in left)
            _insert(connection, table, rows)
        _insert(connection, tables["voices"], left.values())
        for statement in (TO_BE_RECONCILED, TO_BE_CHECKED, TO_BE_PUT_BACK):
            transaction.run(statement)
        transaction.run(KEYED, check=key_check)
        yield Restored(replaced=there, given_up=len(left) - len(unknown), looked_for=len(unknown))
        connection.execute("COMMIT")


def _left(transaction: Transaction, source: Snapshot, table: Table) -> dict[str, list[Any]]:
    """The voices of the replaced registry that are to be deleted, as rows by their markers."""
    place = {column: number for number, column in enumerate(table.columns)}
    marker, state, voice_id = place["marker"], place["state"], place["voice_id"]
    known = {row[marker]: row[voice_id] for row in source.rows(table)}
    their_ids = set(known.values())
    left = {}
    for found in transaction.all(Statement(f"{table.query} WHERE {LEFT}")):
        row = list(found)
        if row[marker] in known and row[state] != "deleting":
            continue
        unknown = row[voice_id] is None
        if not unknown and row[voice_id] in their_ids and known.get(row[marker]) != row[voice_id]:
            # Its voice id belongs to another row by now.
            continue
        if row[state] != "deleting":
            given_up = {"state": "deleting", "reason": RESTORED, "tries": 0, "closed_at": None}
            if unknown:
                # No caller is told of a voice without an id.
                given_up |= {"caller": row[marker], "person": row[marker], "replaces": None, "owner": ""}
            for column, value in (given_up | departures.NOBODYS).items():
                row[place[column]] = value
        row[place["due_at"]] = 0.0
        left[row[marker]] = row
    return left


def _insert(connection: Connection, table: Table, rows: Iterable[list[Any]]) -> None:
    mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
    marks = ", ".join([mark] * len(table.columns))
    stays = "ON CONFLICT DO NOTHING" if table.name in STAYING else ""
    text = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks}) {stays}"
    with closing(connection.cursor()) as cursor:
        cursor.executemany(text, rows)


@contextmanager
def _alone_in_file(path: Path) -> Iterator[tuple[Connection, Transaction]]:
    """A transaction on a file that nobody else has open. Nobody can open it until the transaction is over."""
    made_private(path)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=GONE_SECONDS)) as connection:
        try:
            checked = check_with_log(path)
            # The lock is kept from the first transaction until the connection is closed. SQLite leaves WAL
            # mode only if no other process has the file open.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        except sqlite3.OperationalError as failure:
            if failure.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise RegistryInUse(f"DATABASE_URL: {path} is in use: stop every cloner first") from failure
            raise
        if not checked:
            check_whole(connection, path)
        # The commit, too, is on the disk.
        connection.execute("PRAGMA synchronous=EXTRA")
        bring_up_to_date(connection)
        connection.execute("BEGIN EXCLUSIVE")
        yield connection, SqliteTransaction(connection)


@contextmanager
def _alone_at_server(url: str) -> Iterator[tuple[Connection, Transaction]]:
    """A transaction on a database that no cloner uses. None can use it until the transaction is over."""
    from psycopg import errors

    from cloner.registry import postgres

    in_use = RegistryInUse(
        "DATABASE_URL: a cloner is at the database, or was a few seconds ago: stop every cloner first"
    )
    with closing(postgres.connected(url)) as connection:
        transaction = postgres.PostgresTransaction(connection)
        begun = postgres_revision(connection) is not None
        lacks_migrations(postgres_revision(connection))
        ends = time.monotonic() + GONE_SECONDS
        while _at_work(connection, transaction, begun=begun):
            if time.monotonic() > ends:
                raise in_use
            time.sleep(0.25)
        bring_up_to_date(connection)
        try:
            connection.execute(
                f"BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;"
                f" SET LOCAL lock_timeout = '{RECENT_SECONDS}s';"
                f" SELECT pg_advisory_xact_lock({MIGRATION_LOCK});"
                " LOCK TABLE deployment, voices, calls, agents, processes, requests, consents,"
                " alembic_version"
                " IN ACCESS EXCLUSIVE MODE".encode()
            )
        except (errors.LockNotAvailable, errors.DeadlockDetected) as failure:
            raise in_use from failure
        # Whoever came meanwhile waits by now.
        if _at_work(connection, transaction, begun=True):
            raise in_use
        yield connection, transaction


def _at_work(connection: Connection, transaction: Transaction, *, begun: bool) -> bool:
    """Whether a cloner is at work, to judge by its queries at the server or its signs of life."""
    if connection.execute(AT_WORK.encode()).fetchone() is not None:
        return True
    return begun and transaction.one(ALIVE, since=time.time() - RECENT_SECONDS) is not None
