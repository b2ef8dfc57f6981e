"""What stands in a database, past the cloner."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

from psycopg.rows import dict_row

from tests.kit.postgres import entered

Row = dict[str, Any]

LOOK_SECONDS, LONG_SECONDS = 0.02, 30.0
LOCKED = "SELECT 1 FROM agents WHERE holder <> ''"
STATED = "SELECT 1 FROM calls WHERE stated NOT IN ('', '-')"


async def rows(database: str, query: str) -> list[Row]:
    """The rows of a query, by the names of their columns."""
    if database.startswith("sqlite:///"):
        return await asyncio.to_thread(_of_sqlite, database.removeprefix("sqlite:///"), query)
    return await asyncio.to_thread(_of_postgres, database, query)


async def values(database: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query, as values in order."""
    return [tuple(row.values()) for row in await rows(database, query)]


async def until_none(database: str, query: str) -> None:
    """Waits until a query finds no row."""
    async with asyncio.timeout(LONG_SECONDS):
        while await rows(database, query):
            await asyncio.sleep(LOOK_SECONDS)


async def until_unlocked(database: str) -> None:
    """Waits until it is stored that agents were given what they have: no answer waits for that."""
    await until_none(database, LOCKED)


async def until_unstated(database: str) -> None:
    """Waits until calls that failed are nobody's any more: their answers do not wait long for that."""
    await until_none(database, STATED)


def _of_sqlite(path: str, query: str) -> list[Row]:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def _of_postgres(url: str, query: str) -> list[Row]:
    return entered(url).cursor(row_factory=dict_row).execute(query).fetchall()
