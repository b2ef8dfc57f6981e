"""Counts rows for metrics. Each count goes through an index that holds little beside what is counted."""

import msgspec

from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = ["Census", "count"]

COUNTS = Statement("""
    SELECT
        (SELECT count(*) FROM voices WHERE state = 'intended'),
        (SELECT count(*) FROM voices WHERE state = 'ready'),
        (SELECT count(*) FROM voices WHERE state = 'deleting'),
        (SELECT count(*) FROM calls WHERE ended_at IS NULL AND begun_at > :busy_since),
        (SELECT count(*) FROM agents WHERE restoring),
        (
            SELECT min(calls.ended_at) FROM agents JOIN calls ON calls.id = agents.call_id
            WHERE agents.restoring
        )
""")
# The thousand that are most overdue are enough.
DELETING = Statement("""
    SELECT marker, tries, due_at FROM voices WHERE state = 'deleting' ORDER BY due_at LIMIT 1000
""")


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """What there was at one time."""

    intended: int
    ready: int
    deleting: int
    calls: int
    """Calls in progress."""

    agents: int
    """Agents to be put back."""

    agents_since: float | None
    """When the earliest ended of their calls ended; None where that is not known."""

    deletions: list[tuple[str, int, float]]
    """Voices to be deleted: marker, number of tries, and when the next try may begin."""


def count(tx: Transaction, *, busy_since: float) -> Census:
    """Counts. Calls that began before `busy_since` count as over."""
    row = tx.one(COUNTS, busy_since=busy_since)
    assert row is not None  # noqa: S101 - a question without a table always has one answer
    intended, ready, deleting, calls, agents, since = row
    return Census(
        intended=intended,
        ready=ready,
        deleting=deleting,
        calls=calls,
        agents=agents,
        agents_since=since,
        deletions=[(str(marker), int(tries), float(due_at)) for marker, tries, due_at in tx.all(DELETING)],
    )
