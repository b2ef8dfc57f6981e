"""Transactions of deliveries and of what is due, in any order, against the rules that always hold.

What one process does in a second is here a list of steps that a scheduler mixes with those of others. It
needs no loop and no socket, so that it tries thousands of orders in the time of one real delivery.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloner.registry import voices
from cloner.registry.postgres import PostgresTransaction
from cloner.registry.sqlite import SqliteTransaction
from tests.property.interleaving.deliveries import delivery, end
from tests.property.interleaving.upkeep import close, reconcile, remove, restore, resume
from tests.property.interleaving.world import (
    AGENTS,
    BEFORE,
    CALL_MAX,
    CALLERS,
    CONVERSATIONS,
    KEEP,
    PROCESSES,
    Steps,
    World,
)  # fmt: skip

WORK: dict[str, Callable[[World, int], Steps]] = {
    "restore": restore, "remove": remove, "close": close, "resume": resume, "reconcile": reconcile,
}  # fmt: skip
some = st.integers(0, 11)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), some, some, some),
        *[st.tuples(st.just("step"), some, st.sampled_from((1, 1, 2, 3, 9)))] * 4,
        st.tuples(st.just("end"), some, some),
        st.tuples(st.just("kill"), some),
        st.tuples(st.just("wait"), st.sampled_from((1.0, 9.0, 45.0, 1_000.0, 4_000.0))),
        st.tuples(st.sampled_from(sorted(WORK)), some),
    ),
    min_size=20,
    max_size=120,
)


def play(world: World, story: list[tuple[Any, ...]]) -> None:
    """Does as the story says, and looks after each step whether all still holds."""
    for move in story:
        match move:
            case ("deliver", who, where, which):
                work = delivery(
                    world, who % PROCESSES, f"caller_{who % CALLERS}", f"agent_{where % AGENTS}",
                    f"conv_{which % CONVERSATIONS}",
                )  # fmt: skip
                world.steps.append((who % PROCESSES, work))
            case ("end", where, which):
                work = end(world, f"agent_{where % AGENTS}", f"conv_{which % CONVERSATIONS}")
                world.steps.append((0, work))
                go_on(world, len(world.steps) - 1)
            case ("kill", which):
                process = which % PROCESSES
                world.alive[process] += 1
                world.steps = [(by, steps) for by, steps in world.steps if by != process]
            case ("wait", seconds):
                world.now += seconds
            case ("step", which, count):
                for _ in range(count):
                    if world.steps:
                        go_on(world, which % len(world.steps))
            case (kind, which) if kind in WORK:
                world.steps.append((which % PROCESSES, WORK[kind](world, which % PROCESSES)))
        world.now += 0.01
        world.check()


def go_on(world: World, which: int) -> None:
    """One step further with one of those who are at something."""
    process, steps = world.steps[which]
    try:
        next(steps)
    except StopIteration:
        world.steps.remove((process, steps))


def settle(world: World) -> None:
    """Every process dies, nobody calls any more, and time passes."""
    world.steps, world.open = [], {}
    world.alive = [count + 1 for count in world.alive]
    for _ in range(4):
        world.now += CALL_MAX + KEEP
        for kind in ("close", "resume", "restore", "remove", "reconcile"):
            for _ in range(12):
                for _ in WORK[kind](world, 0):
                    world.check()
    assert BEFORE == world.agents, "an agent did not get back what it had"
    assert {} == world.made, "a voice was left behind"
    assert [] == voices.ready(world.tx)


@pytest.mark.timeout(300)
def test_in_any_order(migrated_file: bytes) -> None:
    """In SQLite, in memory."""
    # As the file says of itself (SQLite file format, 1.3), it has a log beside it; what is in memory has none.
    without_log = migrated_file[:18] + b"\x01\x01" + migrated_file[20:]

    @settings(max_examples=400, derandomize=True, database=None, print_blob=True)
    @given(story=moves)
    def lives(story: list[tuple[Any, ...]]) -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(without_log)
            world = World(SqliteTransaction(connection))
            play(world, story)
            settle(world)

    lives()


@pytest.mark.timeout(300)
def test_in_any_order_in_postgres(databases: Any) -> None:
    """In Postgres, where each story is rolled back at its end."""
    url = databases.take()

    @settings(max_examples=25, derandomize=True, database=None, print_blob=True)
    @given(story=moves)
    def lives(story: list[tuple[Any, ...]]) -> None:
        with psycopg.connect(url) as connection:
            world = World(PostgresTransaction(connection))
            play(world, story)
            settle(world)
            connection.rollback()

    lives()
    databases.give_back(url)
