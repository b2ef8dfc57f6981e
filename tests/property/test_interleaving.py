"""Transactions of deliveries and of what is due, in any order, against the rules that always hold.

What one process does in a second is here a list of steps that a scheduler mixes with those of others. It
needs no loop and no socket, so that it tries thousands of orders in the time of one real delivery. `just soak`
goes on with new stories.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloner.registry import voices
from cloner.registry.holding import HELD_SECONDS
from cloner.registry.postgres import PostgresTransaction
from cloner.registry.sqlite import SqliteTransaction
from tests.kit.databases import in_memory
from tests.property.interleaving.deliveries import delivery, end, opening
from tests.property.interleaving.persons import ahead, consent, forget, withdraw
from tests.property.interleaving.stories import STORIES, Story
from tests.property.interleaving.upkeep import (
    close,
    evict,
    find_left_over,
    lapse,
    reconcile,
    remove,
    restore,
    resume,
)
from tests.property.interleaving.world import (
    AGENTS,
    BEFORE,
    CALL_MAX,
    CALLERS,
    CONVERSATIONS,
    GREETINGS,
    KEEP,
    NUMBERS,
    OLD_ROWS,
    PROCESSES,
    REQUESTS,
    UNFINISHED,
    Steps,
    World,
)  # fmt: skip
from tests.property.soak import SOAK_SECONDS, as_long_as_asked

WORK: dict[str, Callable[[World, int], Steps]] = {
    "restore": restore, "remove": remove, "close": close, "resume": resume, "reconcile": reconcile,
    "evict": evict, "lapse": lapse, "left over": find_left_over,
}  # fmt: skip
# How often each move is made, of a hundred.
OFTEN = {
    "step": 43, "deliver": 12, "ahead": 7, "open": 6, "end": 3, "wait": 5, "kill": 3, "lapse": 3, "evict": 3,
    "consent": 2, "withdraw": 2, "forget": 2, "restore": 2, "remove": 2, "close": 1, "resume": 1,
    "reconcile": 2, "left over": 1,
}  # fmt: skip
STEPS, WAITS = (1, 1, 2, 3, 9), (1.0, 9.0, 45.0, 1_000.0, 4_000.0)
some = st.integers(0, 11)
moves = st.lists(
    st.tuples(
        st.sampled_from([kind for kind, often in OFTEN.items() for _ in range(often)]), some, some, some
    ),
    min_size=20,
    max_size=120,
)
COMMON = settings(derandomize=not SOAK_SECONDS, database=None, print_blob=True)


def play(world: World, story: Story) -> None:
    """Does as the story says, and looks after each step whether all still holds."""
    for kind, one, two, three in story:
        process, caller = one % PROCESSES, f"caller_{two % CALLERS}"
        match kind:
            case "deliver":
                where = at(world, one, three)
                told = f"told {two % 4}" if one % 4 == 3 else ""
                begin(world, process, delivery(world, process, caller, *where, told, slow=two >= 9))
            case "open":
                at_once(opening(world, *at(world, one, three), NUMBERS[caller], require_consent=one >= 9))
            case "end":
                at_once(end(world, *at(world, one, three)))
            case "ahead":
                if three < 8:
                    world.latest_request = (caller, f"request_{three % REQUESTS}", one >= 6)
                caller, name, replaces = world.latest_request
                # It may be sent twice at once.
                by = range(PROCESSES) if one % 3 == 2 else [process]
                works = [ahead(world, each, caller, name, replaces=replaces) for each in by]
                for each, work in zip(by, works, strict=True):
                    begin(world, each, work)
                for work in works * (two % 6):
                    next(work, None)
            case "consent":
                at_once(consent(world, caller, one % 2))
            case "withdraw":
                at_once(withdraw(world, caller))
            case "forget":
                at_once(forget(world, caller, whole_number=one >= 8))
            case "kill":
                world.kill(process)
            case "wait":
                world.pass_time(WAITS[one % len(WAITS)], standing_still=two % 4 == 0)
            case "step":
                for _ in range(STEPS[two % len(STEPS)]):
                    if world.steps:
                        go_on(world, one % len(world.steps))
            case "evict" | "lapse":
                at_once(WORK[kind](world, process))
            case _:
                begin(world, process, WORK[kind](world, process))
        world.now += 0.01
        world.check()


def begin(world: World, process: int, work: Steps) -> None:
    """A process begins to do something."""
    world.steps.append((process, work))


def at(world: World, where: int, which: int) -> tuple[str, str]:
    """The agent and the conversation that are meant; often those that were meant before."""
    if which < 8:
        world.latest_call = (f"agent_{where % AGENTS}", f"conv_{which % CONVERSATIONS}")
    return world.latest_call


def at_once(work: Steps) -> None:
    """What is one transaction."""
    for _ in work:
        pass


def go_on(world: World, which: int) -> None:
    """One step further with one of those who are at something."""
    process, steps = world.steps[which]
    try:
        next(steps)
    except StopIteration:
        world.steps.remove((process, steps))


def settle(world: World) -> None:
    """Every process dies, nobody calls any more, and time passes.

    What ElevenLabs was asked for may still be done after the agents were put back for the first time.
    """
    for process in range(PROCESSES):
        world.kill(process)
    landing, world.steps, world.open = [steps for _, steps in world.steps], [], {}
    for seconds in (HELD_SECONDS + 1, *[CALL_MAX + KEEP] * 4):
        world.now += seconds
        for kind in ("close", "resume", "restore", "remove", "reconcile"):
            for _ in range(12):
                for _ in WORK[kind](world, 0):
                    world.check()
        assert [] == world.tx.all(UNFINISHED), "an update that nobody finished is not undone"
        while landing:
            at_once(landing.pop())
    assert BEFORE == world.agents, "an agent did not get back what it had"
    assert {} == world.made, "a voice was left behind"
    assert [] == voices.ready(world.tx)
    assert [] == world.tx.all(GREETINGS), "the greeting of a caller stayed with an agent"
    for caller, at in world.forgotten.items():
        assert [] == world.tx.all(OLD_ROWS, caller=caller, before=at), "a row of who was forgotten"


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_story(migrated_file: bytes, story: Story) -> None:
    """A story that went wrong once goes well."""
    with in_memory(migrated_file) as connection:
        world = World(SqliteTransaction(connection))
        play(world, story)
        settle(world)


@pytest.mark.timeout(600 + SOAK_SECONDS)
def test_in_any_order(migrated_file: bytes) -> None:
    """In SQLite, in memory."""

    @settings(COMMON, max_examples=340)
    @given(story=moves)
    def lives(story: Story) -> None:
        with in_memory(migrated_file) as connection:
            world = World(SqliteTransaction(connection))
            play(world, story)
            settle(world)

    as_long_as_asked(lives)


@pytest.mark.timeout(600 + SOAK_SECONDS)
def test_in_any_order_in_postgres(databases: Any) -> None:
    """In Postgres, where each story is rolled back at its end."""
    url = databases.take()

    @settings(COMMON, max_examples=25)
    @given(story=moves)
    def lives(story: Story) -> None:
        with psycopg.connect(url) as connection:
            world = World(PostgresTransaction(connection))
            play(world, story)
            settle(world)
            connection.rollback()

    as_long_as_asked(lives)
    databases.give_back(url)
