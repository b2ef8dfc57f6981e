"""Calls: which conversations were asked about, with which voice, and which are over.

Whoever locks more than one row takes the agent first, then the call, then the voice, so that no two
wait for each other.
"""

import msgspec

from cloner.registry import agents, consents, voices
from cloner.registry.consents import CallerForgotten
from cloner.registry.rows import NOBODY, CallRow, NewCall, Noted, VoiceRow
from cloner.registry.statement import AT_ONCE, Statement, columns, of_some, parameters
from cloner.registry.transaction import Row, Transaction

__all__ = [
    "attach",
    "begin",
    "close_old",
    "complete",
    "drop_ended",
    "erase_caller",
    "erase_of_nobody",
    "erase_with_voice",
    "latest",
    "note_ended",
    "open_call",
    "unstate",
]


FIELDS = columns(CallRow)
SELECT = f"SELECT {FIELDS} FROM calls"
# A call whose caller a delivery has stated comes first: its agent may have been given a voice. One that
# nobody had asked about, as `note_ended` stores it, comes last.
FIRST = """ORDER BY CASE WHEN ended_at = begun_at THEN 2 WHEN stated = '' THEN 1 ELSE 0 END, begun_at DESC
    LIMIT 1"""
# The call has no conversation id, or the given one; without a given id any call will do.
NAMELESS = "(:conversation_id = '' OR conversation_id = '' OR conversation_id = :conversation_id)"

NOTED = Statement(f"""
    INSERT INTO calls ({columns(NewCall)}) VALUES ({parameters(NewCall)})
    ON CONFLICT (id) DO NOTHING
    RETURNING {FIELDS}
""")
GET = Statement(f"{SELECT} WHERE id = :id")
GET_LOCKED = Statement(f"{SELECT} WHERE id = :id FOR UPDATE")
STATED = Statement("""
    UPDATE calls SET marker = :marker, caller = :caller, number = :number, stated = :stated, person = :person
    WHERE id = :id
""")
UNSTATED = Statement(f"""
    UPDATE calls SET stated = :nobody WHERE id = :id AND stated = :stated AND (marker IS NULL
        OR EXISTS (SELECT 1 FROM voices WHERE voices.marker = calls.marker AND NOT ({voices.ACTIVE})))
""")
ITS_CONVERSATION = Statement("""
    UPDATE calls SET conversation_id = :conversation_id, confirmed = true WHERE id = :id
""")
CONFIRMED = Statement("UPDATE calls SET confirmed = true WHERE id = :id")
ITS_VOICE = Statement(f"SELECT caller FROM voices WHERE marker = :marker AND {voices.ACTIVE} FOR UPDATE")
LATEST_WITH_VOICE = Statement(f"{SELECT} WHERE marker = :marker ORDER BY begun_at DESC LIMIT 1")
OF_CONVERSATION = Statement(f"{SELECT} WHERE conversation_id = :conversation_id {FIRST}")
OF_CONVERSATION_AT = Statement(
    f"{SELECT} WHERE conversation_id = :conversation_id AND agent_id = :agent_id {FIRST}"
)
OF_ID = Statement(f"""
    {SELECT} WHERE id = :id
        AND ((agent_id = :agent_id AND ({NAMELESS} OR NOT confirmed)) OR (:agent_id = '' AND {NAMELESS}))
""")
OF_VOICE_AT = Statement(f"""
    {SELECT} WHERE agent_id = :agent_id AND ended_at IS NULL AND {NAMELESS}
        AND marker = (SELECT marker FROM voices WHERE voice_id = :voice_id)
    {FIRST}
""")
# The first report ends the call.
END = """UPDATE calls SET ended_by = CASE WHEN ended_at IS NULL THEN :ended_by ELSE ended_by END,
    ended_at = coalesce(ended_at, :now)"""
ENDED = Statement(f"{END} WHERE id = :id RETURNING id")
# Calls that were opened from another number, or without their conversation id, have rows of their own.
ENDED_CONVERSATION = Statement(f"""
    {END} WHERE conversation_id = :conversation_id AND agent_id = :agent_id RETURNING id
""")
ENDED_NAMELESS = Statement(f"""
    {END} WHERE id = :id AND agent_id = :agent_id AND conversation_id = '' RETURNING id
""")
# When calls that are open, or over, are old; `due` asks the same.
OPEN_FOR_LONG = "ended_at IS NULL AND begun_at <= :busy_since"
OLD = "ended_at < :dropped_before"
CLOSE = "UPDATE calls SET ended_at = :now"
ENDED_UNKNOWN = Statement(f"{CLOSE} WHERE id = :id AND ended_at IS NULL")
# Each of them has an agent that is marked by a statement of its own.
CLOSED_AT_ONCE = 100
CLOSED_OLD = Statement(f"""
    {of_some(CLOSE, table="calls", key="id", condition=OPEN_FOR_LONG, most=CLOSED_AT_ONCE)} RETURNING {FIELDS}
""")
DROPPED = Statement(of_some("DELETE FROM calls", table="calls", key="id", condition=OLD))
# The calls of a caller or a person. The conditions of the indexes are repeated. The release before this one
# stores no persons of calls.
OF_WHOM = """caller = :who OR (person = :who AND person <> caller)
    OR (stated = :who AND person = '' AND stated <> '')"""
ERASED = Statement(f"DELETE FROM calls WHERE number = :who OR {OF_WHOM} RETURNING id")
ERASED_OF_NOBODY = Statement(f"""
    DELETE FROM calls WHERE number = :number AND stated IN ('', '{NOBODY}') AND NOT EXISTS (
        SELECT 1 FROM calls AS others WHERE others.number = :number AND others.stated NOT IN ('', '{NOBODY}')
    )
    RETURNING id
""")
ERASED_WITH_VOICE = Statement("DELETE FROM calls WHERE marker = :marker RETURNING id")


def begin(
    tx: Transaction,
    new: NewCall,
    *,
    others_since: float | None = None,
    consent: str = "",
    reference: str = "",
    once_more: bool = False,
) -> Noted | None:
    """Notes that a call is in progress, with its voice where it or its caller has one.

    Other callers' calls at the agent count if they began since `others_since`. A `reference` is stored with
    the voice. A `consent` is stored unless the voice has it: before anything is done under it, so that a
    withdrawal which comes after it counts.

    A call that was noted before keeps its time, its caller and its voice. If it is another caller's, nothing
    is noted, and None is returned. A delivery that notes its call `once_more` raises CallerForgotten if what
    it had noted is gone.
    """
    agents.lock_calls_at(tx, new.agent_id)
    call, known = _note(tx, new)
    if once_more and (not known or voices.is_noted_since(call.stated, new.stated)):
        raise CallerForgotten
    again = known and call.stated == new.stated and call.marker is not None
    if call.stated not in {"", NOBODY, new.stated}:
        return None
    voice = voices.find_in_use(tx, call.marker) if call.marker else None
    if call.stated != new.stated:
        # The voice that was found by the number may be somebody else's.
        if voice is not None and voice.caller != new.caller:
            voice = None
        marker = voice and voice.marker
        theirs = {"marker": marker, "caller": new.caller, "number": new.number, "stated": new.stated}
        tx.run(STATED, id=call.id, person=new.person, **theirs)
        call = msgspec.structs.replace(call, **theirs)
    if voice is None:
        voice = voices.find_by_caller(tx, new.caller)
    consented = bool(consent) and not (voice and voice.state == "ready" and voice.consent == consent)
    if consented:
        # Before the voice is locked, as whoever withdraws a consent locks the person first.
        consented = consents.note(tx, new.person, consent, number=new.number, now=new.begun_at)
    voice = _used(tx, call, voice, now=new.begun_at)
    if voice is not None and reference and voice.client_reference != reference:
        voices.set_reference(tx, voice.marker, reference)
        voice = msgspec.structs.replace(voice, client_reference=reference)
    return Noted(
        call=call,
        voice=voice,
        agent=agents.state(tx, call.agent_id),
        again=again,
        consented=consented,
        shared=again
        and others_since is not None
        and agents.shared(tx, call.agent_id, caller=call.caller, since=others_since),
    )


def open_call(
    tx: Transaction, new: NewCall, *, apart: str, number: str | None, require_consent: bool
) -> Noted:
    """Notes that a call is in progress, with its voice where it has one or its number finds one.

    Where a delivery has stated the caller, the number finds nothing. Otherwise a second number under the same
    name is another call, whose id is `apart`. Where the conversation is over, that call is over as well.
    """
    agents.lock_calls_at(tx, new.agent_id)
    call, _ = _note(tx, new)
    over = new.confirmed and call.ended_at is not None
    if not call.stated and call.number != new.number:
        call, _ = _note(tx, msgspec.structs.replace(new, id=apart))
    elif new.confirmed:
        tx.run(CONFIRMED, id=call.id)
    voice = voices.find_in_use(tx, call.marker) if call.marker else None
    persons = None if voice is None else 1
    if voice is None and not call.stated and call.ended_at is None:
        voice = None if number is None else voices.find_by_number(tx, number)
        persons = 0 if number is None else 1
        if voice is None and number is not None:
            persons = voices.persons_of(tx, number)
    if voice is not None and require_consent and not voice.consent:
        voice = None
    voice = _used(tx, call, voice, now=new.begun_at)
    if over:
        # No event will end it any more. Only now, because an ended call finds no voice by its number.
        tx.run(ENDED_UNKNOWN, id=call.id, now=call.begun_at)
    return Noted(call=call, voice=voice, agent=agents.state(tx, call.agent_id), persons=persons)


def latest(tx: Transaction, *, call_id: str | None = None, marker: str | None = None) -> CallRow | None:
    """The call of that id, or the last one that had the voice."""
    row = tx.one(GET, id=call_id) if marker is None else tx.one(LATEST_WITH_VOICE, marker=marker)
    return None if row is None else _call(row)


def attach(tx: Transaction, call_id: str, marker: str, *, now: float, stated: str | None) -> bool:
    """Stores which voice a call has. False if that voice was given up meanwhile.

    A call that is no longer the `stated` caller's stays as it is.
    """
    call = tx.one(GET_LOCKED, id=call_id)
    voice = tx.one(ITS_VOICE, marker=marker)
    if voice is None:
        return False
    if call is not None and not voices.has_other_caller(_call(call).stated, stated):
        tx.run(voices.CALL_HAS, call_id=call_id, marker=marker, caller=voice[0])
    return voices.note_used(tx, marker, now=now)


def complete(
    tx: Transaction,
    *,
    now: float,
    conversation_id: str,
    call_id: str,
    agent_id: str,
    voice_id: str,
    conversation_call_id: str,
    traceparent: str = "",
) -> CallRow | None:
    """Ends the call that is found by its conversation, else by its id, else by agent and voice.

    Its agent is marked to be put back. Returns the call, or None if nobody had asked about it. A call that
    has ended already keeps its time. A call is not ended if it is at another agent, or if ElevenLabs uses
    another conversation id for it. If only a delivery has used the conversation id, the call's own id and its
    agent are enough: the id cannot be guessed, and a sender who announces a call may not know which
    conversation id ElevenLabs will use. A call that was opened without its conversation id is found by it
    from now on.

    `conversation_call_id` is the id of a call that a delivery for the conversation opens at the same agent.
    Unless that is the call that ends, it is noted as ended, so that a late delivery changes no agent. It is
    noted of the same caller, with whom it is erased.
    """
    call = _end(
        tx,
        now=now,
        call_id=call_id,
        conversation_id=conversation_id,
        agent_id=agent_id,
        voice_id=voice_id,
        traceparent=traceparent,
    )
    if call is not None:
        agent_id = call.agent_id
    if agent_id and conversation_id and (call is None or call.conversation_id != conversation_id):
        if call is not None and not call.conversation_id:
            tx.run(ITS_CONVERSATION, id=call.id, conversation_id=conversation_id)
        note_ended(
            tx,
            NewCall(
                id=conversation_call_id,
                agent_id=agent_id,
                conversation_id=conversation_id,
                caller=conversation_call_id if call is None else call.caller,
                number=None if call is None else call.number,
                begun_at=now,
            ),
            now=now,
        )
    # `note_ended` stores a call that nobody had asked about as one that ended when it began.
    return None if call is None or call.ended_at == call.begun_at else call


def _end(
    tx: Transaction,
    *,
    now: float,
    call_id: str,
    conversation_id: str,
    agent_id: str,
    voice_id: str,
    traceparent: str,
) -> CallRow | None:
    """Ends the call that `complete` finds, and returns it as it was before; None if there is none."""
    told = {"conversation_id": conversation_id, "agent_id": agent_id}
    row = None
    if conversation_id:
        row = tx.one(OF_CONVERSATION_AT if agent_id else OF_CONVERSATION, **told)
    if row is None and call_id:
        row = tx.one(OF_ID, id=call_id, **told)
    if row is None and agent_id and voice_id:
        row = tx.one(OF_VOICE_AT, voice_id=voice_id, **told)
    if row is None:
        return None
    call = _call(row)
    told_now = {"now": now, "ended_by": traceparent}
    ended = tx.all(ENDED, id=call.id, **told_now)
    if call.conversation_id:
        its = {"conversation_id": call.conversation_id, "agent_id": call.agent_id}
        ended += tx.all(ENDED_CONVERSATION, **its, **told_now)
    if call_id:
        ended += tx.all(ENDED_NAMELESS, id=call_id, agent_id=call.agent_id, **told_now)
    _plan_restores(tx, ended)
    return call


def unstate(tx: Transaction, call_id: str, *, stated: str) -> None:
    """After a failure, lets a delivery state another caller, unless the call has a voice or one on its way.

    Only the `stated` caller whose delivery has failed is taken back. The number still finds no voice for the
    call.
    """
    tx.run(UNSTATED, id=call_id, stated=stated, nobody=NOBODY)


def note_ended(tx: Transaction, new: NewCall, *, now: float) -> None:
    """Notes the end of a call that nobody had asked about, so that a later delivery finds it ended."""
    _note(tx, new)
    tx.run(ENDED_UNKNOWN, id=new.id, now=now)
    agents.plan_restore(tx, call_id=new.id)


def close_old(tx: Transaction, *, before: float, now: float) -> list[CallRow]:
    """Ends open calls that began before `before`, CLOSED_AT_ONCE at most, and returns these calls.

    They end now, so that their rows stay as long as others. Their agents are marked to be put back.
    """
    closed = tx.all(CLOSED_OLD, busy_since=before, now=now)
    _plan_restores(tx, closed)
    return [_call(row) for row in closed]


def drop_ended(tx: Transaction, *, before: float) -> bool:
    """Removes rows of calls that ended before `before`. Returns whether there may be more of them."""
    return tx.run(DROPPED, dropped_before=before) == AT_ONCE


def erase_caller(tx: Transaction, who: str) -> None:
    """Removes every row of the calls of a caller, of a person, or of a number.

    Their agents are marked to be put back.
    """
    _plan_restores(tx, tx.all(ERASED, who=who))


def erase_of_nobody(tx: Transaction, number: str) -> None:
    """Removes the calls from a number whose caller was not stated, unless one has stated a caller.

    Their agents are marked to be put back.
    """
    _plan_restores(tx, tx.all(ERASED_OF_NOBODY, number=number))


def erase_with_voice(tx: Transaction, marker: str) -> None:
    """Removes every row of the calls that had a voice. Their agents are marked to be put back."""
    _plan_restores(tx, tx.all(ERASED_WITH_VOICE, marker=marker))


def _plan_restores(tx: Transaction, over: list[Row]) -> None:
    """Marks the agents of calls, whose rows begin with their ids, to be put back."""
    for call_id in sorted({row[0] for row in over}):
        agents.plan_restore(tx, call_id=call_id)


def _note(tx: Transaction, new: NewCall) -> tuple[CallRow, bool]:
    """The row of a call, locked, and whether it was there already."""
    while True:
        if (row := tx.one(NOTED, **msgspec.structs.asdict(new))) is not None:
            return _call(row), False
        # The row that was in the way may be gone before it is read.
        if (row := tx.one(GET_LOCKED, id=new.id)) is not None:
            return _call(row), True


def _call(row: Row) -> CallRow:
    return CallRow(*row)


def _used(tx: Transaction, call: CallRow, voice: VoiceRow | None, *, now: float) -> VoiceRow | None:
    """Stores that the call has the voice; None if the voice was given up meanwhile.

    For a call that is over nothing is stored.
    """
    if call.ended_at is not None:
        return voice
    if voice is None or not voices.note_used(tx, voice.marker, now=now):
        return None
    tx.run(voices.CALL_HAS, call_id=call.id, marker=voice.marker, caller=voice.caller)
    return voice
