"""Erases what is known of a person, in one transaction: voices, calls and consents.

A voice that ElevenLabs still has keeps a row, without its person, until it is deleted there.
"""

from cloner.registry import calls, consents, departures, voices
from cloner.registry.rows import VoiceRow
from cloner.registry.transaction import Transaction

__all__ = ["forget", "forget_person_of_voice"]


def forget(
    tx: Transaction,
    person: str | None,
    number: str | None,
    *,
    persons_number: str | None = None,
    now: float,
    traceparent: str = "",
) -> list[VoiceRow]:
    """Forgets a person, or, without a person, everybody who calls from a number.

    If nobody else is known by the person's number, calls from it whose caller was never stated go as well.

    Returns the voices that ElevenLabs still has and that must be deleted there.
    """
    found = voices.find_by_person_or_number(tx, person, number)
    numbers = set() if person is None else {*voices.numbers_of(tx, person)}
    if persons_number is not None:
        numbers.add(persons_number)
    whose = {who for row in found for who in (row.caller, row.replaces, row.person) if who is not None}
    # A call may be noted of a person, or of a number, without a voice.
    for who in sorted(whose | {each for each in (person, number) if each is not None}):
        calls.erase_caller(tx, who)
    for each in sorted({row.person for row in found}):
        consents.erase(tx, person=each)
    consents.erase(tx, person=person, number=number)
    left = [
        departures.forget(tx, row.marker, now=now, traceparent=traceparent)
        for row in sorted(found, key=lambda row: row.marker)
    ]
    for its in sorted(numbers):
        if not consents.persons_of(tx, its, most=1):
            calls.erase_of_nobody(tx, its)
    return [row for row in left if row is not None]


def forget_person_of_voice(
    tx: Transaction, voice_id: str, *, now: float, traceparent: str = ""
) -> list[VoiceRow]:
    """Forgets the person of a voice, also of one that is gone, as `forget` does.

    Does nothing where no such voice is remembered.
    """
    row = voices.find_by_voice_id(tx, voice_id)
    return [] if row is None else forget(tx, row.person, None, now=now, traceparent=traceparent)
