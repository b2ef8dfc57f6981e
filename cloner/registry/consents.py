"""Consents: every consent to be cloned that a person gave or withdrew, each with its time, in order.

Only the erasure of a person removes any, and of persons without a number the end of their last voice.
"""

import msgspec

from cloner.registry.rows import NOBODY
from cloner.registry.statement import AT_ONCE, Statement, of_some
from cloner.registry.transaction import Lock, Transaction

__all__ = [
    "CallerForgotten",
    "Consent",
    "ConsentWithdrawn",
    "callers_from",
    "counting",
    "drop_unreachable",
    "erase",
    "give",
    "history",
    "note",
    "persons_of",
    "standing",
    "withdraw",
]


class ConsentWithdrawn(Exception):
    """The person has withdrawn the consent, and gave no new one since. Nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            "The consent to this voice was withdrawn: a new one is needed, with its own reference."
        )


class CallerForgotten(Exception):
    """The caller was forgotten after the request had come. No voice is left of it."""

    def __init__(self) -> None:
        super().__init__(
            "The caller was forgotten while the request was under way: another voice needs a new request."
        )


class Consent(msgspec.Struct, frozen=True):
    """A consent that was given, or withdrawn."""

    reference: str
    withdrawn: bool
    at: float


FIELDS = "reference, withdrawn, at"
LATEST = Statement(f"SELECT {FIELDS}, place FROM consents WHERE person = :person ORDER BY place DESC LIMIT 1")
KNOWN = Statement(
    "SELECT 1 FROM consents WHERE person = :person AND reference = :reference AND NOT withdrawn LIMIT 1"
)
ADDED = Statement("""
    INSERT INTO consents (person, place, number, reference, withdrawn, at)
    VALUES (:person, :place, :number, :reference, :withdrawn, :now)
""")
OF_PERSON = Statement(f"""
    SELECT {FIELDS} FROM consents WHERE person = :person ORDER BY place DESC LIMIT :most
""")
KNOWN_BY_NUMBER = """
    SELECT person FROM voices WHERE number = :number
    UNION SELECT person FROM consents WHERE number = :number
"""
PERSONS = Statement(f"{KNOWN_BY_NUMBER} ORDER BY 1 LIMIT :most")
CALLERS = Statement(f"""
    {KNOWN_BY_NUMBER}
    UNION SELECT coalesce(nullif(person, ''), stated) FROM calls
        WHERE number = :number AND (person <> '' OR stated NOT IN ('', '{NOBODY}'))
    ORDER BY 1 LIMIT :most
""")
UNREACHABLE = """number IS NULL AND at < :dropped_before
    AND NOT EXISTS (SELECT 1 FROM voices WHERE voices.person = consents.person)
    AND NOT EXISTS (SELECT 1 FROM consents AS others WHERE others.person = consents.person AND withdrawn)"""
UNREACHABLE_DROPPED = Statement(
    of_some("DELETE FROM consents", table="consents", key="person, place", condition=UNREACHABLE)
)
ERASED_PERSON = Statement("DELETE FROM consents WHERE person = :person")
ERASED_NUMBER = Statement("DELETE FROM consents WHERE number = :number")


def history(tx: Transaction, person: str, *, most: int) -> list[Consent]:
    """The consents and withdrawals of a person, newest first, at most `most` of them."""
    return [_consent(row) for row in tx.all(OF_PERSON, person=person, most=most)]


def standing(tx: Transaction, person: str) -> Consent | None:
    """The consent of the person that is in force, if there is one."""
    consent, _ = _latest(tx, person)
    return None if consent is None or consent.withdrawn else consent


def persons_of(tx: Transaction, number: str, *, most: int) -> list[str]:
    """The persons of whom a voice or a consent is known under the number."""
    return [row[0] for row in tx.all(PERSONS, number=number, most=most)]


def callers_from(tx: Transaction, number: str, *, most: int) -> list[str]:
    """The persons known under the number, and those whom deliveries from it stated, failed or not."""
    return [row[0] for row in tx.all(CALLERS, number=number, most=most)]


def drop_unreachable(tx: Transaction, *, before: float) -> bool:
    """Removes what persons without a number consented to before `before`, and of whom no voice is left.

    Nobody could name them. Those who have withdrawn a consent stay, so that this counts. Returns whether
    there may be more of them.
    """
    return tx.run(UNREACHABLE_DROPPED, dropped_before=before) == AT_ONCE


def counting(
    tx: Transaction, person: str, *, told: str, number: str | None, now: float
) -> tuple[str, float | None]:
    """The consent under which a voice of the person is made now, and its time; empty and None without one.

    `told` is the consent that came with the request, and is stored. Raises ConsentWithdrawn if the last
    consent was withdrawn and `told` is empty or not new.
    """
    tx.lock(Lock.PERSON, person)
    latest, _ = _latest(tx, person)
    if latest is not None and latest.withdrawn:
        if not told or tx.one(KNOWN, person=person, reference=told) is not None:
            raise ConsentWithdrawn
    elif not told:
        return ("", None) if latest is None else (latest.reference, latest.at)
    return told, give(tx, person, told, number=number, now=now)


def note(tx: Transaction, person: str, reference: str, *, number: str | None, now: float) -> bool:
    """Stores a consent that came with a request, unless it is known. Returns whether it was not."""
    tx.lock(Lock.PERSON, person)
    if tx.one(KNOWN, person=person, reference=reference) is not None:
        return False
    give(tx, person, reference, number=number, now=now)
    return True


def give(tx: Transaction, person: str, reference: str, *, number: str | None, now: float) -> float:
    """Stores a consent, and returns its time; one that is in force already keeps its time."""
    tx.lock(Lock.PERSON, person)
    latest, place = _latest(tx, person)
    if latest is not None and not latest.withdrawn and latest.reference == reference:
        return latest.at
    _add(tx, person, place, reference, number=number, withdrawn=False, now=now)
    return now


def withdraw(tx: Transaction, person: str, reference: str, *, number: str | None, now: float) -> None:
    """Stores a withdrawal; a consent that is withdrawn already keeps its time."""
    tx.lock(Lock.PERSON, person)
    latest, place = _latest(tx, person)
    if latest is None or not latest.withdrawn:
        _add(tx, person, place, reference, number=number, withdrawn=True, now=now)


def erase(tx: Transaction, *, person: str | None = None, number: str | None = None) -> None:
    """Removes every consent of a person, or of whoever calls from a number."""
    if person is not None:
        tx.run(ERASED_PERSON, person=person)
    if number is not None:
        tx.run(ERASED_NUMBER, number=number)


def _latest(tx: Transaction, person: str) -> tuple[Consent | None, int]:
    """The latest entry, and its place; 0 where there is none."""
    row = tx.one(LATEST, person=person)
    return (None, 0) if row is None else (_consent(row[:3]), int(row[3]))


def _add(
    tx: Transaction,
    person: str,
    place: int,
    reference: str,
    *,
    number: str | None,
    withdrawn: bool,
    now: float,
) -> None:
    tx.run(
        ADDED,
        person=person,
        place=place + 1,
        number=number,
        reference=reference,
        withdrawn=withdrawn,
        now=now,
    )


def _consent(row: tuple[object, ...]) -> Consent:
    reference, withdrawn, at = row
    # SQLite has no booleans, only 0 and 1. The time is a number in both.
    return Consent(str(reference), bool(withdrawn), float(at))  # type: ignore[arg-type]
