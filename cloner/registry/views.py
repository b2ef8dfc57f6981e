"""Voices and calls as they stand, for callers that ask. Nothing here changes anything."""

import json
from collections.abc import Collection

import msgspec

from cloner.registry.calls import FIRST, OF_WHOM
from cloner.registry.departures import CALLED_AT, IN_CALL
from cloner.registry.reasons import UNANSWERED
from cloner.registry.statement import Statement, columns
from cloner.registry.transaction import Row, Transaction
from cloner.registry.voices import PERSONS

__all__ = [
    "CallView",
    "VoiceView",
    "call",
    "calls",
    "consenters_of",
    "persons_of",
    "voice",
    "voices",
    "voices_of",
    "watched",
]


class VoiceView(msgspec.Struct, frozen=True):
    """A voice, whatever became of it."""

    marker: str
    state: str
    person: str
    number: str | None
    voice_id: str | None
    name: str
    created_at: float
    used_at: float
    kept_until: float
    closed_at: float | None
    reason: str | None
    consent: str
    consent_at: float | None
    client_reference: str
    in_call: bool
    """Whether a call in progress has it."""

    called_at: float | None
    """When its last call ended, or began if it is still open."""


class CallView(msgspec.Struct, frozen=True):
    """A call, and the voice that it has."""

    id: str
    agent_id: str
    conversation_id: str
    begun_at: float
    ended_at: float | None
    voice_id: str | None
    agent_updated: bool
    """Whether the agent has the voice of this call now."""


VOICE = f"SELECT {columns(VoiceView, in_call=IN_CALL, called_at=CALLED_AT)} FROM voices"
ITS_VOICE = "(SELECT voice_id FROM voices WHERE voices.marker = calls.marker)"
HAS_ITS_AGENT = """EXISTS (
        SELECT 1 FROM agents
        WHERE agents.call_id = calls.id AND agents.marker IS NOT NULL AND NOT agents.restoring
    )"""
CALL = f"SELECT {columns(CallView, voice_id=ITS_VOICE, agent_updated=HAS_ITS_AGENT)} FROM calls"
# `note_ended` stores ended_at equal to begun_at for a call that nobody had asked about.
ASKED_ABOUT = "(ended_at IS NULL OR ended_at <> begun_at)"

BY_VOICE_ID = Statement(f"{VOICE} WHERE voice_id = :voice_id")
NEWEST_OF_PERSON = Statement(f"""
    {VOICE} WHERE marker IN (
        SELECT marker FROM (
            SELECT marker, row_number() OVER (PARTITION BY state ORDER BY created_at DESC, marker DESC) AS nth
            FROM voices WHERE person = :person
        ) AS numbered WHERE nth = 1
    )
""")
IS_KNOWN = Statement("SELECT 1 FROM voices WHERE person = :person LIMIT 1")
# A withdrawal for a number alone is stored for whoever has no name, too, and makes nobody known.
CONSENTERS = Statement("""
    SELECT person FROM consents WHERE number = :number AND (person <> :exactly OR NOT withdrawn)
    GROUP BY person ORDER BY CASE WHEN person = :exactly THEN 0 ELSE 1 END LIMIT 2
""")
WATCHED = Statement(
    f"{VOICE} WHERE marker IN (:markers[]) UNION {VOICE} WHERE person IN (:persons[])"
    f" UNION {VOICE} WHERE number IN (:numbers[])"
)
WHOSE = {"": "", "person": "AND person = :who", "number": "AND number = :who"}
# The condition is repeated because the index leaves out rows without a reference.
REFERENCE = {False: "", True: "AND client_reference = :reference AND client_reference <> ''"}
# How it is told: a voice whose creation got no answer may yet turn out to be made.
TOLD = f"""CASE WHEN state = 'failed' AND reason = '{UNANSWERED}' AND closed_at > :unsure_since
    THEN 'intended' ELSE state END"""
# Most lists are of ready voices, for which there is an index of their own.
# A voice that was given up before its id was known is nobody's, and nothing can be told of it.
IN_STATE = {
    True: "AND state = 'ready'",
    False: f"AND {TOLD} IN (:states[]) AND (voice_id IS NOT NULL OR state IN ('intended', 'failed'))",
}
PAGES = {
    (whose, referred, ready): Statement(
        f"{VOICE} WHERE (created_at, marker) < (:at, :below) {IN_STATE[ready]} {WHOSE[whose]}"
        f" {REFERENCE[referred]} ORDER BY created_at DESC, marker DESC LIMIT :size"
    )
    for whose in WHOSE
    for referred in REFERENCE
    for ready in IN_STATE
}
CALL_BY_ID = Statement(f"{CALL} WHERE id = :id AND {ASKED_ABOUT}")
CALL_OF_CONVERSATION = Statement(f"""
    {CALL} WHERE conversation_id = :conversation_id AND agent_id = :agent_id AND {ASKED_ABOUT} {FIRST}
""")
# A call that nobody has stated the caller of is that of whoever has its voice.
CALLERS = f"AND ({OF_WHOM} OR marker IN (SELECT marker FROM voices WHERE person = :who))"
# Put into the text, so that open calls, and those of one agent, are found by indexes of their own.
IN_PROGRESS = {False: "", True: "AND ended_at IS NULL AND begun_at > :busy_since"}
AT_AGENT = {False: "", True: "AND agent_id = :agent_id"}
CALLS = {
    (whose, voiced, at_agent, in_progress): Statement(
        f"{CALL} WHERE (begun_at, id) < (:at, :below) AND {ASKED_ABOUT}"
        f" {CALLERS if whose == 'person' else ''}"
        f" {'AND number = :who' if whose == 'number' else ''}"
        f" {'AND marker = (SELECT marker FROM voices WHERE voice_id = :voice_id)' if voiced else ''}"
        f" {IN_PROGRESS[in_progress]} {AT_AGENT[at_agent]}"
        " ORDER BY begun_at DESC, id DESC LIMIT :size"
    )
    for whose in WHOSE
    for voiced in (False, True)
    for at_agent in AT_AGENT
    for in_progress in IN_PROGRESS
}


def voice(tx: Transaction, voice_id: str, *, busy_since: float) -> VoiceView | None:
    """The voice of that id."""
    row = tx.one(BY_VOICE_ID, voice_id=voice_id, busy_since=busy_since)
    return None if row is None else _voice(row)


def voices_of(tx: Transaction, person: str, *, busy_since: float) -> list[VoiceView]:
    """The newest voice of a person in each state in which there are any."""
    return [_voice(row) for row in tx.all(NEWEST_OF_PERSON, person=person, busy_since=busy_since)]


def persons_of(tx: Transaction, number: str, *, exactly: str) -> list[str]:
    """The person of the hash `exactly` if it is known; else the persons known by the number, two at most."""
    if tx.one(IS_KNOWN, person=exactly) is not None:
        return [exactly]
    return [row[0] for row in tx.all(PERSONS, number=number)]


def consenters_of(tx: Transaction, number: str, *, exactly: str) -> list[str]:
    """As `persons_of`; where no voice is known by the number, those who are known by a consent."""
    if known := persons_of(tx, number, exactly=exactly):
        return known
    known = [row[0] for row in tx.all(CONSENTERS, number=number, exactly=exactly)]
    return [exactly] if exactly in known else known


def voices(
    tx: Transaction,
    *,
    before: tuple[float, str] | None,
    size: int,
    states: Collection[str],
    person: str | None = None,
    number: str | None = None,
    reference: str = "",
    busy_since: float,
    unsure_since: float,
) -> list[VoiceView]:
    """Voices in these states, newest first, beginning below the given creation time and marker.

    All of them, those of a person, or those of whoever calls from a number. One whose creation got no answer
    after `unsure_since` counts as intended.
    """
    at, below = before or (float("inf"), "")
    whose, who = _who(person, number)
    ready = set(states) == {"ready"}
    rows = tx.all(
        PAGES[whose, bool(reference), ready],
        at=at,
        below=below,
        size=size,
        who=who,
        reference=reference,
        states=json.dumps(sorted(states)),
        busy_since=busy_since,
        unsure_since=unsure_since,
    )
    return [_voice(row) for row in rows]


def watched(
    tx: Transaction,
    *,
    markers: Collection[str],
    persons: Collection[str],
    numbers: Collection[str],
    busy_since: float,
) -> list[VoiceView]:
    """Every voice of these markers, persons and numbers, in one snapshot."""
    rows = tx.all(
        WATCHED,
        markers=json.dumps(sorted(markers)),
        persons=json.dumps(sorted(persons)),
        numbers=json.dumps(sorted(numbers)),
        busy_since=busy_since,
    )
    return [_voice(row) for row in rows]


def call(
    tx: Transaction, *, call_id: str = "", conversation_id: str = "", agent_id: str = ""
) -> CallView | None:
    """The call of that conversation at an agent, else of that id, if anybody had asked about it."""
    if conversation_id:
        row = tx.one(CALL_OF_CONVERSATION, conversation_id=conversation_id, agent_id=agent_id)
    else:
        row = tx.one(CALL_BY_ID, id=call_id)
    return None if row is None else _call(row)


def calls(
    tx: Transaction,
    *,
    before: tuple[float, str] | None,
    size: int,
    agent_id: str = "",
    person: str | None = None,
    number: str | None = None,
    voice_id: str = "",
    in_progress: bool = False,
    busy_since: float,
) -> list[CallView]:
    """Calls, newest first, beginning below the given begin and id. A filter that is None does not apply."""
    at, below = before or (float("inf"), "")
    whose, who = _who(person, number)
    rows = tx.all(
        CALLS[whose, bool(voice_id), bool(agent_id), in_progress],
        at=at,
        below=below,
        size=size,
        who=who,
        agent_id=agent_id,
        voice_id=voice_id,
        busy_since=busy_since,
    )
    return [_call(row) for row in rows]


def _who(person: str | None, number: str | None) -> tuple[str, str | None]:
    if person is not None:
        return "person", person
    return ("number", number) if number is not None else ("", None)


def _voice(row: Row) -> VoiceView:
    # SQLite has no booleans, only 0 and 1.
    return msgspec.structs.replace(VoiceView(*row), in_call=bool(row[-2]))


def _call(row: Row) -> CallView:
    return msgspec.structs.replace(CallView(*row), agent_updated=bool(row[-1]))
