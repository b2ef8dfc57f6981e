"""What an idle cloner does every second."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import pytest

from cloner.registry import (
    AgentRow,
    AgentUpdate,
    NewCall,
    Store,
    Transaction,
    agents,
    calls,
    consents,
    departures,
    due,
    opened,
    requests,
    voices,
)
from cloner.registry.sqlite import SqliteTransaction
from cloner.registry.statement import Statement
from tests.cloner.clock import Clock
from tests.kit.databases import in_memory
from tests.kit.figures import Figures
from tests.kit.intents import intent
from tests.kit.requests import call
from tests.kit.rows import values

NOW = 1_765_000_000.0
DAY = 86_400.0
UPKEEP: dict[str, Callable[[Transaction], object]] = {
    "what_is_due": lambda tx: due.what_is_due(
        tx,
        now=NOW,
        busy_since=NOW - 7_200,
        unused_since=NOW - DAY,
        dropped_before=NOW - 30 * DAY,
        stale=NOW - 8,
    ),
    "close_old": lambda tx: calls.close_old(tx, before=NOW - 7_200, now=NOW),
    "plan_unsure_restores": lambda tx: agents.plan_unsure_restores(tx, now=NOW),
    "expire": lambda tx: departures.expire(tx, unused_since=NOW - DAY, busy_since=NOW - 7_200, now=NOW),
    "drop_ended": lambda tx: calls.drop_ended(tx, before=NOW - 30 * DAY),
    "drop_closed": lambda tx: departures.drop_closed(tx, before=NOW - 30 * DAY),
    "claim_restore": lambda tx: agents.claim_restore(tx, holder="p", now=NOW),
    "claim_deletion": lambda tx: departures.claim_deletion(tx, now=NOW, until=NOW + 60),
}


def steps_of_upkeep(migrated_file: bytes, callers: int) -> dict[str, int]:
    """How many steps of SQLite's machine each takes while so many callers are in calls, and as many enrolled."""
    with in_memory(migrated_file) as connection:
        tx = SqliteTransaction(connection)
        for number in range(callers):
            begin_call(tx, number)
            enrolled = msgspec.structs.replace(
                intent(f"enrolled_{number}", caller=f"e{number}"), kept_until=NOW + 28 * DAY
            )
            voices.intend(tx, enrolled, call_id=None, now=NOW - 2 * DAY)
            assert voices.record(tx, enrolled.marker, f"voice_e{number}", now=NOW - 2 * DAY)
        found = {}
        for name, work in UPKEEP.items():
            steps: list[None] = []
            connection.set_progress_handler(partial(steps.append, None), 1)
            work(tx)
            connection.set_progress_handler(None, 0)
            found[name] = len(steps)
        return found


def begin_call(tx: Transaction, number: int) -> None:
    """A caller is in a call, and the agent has the caller's voice."""
    call, agent, caller, marker = (f"{what}_{number}" for what in ("call", "agent", "caller", "marker"))
    calls.begin(tx, NewCall(id=call, agent_id=agent, conversation_id=call, caller=caller, begun_at=NOW - 60))
    voices.intend(tx, intent(marker, caller=caller), call_id=call, now=NOW - 60)
    row = AgentRow(agent, marker, call, f"voice_{number}", "Hello", "before", "Welcome", None, None, None, "")
    update = AgentUpdate(row=row, changes=0, caller=caller, others_since=None, holder="process")
    assert (voices.Recorded(None), None) == agents.record_and_intend(tx, update, stated="", now=NOW - 60)
    assert agents.unlock(tx, agent, holder="process", given=True)


def test_upkeep_costs_the_same(migrated_file: bytes) -> None:
    """What is done every second costs the same, however many callers are in calls or enrolled."""
    assert steps_of_upkeep(migrated_file, 3) == steps_of_upkeep(migrated_file, 300)


VOICE = "marker, state, caller, name, created_at, used_at, checked_at, closed_at"
CALL = "id, agent_id, conversation_id, caller, begun_at, ended_at"
# Rows of which each kind is more than one transaction takes: where, how many, of what, and what is left to do.
MANY = {
    "ended calls": ("calls", 2_500, CALL, "'call_' || n, 'agent', '', 'c', 0, 1", "ended_at < 9"),
    "open calls": ("calls", 250, CALL, "'open_' || n, 'agent', '', 'c', 0, NULL", "ended_at IS NULL"),
    "gone voices": ("voices", 2_500, VOICE, "'gone_' || n, 'gone', 'c', '', 0, 0, 0, 1", "closed_at = 1"),
    "unused voices": (
        "voices", 2_500, VOICE, "'ready_' || n, 'ready', 'c_' || n, '', 0, 0, 0, NULL", "state = 'ready'",
    ),
    "requests": ("requests", 2_500, "key, content, reused, at", "'key_' || n, '', false, 0", "true"),
    "consents": (
        "consents", 2_500, "person, place, reference, withdrawn, at", "'p_' || n, 1, 'form', false, 0", "true",
    ),
}  # fmt: skip
WORK: dict[str, Callable[[Transaction], object]] = {
    "ended calls": lambda tx: calls.drop_ended(tx, before=NOW),
    "open calls": lambda tx: calls.close_old(tx, before=NOW, now=NOW),
    "gone voices": lambda tx: departures.drop_closed(tx, before=NOW),
    "unused voices": lambda tx: departures.expire(tx, unused_since=NOW, busy_since=NOW, now=NOW),
    "requests": lambda tx: requests.drop_old(tx, before=NOW),
    "consents": lambda tx: consents.drop_unreachable(tx, before=NOW),
}


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """An open registry, on both databases."""
    async with opened(database, name="tested", now=NOW) as made:
        yield made


async def fill(store: Store, what: str) -> None:
    """Stores the rows of a kind."""
    table, many, columns, row, _ = MANY[what]
    numbers = f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {many})"
    stored = Statement(f"{numbers} INSERT INTO {table} ({columns}) SELECT {row} FROM n")
    await store.write(lambda tx: tx.run(stored))


async def left(database: str, what: str) -> int:
    """How many rows of a kind are still to be done."""
    table, *_, condition = MANY[what]
    ((many,),) = await values(database, f"SELECT count(*) FROM {table} WHERE {condition}")
    return int(many)


@pytest.mark.parametrize("what", MANY)
async def test_in_parts(store: Store, database: str, what: str) -> None:
    """One transaction takes so many rows at most, and says whether it is to be repeated."""
    await fill(store, what)
    told, done = [], []
    for _ in range(4):
        told.append(bool(await store.write(WORK[what])))
        done.append(await left(database, what))
    lists = what in {"open calls", "unused voices"}

    assert ([150, 50, 0, 0] if what == "open calls" else [1_500, 500, 0, 0]) == done
    assert [True, True, lists, False] == told


BLOCKS = Statement("SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class")


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("what", MANY)
async def test_part_of_a_table_that_grew(store: Store, what: str) -> None:
    """A part costs no more because Postgres still takes the table for empty, as after a restore or a burst."""
    await fill(store, what)

    def cost(tx: Transaction) -> int:
        WORK[what](tx)
        (blocks,) = tx.one(BLOCKS) or (0,)
        return int(blocks)

    # Of a thousand rows, with their indexes. Where each asked the whole condition again, it was six million.
    assert 200_000 > await store.write(cost)


async def test_all_parts(cloning, store: Store, database: str) -> None:
    """A cloner does all that there is."""
    for what in MANY:
        await fill(store, what)
    async with cloning(), asyncio.timeout(60):
        while any([await left(database, what) for what in MANY]):
            await asyncio.sleep(0.05)


async def test_agents_in_calls_are_only_looked_at(cloning, figures: Figures, speech: bytes) -> None:
    """Who goes through all agents with a voice, every minute, writes nothing where none is left over."""
    took, by_name = "precall.registry.transaction.duration", "precall.registry.transaction"
    clock = Clock()
    async with cloning(now=clock, meters=figures.meters) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        # The third look begins after whatever the second one led to.
        for looks in (1, 2, 3):
            clock.ahead = 61.0 * looks
            await figures.until(
                took, lambda told, looks=looks: (told or 0) >= looks, **{by_name: "agents.any_left_over"}
            )

    assert None is figures.told(took, **{by_name: "agents.plan_left_over_restores"})
