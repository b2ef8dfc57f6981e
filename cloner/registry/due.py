"""Tells an idle process in one query what there is to do."""

from cloner.registry import agents, calls, departures, deployment, requests, voices
from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = ["what_is_due"]

# The kinds of work, in the order of the parts. `close`: calls that never ended, agents and voices to be
# given up, and old rows.
KINDS = ("close", "restore", "delete", "resume", "reconcile")
# The statements that do the work use the same conditions. Each part finds its first row by an index, so that
# it costs the same however many there are.
WHAT_IS_DUE = Statement(f"""
    SELECT
        EXISTS (SELECT 1 FROM calls WHERE {calls.OPEN_FOR_LONG})
            OR EXISTS (SELECT 1 FROM calls WHERE {calls.OLD})
            OR EXISTS (SELECT 1 FROM voices WHERE {departures.OLD})
            OR EXISTS (SELECT 1 FROM agents WHERE {agents.UNSURE})
            OR EXISTS (SELECT 1 FROM voices WHERE {departures.UNUSED[0]})
            OR EXISTS (SELECT 1 FROM voices WHERE {departures.UNUSED[1]})
            OR EXISTS (SELECT 1 FROM requests WHERE {requests.OLD}),
        EXISTS (SELECT 1 FROM agents WHERE {agents.DUE}),
        EXISTS (SELECT 1 FROM voices WHERE {departures.DUE}),
        EXISTS (SELECT 1 FROM voices WHERE {voices.ABANDONED}),
        EXISTS (SELECT 1 FROM deployment WHERE {deployment.DUE})
""")


def what_is_due(
    tx: Transaction,
    *,
    now: float,
    busy_since: float,
    unused_since: float | None,
    dropped_before: float,
    stale: float,
) -> set[str]:
    """The kinds of work that there are now, of KINDS.

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
    return {kind for kind, is_due in zip(KINDS, row, strict=True) if is_due}
