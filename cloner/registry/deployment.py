"""The one row of the deployment: what all of its processes share."""

from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = [
    "claim_reconciliation",
    "close_month_until",
    "is_keyed",
    "month_resets_at",
    "settle",
    "settle_key",
    "touch",
]

BEGUN = Statement("""
    INSERT INTO deployment (id, name, created_at) VALUES (1, :name, :now) ON CONFLICT (id) DO NOTHING
""")
ITS_NAME = Statement("SELECT name, created_at FROM deployment")
KEYED = Statement("UPDATE deployment SET key_check = :check WHERE key_check IS NULL")
ITS_KEY = Statement("SELECT 1 FROM deployment WHERE key_check = :check")
HASHED = Statement("""
    SELECT 1 FROM deployment WHERE key_check IS NOT NULL
    UNION ALL SELECT 1 FROM voices UNION ALL SELECT 1 FROM calls UNION ALL SELECT 1 FROM consents
    LIMIT 1
""")
RESETS_AT = Statement("SELECT month_resets_at FROM deployment")
USED_UP = Statement("UPDATE deployment SET month_resets_at = :until")
# SQLite writes nothing where a row stays as it is, so it is changed and changed back. No name has a space.
TOUCHED = (
    Statement("UPDATE deployment SET name = name || ' '"),
    Statement("UPDATE deployment SET name = rtrim(name)"),
)
DUE = "reconciled_until <= :now"
CLAIMED = Statement(f"UPDATE deployment SET reconciled_until = :until WHERE {DUE}")


def settle(tx: Transaction, name: str, now: float) -> tuple[str, float]:
    """The deployment's name and the time it began; a new one is called `name` and begins now.

    It writes in any case, so that nobody starts on a full disk.
    """
    tx.run(BEGUN, name=name, now=now)
    touch(tx)
    row = tx.one(ITS_NAME)
    assert row is not None  # noqa: S101 - the insert saw to it
    return str(row[0]), float(row[1])


def is_keyed(tx: Transaction) -> bool:
    """Whether the registry has a key already: one is known, or something was hashed before any was."""
    return tx.one(HASHED) is not None


def settle_key(tx: Transaction, check: str) -> bool:
    """Whether the registry's key is the one with that check. Where none is known yet, it is from now on."""
    tx.run(KEYED, check=check)
    return tx.one(ITS_KEY, check=check) is not None


def month_resets_at(tx: Transaction) -> float:
    """When the provider's monthly counter starts again; 0 where it is not known to be used up."""
    row = tx.one(RESETS_AT)
    return float(row[0] or 0) if row else 0.0


def close_month_until(tx: Transaction, until: float) -> None:
    """Notes that the provider's monthly counter is used up until then; `now` opens it again."""
    tx.run(USED_UP, until=until)


def touch(tx: Transaction) -> None:
    """Writes the row, and leaves it as it is, to find out whether anything can be written."""
    for statement in TOUCHED:
        tx.run(statement)


def claim_reconciliation(tx: Transaction, *, now: float, until: float) -> bool:
    """Whether this process may reconcile now; if so, no other one may until `until`."""
    return tx.run(CLAIMED, now=now, until=until) == 1
