"""Voices: who may create one, what became of it, and how it is found."""

import json

import msgspec

from cloner.registry import consents, requests
from cloner.registry.deployment import month_resets_at
from cloner.registry.processes import DEAD, SEEN, note_alive
from cloner.registry.reasons import CONSENT_WITHDRAWN, FORGOTTEN, NEEDS_VERIFICATION, REPLACED
from cloner.registry.rows import NOBODY, NewVoiceRow, VoiceRow
from cloner.registry.statement import Statement, columns, parameters
from cloner.registry.transaction import Transaction

__all__ = [
    "Intent",
    "Recorded",
    "abandoned",
    "belongs_elsewhere",
    "every",
    "fail",
    "find_by_caller",
    "find_by_number",
    "find_by_person_or_number",
    "find_by_voice_id",
    "find_in_use",
    "get",
    "has_other_caller",
    "intend",
    "is_forgotten",
    "is_noted_since",
    "keep",
    "keep_for",
    "known",
    "lock",
    "marker_of",
    "note_checked",
    "note_used",
    "numbers_of",
    "one",
    "persons_of",
    "ready",
    "record",
    "set_reference",
    "take_over",
]


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `intend`: the row that counts, or when a new voice may be created again."""

    row: VoiceRow | None
    month_resets_at: float = 0.0


class Recorded(msgspec.Struct, frozen=True):
    """A voice that is ready now."""

    replaced: str | None
    """The voice that it takes the place of, which is given up."""


# Why a voice failed that is not to be used, though ElevenLabs has it.
NOT_TO_BE_USED = (CONSENT_WITHDRAWN, NEEDS_VERIFICATION)

FIELDS = columns(VoiceRow, alive_at=SEEN)
# Ready or on its way: a caller has one such voice at most.
ACTIVE = "state IN ('intended', 'ready')"
SELECT = f"SELECT {FIELDS} FROM voices"

GET = Statement(f"{SELECT} WHERE marker = :marker")
GET_LOCKED = Statement(f"{SELECT} WHERE marker = :marker FOR UPDATE")
IN_USE = Statement(f"{SELECT} WHERE marker = :marker AND {ACTIVE}")
OF_CALLER = Statement(f"{SELECT} WHERE caller = :caller AND {ACTIVE}")
BY_VOICE_ID = Statement(f"{SELECT} WHERE voice_id = :voice_id")
MARKER_OF = Statement("SELECT marker FROM voices WHERE voice_id = :voice_id")
# The newest voice of the one person who is known by the number.
OF_NUMBER = Statement(f"""
    {SELECT} WHERE number = :number AND state = 'ready' AND 1 = (
        SELECT count(*) FROM (SELECT DISTINCT person FROM voices WHERE number = :number LIMIT 2) AS persons
    )
    ORDER BY created_at DESC LIMIT 1
""")
PERSONS = Statement("SELECT DISTINCT person FROM voices WHERE number = :number LIMIT 2")
CALL = Statement("SELECT marker, stated FROM calls WHERE id = :call_id FOR UPDATE")
INTENDED = Statement(f"""
    INSERT INTO voices ({columns(NewVoiceRow)}, state, created_at, used_at, checked_at, consent_at)
    VALUES ({parameters(NewVoiceRow)}, 'intended', :now, :now, :now, :consent_at)
    ON CONFLICT (caller) WHERE {ACTIVE} DO NOTHING
""")
CALL_HAS = Statement("UPDATE calls SET marker = :marker, caller = :caller WHERE id = :call_id")
ANOTHERS = Statement("""
    SELECT 1 FROM voices WHERE voice_id = :voice_id AND marker <> :marker
    UNION ALL SELECT 1 FROM agents WHERE before_voice_id = :voice_id
    LIMIT 1
""")
ANOTHER_ACTIVE = Statement(f"""
    SELECT state FROM voices WHERE caller = :caller AND {ACTIVE} AND marker <> :marker FOR UPDATE
""")
# Nobody uses a voice that is given up, and its deletion is due. `given_up_by` is the request that did it.
GIVE_UP = """UPDATE voices SET state = 'deleting', reason = :reason, due_at = :now, tries = 0,
    given_up_by = :given_up_by"""
FORMER_REPLACED = Statement(f"{GIVE_UP} WHERE caller = :caller AND state = 'ready' RETURNING voice_id")
RECORDED = Statement("""
    UPDATE voices SET state = 'ready', voice_id = :voice_id, checked_at = :now, used_at = :now, reason = NULL,
        closed_at = NULL, caller = :caller, replaces = NULL
    WHERE marker = :marker
""")
CALLS_LOCKED = Statement("SELECT id FROM calls WHERE marker = :marker ORDER BY id FOR UPDATE")
CALLS_LEFT = Statement("UPDATE calls SET marker = NULL WHERE marker = :marker")
FAILED = Statement("""
    UPDATE voices SET state = 'failed', reason = :reason, closed_at = :now WHERE marker = :marker
""")
ABANDONED = f"state = 'intended' AND {DEAD}"
# The former owner is named: of two processes at once, the second finds another owner and takes nothing.
TAKEN_OVER = Statement(f"""
    UPDATE voices SET owner = :owner WHERE marker = :marker AND owner = :dead AND {ABANDONED}
""")
ALL_ABANDONED = Statement(f"{SELECT} WHERE {ABANDONED}")
REFERRED = Statement(f"""
    UPDATE voices SET client_reference = :reference WHERE marker = :marker AND {ACTIVE}
""")
KEPT = Statement(f"UPDATE voices SET kept_until = :until WHERE marker = :marker AND {ACTIVE}")
USED = Statement(f"UPDATE voices SET used_at = :now WHERE marker = :marker AND {ACTIVE}")
CHECKED = Statement("UPDATE voices SET checked_at = :now WHERE marker = :marker")
OF_PERSON = Statement(f"{SELECT} WHERE person = :person")
ALL_OF_NUMBER = Statement(f"{SELECT} WHERE number = :number")
KNOWN = Statement(f"{SELECT} WHERE marker IN (:markers[])")
NUMBERS = Statement("SELECT DISTINCT number FROM voices WHERE person = :person AND number IS NOT NULL")
READY = Statement(f"{SELECT} WHERE state = 'ready'")


def get(tx: Transaction, marker: str) -> VoiceRow | None:
    """The row of a marker."""
    return one(tx, GET, marker=marker)


def is_forgotten(tx: Transaction, marker: str) -> bool:
    """Whether the caller whose voice this was, or was to be, has been forgotten."""
    row = get(tx, marker)
    return row is None or row.reason == FORGOTTEN


def marker_of(tx: Transaction, voice_id: str) -> str | None:
    """The marker under which a voice is known, whatever became of it; None if it is none of ours."""
    row = tx.one(MARKER_OF, voice_id=voice_id)
    return None if row is None else row[0]


def belongs_elsewhere(tx: Transaction, voice_id: str, *, marker: str) -> bool:
    """Whether the voice belongs to another marker, or is one that an agent had before."""
    return tx.one(ANOTHERS, voice_id=voice_id, marker=marker) is not None


def find_in_use(tx: Transaction, marker: str) -> VoiceRow | None:
    """The voice of a marker, if it is ready or on its way."""
    return one(tx, IN_USE, marker=marker)


def find_by_caller(tx: Transaction, caller: str) -> VoiceRow | None:
    """The caller's voice, ready or on its way."""
    return one(tx, OF_CALLER, caller=caller)


def find_by_number(tx: Transaction, number: str) -> VoiceRow | None:
    """The newest voice of the one person who is known by this number; None where there are more.

    A person counts as long as a row exists, even if the voice is gone.
    """
    return one(tx, OF_NUMBER, number=number)


def persons_of(tx: Transaction, number: str) -> int:
    """How many persons are known by this number: 0, 1, or 2 for more."""
    return len(tx.all(PERSONS, number=number))


def find_by_voice_id(tx: Transaction, voice_id: str) -> VoiceRow | None:
    """The row of a voice, whatever became of it."""
    return one(tx, BY_VOICE_ID, voice_id=voice_id)


def intend(
    tx: Transaction,
    new: NewVoiceRow,
    *,
    call_id: str | None,
    now: float,
    stated: str | None = None,
    request: requests.NamedRequest | None = None,
) -> Intent:
    """Stores the intent to create a voice, unless the caller, the call or the request has one.

    Returns the new row or the existing one. If several callers ask at once, one of them creates the row.
    While the provider's monthly limit is used up, none is created. A consent that was given earlier counts
    for the new row. A call that is no longer the `stated` caller's neither gets the voice nor decides which
    row it is. Raises RequestDiffers, RequestForgotten, ConsentWithdrawn, or, if there is no such call any
    more, or only one that was noted since, CallerForgotten.
    """
    answer = None if request is None else requests.lock(tx, request, now=now)
    if answer is not None and (made := get(tx, answer.marker)) is not None:
        return Intent(row=made)
    if call_id is not None:
        # The call is locked, so that it gets no second voice meanwhile.
        call = tx.one(CALL, call_id=call_id)
        if call is None or is_noted_since(call[1], stated):
            raise consents.CallerForgotten
        if has_other_caller(call[1], stated):
            call_id = None
        elif call[0] and (held := find_in_use(tx, call[0])) is not None:
            return Intent(row=held)
    row = find_by_caller(tx, new.caller)
    if row is None and (resets_at := month_resets_at(tx)) > now:
        return Intent(row=None, month_resets_at=resets_at)
    if row is None:
        row = _insert(tx, new, now=now)
    note_alive(tx, new.owner, now=now)
    if call_id is not None:
        tx.run(CALL_HAS, call_id=call_id, marker=row.marker, caller=row.caller)
    if request is not None and row.marker == new.marker:
        requests.note_voice(tx, request, row.marker, reused=False, now=now)
    return Intent(row=row)


def _insert(tx: Transaction, new: NewVoiceRow, *, now: float) -> VoiceRow:
    """Stores a new intent, unless another one of the caller is stored first. Returns the row that counts."""
    consent, consent_at = consents.counting(tx, new.person, told=new.consent, number=new.number, now=now)
    new = msgspec.structs.replace(new, consent=consent)
    row = None
    while row is None:
        # The row that prevented the insert may no longer be active when it is read.
        tx.run(INTENDED, **msgspec.structs.asdict(new), consent_at=consent_at, now=now)
        row = find_by_caller(tx, new.caller)
    return row


def record(
    tx: Transaction,
    marker: str,
    voice_id: str,
    *,
    now: float,
    call_id: str | None = None,
    stated: str | None = None,
) -> Recorded | None:
    """Makes an intended, failed or lost voice ready; one that another process has recorded stays ready.

    None if it can no longer become ready: then nobody will use the voice, and its maker removes it. A call
    that lost the voice when its intent failed has it again, if it is still the `stated` caller's call and has
    no other voice.
    """
    call = None if call_id is None else tx.one(CALL, call_id=call_id)
    row = one(tx, GET_LOCKED, marker=marker)
    if row is None:
        return None
    intended = row.state == "intended"
    # A replacement that failed stays failed, and so does a voice that nobody may use.
    late = row.state == "failed" and row.replaces is None and row.reason not in NOT_TO_BE_USED
    same = row.voice_id == voice_id
    if not (intended or late or (same and (row.state == "ready" or row.is_lost))):
        return None
    if belongs_elsewhere(tx, voice_id, marker=marker):
        return None
    caller, replaced = row.replaces or row.caller, None
    other = tx.one(ANOTHER_ACTIVE, caller=caller, marker=marker)
    if other is not None:
        if not (intended and row.replaces is not None and other[0] == "ready"):
            # The caller has another voice by now.
            return None
        former = tx.one(FORMER_REPLACED, caller=caller, reason=REPLACED, now=now, given_up_by=row.traceparent)
        replaced = None if former is None else former[0]
    tx.run(RECORDED, marker=marker, voice_id=voice_id, caller=caller, now=now)
    if late and call is not None and call[0] is None and not has_other_caller(call[1], stated):
        tx.run(CALL_HAS, call_id=call_id, marker=marker, caller=caller)
    return Recorded(replaced)


def lock(tx: Transaction, marker: str) -> VoiceRow | None:
    """Locks the row of a marker, and its calls, until the end of the transaction."""
    tx.all(CALLS_LOCKED, marker=marker)
    return one(tx, GET_LOCKED, marker=marker)


def is_noted_since(call_stated: str, stated: str | None) -> bool:
    """Whether the call was erased after this delivery stated its caller, and noted again without one."""
    return stated is not None and not call_stated


def has_other_caller(call_stated: str, stated: str | None) -> bool:
    """Whether a call is no longer that of the caller whom its delivery has stated.

    This happens if the caller was forgotten while the delivery was prepared, and the call was noted anew.
    """
    return stated is not None and call_stated not in {NOBODY, stated}


def fail(tx: Transaction, marker: str, reason: str, *, now: float, owner: str | None = None) -> None:
    """Closes an intent that led to no voice, so that the caller may be tried again at once.

    With `owner`, only if that process still has the intent. Nothing is changed if the voice was recorded.
    """
    row = lock(tx, marker)
    if row is None or row.state != "intended" or owner not in {None, row.owner}:
        return
    tx.run(CALLS_LEFT, marker=marker)
    tx.run(FAILED, marker=marker, reason=reason, now=now)


def take_over(tx: Transaction, marker: str, *, dead: str, owner: str, stale: float, now: float) -> bool:
    """Takes over the intent of a process without a sign of life since `stale`. True for one taker only."""
    taken = tx.run(TAKEN_OVER, marker=marker, dead=dead, owner=owner, stale=stale) == 1
    if taken:
        note_alive(tx, owner, now=now)
    return taken


def abandoned(tx: Transaction, *, stale: float) -> list[VoiceRow]:
    """The intents of processes without a sign of life since `stale`."""
    return every(tx, ALL_ABANDONED, stale=stale)


def set_reference(tx: Transaction, marker: str, reference: str) -> None:
    """Stores the sender's own reference with a voice, in place of the former one."""
    tx.run(REFERRED, marker=marker, reference=reference)


def keep(tx: Transaction, marker: str, *, until: float) -> bool:
    """Keeps a voice until then, calls or no calls. False if it was given up meanwhile."""
    return tx.run(KEPT, marker=marker, until=until) == 1


def keep_for(
    tx: Transaction, marker: str, request: requests.NamedRequest, *, until: float, reused: bool, now: float
) -> requests.Answer | None:
    """Keeps a voice as `keep` does, as the answer to a request unless that has one already.

    Returns the answer that was stored first; None if the voice was given up meanwhile.
    """
    return (
        requests.settle(tx, request, marker, reused=reused, now=now)
        if keep(tx, marker, until=until)
        else None
    )


def note_used(tx: Transaction, marker: str, *, now: float) -> bool:
    """Notes that a call has the voice. False if it was given up meanwhile."""
    return tx.run(USED, marker=marker, now=now) == 1


def note_checked(tx: Transaction, marker: str, *, now: float) -> None:
    """Notes that the provider has the voice."""
    tx.run(CHECKED, marker=marker, now=now)


def find_by_person_or_number(tx: Transaction, person: str | None, number: str | None) -> list[VoiceRow]:
    """Every row of a person, or of whoever calls from a number."""
    if person is not None:
        return every(tx, OF_PERSON, person=person)
    return every(tx, ALL_OF_NUMBER, number=number) if number is not None else []


def numbers_of(tx: Transaction, person: str) -> list[str]:
    """The numbers that voices of a person are known under."""
    return [row[0] for row in tx.all(NUMBERS, person=person)]


def known(tx: Transaction, markers: list[str]) -> dict[str, VoiceRow]:
    """The rows that there are of these markers."""
    return {row.marker: row for row in every(tx, KNOWN, markers=json.dumps(markers))}


def ready(tx: Transaction) -> list[VoiceRow]:
    """Every voice that should be at the provider."""
    return every(tx, READY)


def one(tx: Transaction, statement: Statement, **values: object) -> VoiceRow | None:
    """The only row of a statement that selects FIELDS, if there is one."""
    row = tx.one(statement, **values)
    return None if row is None else VoiceRow(*row)


def every(tx: Transaction, statement: Statement, **values: object) -> list[VoiceRow]:
    """Every row of a statement that selects FIELDS."""
    return [VoiceRow(*row) for row in tx.all(statement, **values)]
