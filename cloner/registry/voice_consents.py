"""What a consent or a withdrawal does to the voices of the person."""

from cloner.registry import consents, requests, voices
from cloner.registry.reasons import CONSENT_WITHDRAWN, LOST
from cloner.registry.rows import VoiceRow
from cloner.registry.statement import Statement
from cloner.registry.transaction import Transaction

__all__ = ["give", "take_in", "withdraw", "withdraw_all"]

CONSENTED = Statement(f"""
    UPDATE voices SET consent = :consent, consent_at = :now
    WHERE marker = :marker AND consent = '' AND {voices.ACTIVE}
""")
WITH_CONSENT = Statement(f"""
    UPDATE voices SET consent = :consent, consent_at = :at WHERE person = :person AND {voices.ACTIVE}
""")
WITHDRAWN = Statement(f"{voices.GIVE_UP} WHERE person = :person AND state = 'ready'")
# A voice whose creation failed may have been made all the same.
# Those that may still turn up at ElevenLabs.
WITHDRAWN_TOO = Statement(f"""
    UPDATE voices SET reason = :reason
    WHERE person = :person AND (state = 'failed' OR (state = 'gone' AND reason = '{LOST}'))
""")


def take_in(tx: Transaction, marker: str, consent: str, *, now: float) -> None:
    """Stores a consent that was noted in the row of a voice that is used and has none yet."""
    tx.run(CONSENTED, marker=marker, consent=consent, now=now)


def give(
    tx: Transaction,
    person: str,
    consent: str,
    *,
    number: str | None,
    now: float,
    marker: str | None = None,
) -> None:
    """Stores a consent, also in the rows of the person's voices, ready or on their way.

    Raises CallerForgotten if it was told of the voice of `marker`, whose person was forgotten.
    """
    _check_remembered(tx, marker)
    at = consents.give(tx, person, consent, number=number, now=now)
    tx.run(WITH_CONSENT, person=person, consent=consent, at=at)


def withdraw(
    tx: Transaction,
    person: str,
    consent: str,
    *,
    number: str | None,
    now: float,
    traceparent: str = "",
    marker: str | None = None,
) -> list[VoiceRow]:
    """Stores a withdrawal, and gives up the person's voices, ready or on their way.

    Returns those that ElevenLabs still has and that must be deleted there. Raises CallerForgotten as `give`
    does.
    """
    _check_remembered(tx, marker)
    consents.withdraw(tx, person, consent, number=number, now=now)
    for row in voices.find_by_person_or_number(tx, person, None):
        if row.state == "intended":
            voices.fail(tx, row.marker, CONSENT_WITHDRAWN, now=now)
    # First, because this waits for a voice that is just recorded after all: then it is ready, and goes next.
    tx.run(WITHDRAWN_TOO, person=person, reason=CONSENT_WITHDRAWN)
    tx.run(WITHDRAWN, person=person, reason=CONSENT_WITHDRAWN, now=now, given_up_by=traceparent)
    left = voices.find_by_person_or_number(tx, person, None)
    for row in left:
        # Also of a voice that was given up before: no request gets it any more. A request whose voice failed
        # is as good as new.
        if row.state != "failed":
            requests.forget_voice(tx, row.marker)
    return [row for row in left if row.state == "deleting"]


def withdraw_all(
    tx: Transaction, number: str, consent: str, *, nameless: str, most: int, now: float, traceparent: str = ""
) -> tuple[list[str], list[VoiceRow]]:
    """Does for everybody who called from a number, and for whoever calls `nameless`, what `withdraw` does.

    Returns these persons, at most `most` of them, and their voices.
    """
    # In the order in which everybody locks persons.
    persons = sorted({nameless, *consents.callers_from(tx, number, most=most)})
    left: list[VoiceRow] = []
    for person in persons:
        left += withdraw(tx, person, consent, number=number, now=now, traceparent=traceparent)
    return persons, left


def _check_remembered(tx: Transaction, marker: str | None) -> None:
    if marker is not None:
        voices.lock(tx, marker)  # so that nobody forgets the person before this is stored
        if voices.is_forgotten(tx, marker):
            raise consents.CallerForgotten
