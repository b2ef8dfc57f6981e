"""Processes that work at intents, and when each gave its last sign of life."""

from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = ["DEAD", "SEEN", "drop_dead", "is_alive", "note_alive"]

# A sign of life that is so much later than the last that counts is of a clock that was set back since then.
LATER_SECONDS = 60.0
# The last sign of life of the process that makes a voice, and whether it is too long ago.
SEEN = "coalesce((SELECT alive_at FROM processes WHERE processes.owner = voices.owner), 0)"
DEAD = f"""
    NOT EXISTS (
        SELECT 1 FROM processes
        WHERE processes.owner = voices.owner AND alive_at BETWEEN :stale AND :stale + {LATER_SECONDS}
    )
"""
# Every transaction that stores an intent also stores a sign of life; only the first in a while changes a row.
FRESH_SECONDS = 1.0
# A transaction that had to wait sets none back; a clock that was set back by more does.
WAITED_SECONDS = 30.0

RENEWED = Statement(f"""
    UPDATE processes SET alive_at = :now
    WHERE owner = :owner AND NOT alive_at BETWEEN :now - :fresh AND :now + {WAITED_SECONDS}
""")
FIRST = Statement("""
    INSERT INTO processes (owner, alive_at) VALUES (:owner, :now) ON CONFLICT (owner) DO NOTHING
""")
DROPPED = Statement("DELETE FROM processes WHERE alive_at < :before")


def note_alive(tx: Transaction, owner: str, *, now: float) -> None:
    """Stores a sign of life of a process that is at intents."""
    if tx.run(RENEWED, owner=owner, now=now, fresh=FRESH_SECONDS) == 0:
        tx.run(FIRST, owner=owner, now=now)


def is_alive(seen: float, *, stale: float) -> bool:
    """Whether a process whose last sign of life was `seen` then counts as alive, as it does by DEAD."""
    return stale <= seen <= stale + LATER_SECONDS


def drop_dead(tx: Transaction, *, before: float) -> None:
    """Removes the rows of processes without a sign of life since `before`."""
    tx.run(DROPPED, before=before)
