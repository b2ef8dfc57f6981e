"""Tells an idle process in one query what there is to do."""

import msgspec

from cloner.registry import agents, departures, requests
from cloner.registry.processes import DEAD
from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = ["Due", "what_is_due"]


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Which kinds of work there are."""

    close: bool
    """Calls that never ended, agents and voices to be given up, and old rows."""

    restore: bool
    delete: bool
    resume: bool
    reconcile: bool


# Each part finds its first row by an index, so that it costs the same however many there are.
WHAT_IS_DUE = Statement(f"""
    SELECT
        EXISTS (SELECT 1 FROM calls WHERE ended_at IS NULL AND begun_at <= :busy_since)
            OR EXISTS (SELECT 1 FROM calls WHERE ended_at < :dropped_before)
            OR EXISTS (SELECT 1 FROM voices WHERE state IN ('gone', 'failed') AND closed_at < :dropped_before)
            OR EXISTS (SELECT 1 FROM agents WHERE {agents.UNSURE})
            OR EXISTS (SELECT 1 FROM voices WHERE {departures.UNUSED[0]})
            OR EXISTS (SELECT 1 FROM voices WHERE {departures.UNUSED[1]})
            OR EXISTS (SELECT 1 FROM requests WHERE at <= :answered_before),
        EXISTS (SELECT 1 FROM agents WHERE restoring AND held_until <= :now),
        EXISTS (SELECT 1 FROM voices WHERE {departures.DUE}),
        EXISTS (SELECT 1 FROM voices WHERE state = 'intended' AND {DEAD}),
        EXISTS (SELECT 1 FROM deployment WHERE reconciled_until <= :now)
""")


def what_is_due(
    tx: Transaction,
    *,
    now: float,
    busy_since: float,
    unused_since: float | None,
    dropped_before: float,
    stale: float,
) -> Due:
    """What there is to do now.

    Voices that nobody has used since `unused_since` expire. If it is None, no voice expires.
    """
    row = tx.one(
        WHAT_IS_DUE,
        now=now,
        busy_since=busy_since,
        unused_since=float("-inf") if unused_since is None else unused_since,
        dropped_before=dropped_before,
        stale=stale,
        answered_before=now - requests.KEPT_SECONDS,
    )
    assert row is not None  # noqa: S101 - a question without a table always has one answer
    # SQLite has no booleans, only 0 and 1.
    close, restore, delete, resume, reconcile = map(bool, row)
    return Due(close=close, restore=restore, delete=delete, resume=resume, reconcile=reconcile)
