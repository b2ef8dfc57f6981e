"""What stands in a database, past the cloner."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

from psycopg.rows import dict_row

from tests.kit.postgres import entered

Row = dict[str, Any]


async def rows(database: str, query: str) -> list[Row]:
    """The rows of a query, by the names of their columns."""
    if database.startswith("sqlite:///"):
        return await asyncio.to_thread(_of_sqlite, database.removeprefix("sqlite:///"), query)
    return await asyncio.to_thread(_of_postgres, database, query)


async def values(database: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query, as values in order."""
    return [tuple(row.values()) for row in await rows(database, query)]


def _of_sqlite(path: str, query: str) -> list[Row]:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def _of_postgres(url: str, query: str) -> list[Row]:
    return entered(url).cursor(row_factory=dict_row).execute(query).fetchall()
