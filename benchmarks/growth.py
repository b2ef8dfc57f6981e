"""What a call costs as the registry grows: a small one and a large one, under the same load in turns.

A large one is a small one whose rows were copied, as many times as it takes, while nobody served from it.
What differs in every row of a table differs in the copies too. Nothing else of the tables is known here, but
how to see that every agent was put back: one that was not would be put back once for each copy.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import uvloop

from benchmarks.client import send
from benchmarks.comparison import KNOWN, NEW, OVERRIDE, VOICE
from benchmarks.deliveries import SIZES, deliveries, ends, initiations, speech
from benchmarks.report import Figure, at_most
from benchmarks.system import Subject, system
from benchmarks.turns import FASTEST, Length, Side, measured
from demo.processes import ProcessFailed
from tests.kit.postgres import new_database, running, url_in

__all__ = ["growth", "in_database", "multiply", "postgres_databases"]

SMALL = 100
SIZE = SIZES["200 KB"]
RESTORED_SECONDS = 60.0
FAST = 800  # requests of the initiation webhook in a second, one after the other

Run = Callable[[str], list[tuple[Any, ...]]]


def growth(elevenlabs: str, length: Length, voices: int) -> list[Figure]:
    """Each kind of request, with SQLite and with Postgres, at 100 voices and at so many."""
    found = []
    with TemporaryDirectory(prefix="precall-bench-") as folder:
        files = [f"sqlite:///{folder}/{name}.sqlite3" for name in ("small", "large")]
        found += _of("SQLite", elevenlabs, files, length, voices)
    with postgres_databases(2) as urls:
        found += _of("Postgres", elevenlabs, urls, length, voices)
    return found


@contextmanager
def postgres_databases(count: int) -> Iterator[list[str]]:
    """So many empty databases on a server of their own, of the kind that the tests use."""
    with running() as file:
        yield [new_database(url_in(file)) for _ in range(count)]


def _of(kind: str, elevenlabs: str, databases: Sequence[str], length: Length, voices: int) -> list[Figure]:
    for database in databases:
        with system(elevenlabs, database=database) as ours:
            _fill(ours)
            _wait_for_agents(database)
    with in_database(databases[1]) as run:
        multiply(run, voices, sqlite=kind == "SQLite")
    found = []
    with ExitStack() as stack:
        both = [
            stack.enter_context(system(elevenlabs, database=database, name=name))
            for database, name in zip(databases, ("small", "large"), strict=True)
        ]
        sample = speech(SIZE)
        for what, requests, expected, fastest in (
            ("new caller", partial(deliveries, sample, "JSON"), NEW, FASTEST[SIZE]),
            ("known caller", partial(deliveries, sample, "JSON", callers=SMALL), KNOWN, FASTEST[SIZE]),
            ("initiation webhook", partial(initiations, SMALL), OVERRIDE, FAST),
        ):
            small, large = measured(
                [Side(subject, requests, expected) for subject in both], length, at_once=1, fastest=fastest
            )
            least, most = small.answered.quantile(0.5), large.answered.quantile(0.5)
            found.append(
                Figure(
                    f"{kind}: {what}, alone, at {voices:,} voices / {SMALL}",
                    f"p50 {most:.2f} / {least:.2f} ms, CPU {large.cpu:.2f} / {small.cpu:.2f} ms",
                    at_most(most / least, 1.2, "p50 x "),
                )
            )
    return found


def _fill(ours: Subject) -> None:
    """Some callers, each with a voice and one call, which is over."""
    sent = list(islice(deliveries(speech(SIZE), "JSON", callers=SMALL), SMALL))
    uvloop.run(send(ours.url, sent, at_once=8, seconds=600, expected=VOICE))
    uvloop.run(send(ours.url, islice(ends(sent), SMALL), at_once=8, seconds=600, expected=b'"success"'))


def _wait_for_agents(database: str) -> None:
    """Waits until none has the voice of a call that is over."""
    until = time.monotonic() + RESTORED_SECONDS
    while time.monotonic() < until:
        with in_database(database) as run:
            if run("SELECT count(*) FROM agents WHERE marker IS NOT NULL") == [(0,)]:
                return
        time.sleep(0.2)
    raise ProcessFailed("not every agent was put back")


def multiply(run: Run, wanted: int, *, sqlite: bool) -> None:
    """Copies the rows of every table that has one for each voice, until there are as many as wanted."""
    times = wanted // SMALL - 1
    numbers = f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {times})"
    copied = []
    for table, columns in _tables(run, sqlite=sqlite).items():
        told = run(
            f"SELECT count(*), {', '.join(f'count(DISTINCT {name})' for name in columns)} FROM {table}"
        )
        rows, *distinct = told[0]
        if rows < SMALL:
            continue
        values = [
            name if different < rows else f"{name} || '-' || n" if texts else f"{name} - n * 0.01"
            for (name, texts), different in zip(columns.items(), distinct, strict=True)
        ]
        copied.append(table)
        run(
            f"INSERT INTO {table} ({', '.join(columns)}) {numbers} SELECT {', '.join(values)} FROM {table}, n"
        )

    if not copied:
        raise ProcessFailed("no table has a row for each voice")


def _tables(run: Run, *, sqlite: bool) -> dict[str, dict[str, bool]]:
    """The columns of each table, and whether they hold texts."""
    listed = run(
        "SELECT m.name, c.name, c.type FROM sqlite_master m, pragma_table_info(m.name) c"
        " WHERE m.type = 'table'"
        if sqlite
        else "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public'"
    )
    found: dict[str, dict[str, bool]] = {}
    for table, column, kind in listed:
        found.setdefault(table, {})[column] = kind.lower() in ("text", "varchar", "character varying")
    return found


@contextmanager
def in_database(database: str) -> Iterator[Run]:
    """Runs statements in a database that nobody serves from."""
    if database.startswith("sqlite"):
        with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as file:
            # It is filled once and thrown away.
            file.execute("PRAGMA synchronous = OFF")
            yield lambda statement: file.execute(statement).fetchall()
            file.commit()
        return
    with psycopg.connect(database, autocommit=True) as connection:

        def run(statement: str) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        yield run
        # As the server does by itself after a while.
        run("VACUUM ANALYZE")
