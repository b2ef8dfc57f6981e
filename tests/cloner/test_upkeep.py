"""What an idle cloner does every second."""

from collections.abc import Callable
from functools import partial

import msgspec

from cloner.registry import (
    AgentRow,
    AgentUpdate,
    NewCall,
    Transaction,
    agents,
    calls,
    departures,
    due,
    voices,
)
from cloner.registry.sqlite import SqliteTransaction
from tests.kit.databases import in_memory
from tests.kit.intents import intent

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
    assert (voices.Recorded(None), None) == agents.record_and_intend(tx, update, now=NOW - 60)
    assert agents.unlock(tx, agent, holder="process", given=True)


def test_upkeep_costs_the_same(migrated_file: bytes) -> None:
    """What is done every second costs the same, however many callers are in calls or enrolled."""
    assert steps_of_upkeep(migrated_file, 3) == steps_of_upkeep(migrated_file, 300)
