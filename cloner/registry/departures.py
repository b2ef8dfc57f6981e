"""Voices that leave: given up, deleted by whoever claims them, and forgotten."""

from cloner.registry import calls, requests, voices
from cloner.registry.agent import LOOKED_AT
from cloner.registry.reasons import DELETED, EVICTED, EXPIRED, FORGOTTEN, LOST
from cloner.registry.rows import VoiceRow
from cloner.registry.statement import AT_ONCE, Statement, of_some
from cloner.registry.transaction import Transaction

__all__ = [
    "DUE",
    "NOBODYS",
    "UNUSED",
    "claim_deletion",
    "delete",
    "drop_closed",
    "erase",
    "evict",
    "expire",
    "forget",
    "least_recently_used",
    "leaving",
    "make_room",
    "note_gone",
    "postpone_deletion",
]

# The voice is used by a call that began after that and has not ended.
IN_CALL = """EXISTS (
    SELECT 1 FROM calls
    WHERE calls.marker = voices.marker AND calls.ended_at IS NULL AND calls.begun_at > :busy_since
)"""
GONE = Statement(f"""
    UPDATE voices SET state = 'gone', closed_at = :now, reason = coalesce(reason, '{LOST}'), due_at = 0
    WHERE marker = :marker AND state IN ('ready', 'deleting')
""")
GIVEN_UP = Statement(f"{voices.GIVE_UP} WHERE marker = :marker AND state = 'ready'")
# It may turn up again, and nobody is to use it then.
LOST_AND_GIVEN_UP = Statement(f"""
    UPDATE voices SET reason = '{DELETED}' WHERE marker = :marker AND state = 'gone' AND reason = '{LOST}'
""")
GIVEN_UP_UNLESS_IN_CALL = Statement(
    f"{voices.GIVE_UP} WHERE marker = :marker AND state = 'ready' AND NOT {IN_CALL}"
)
# The columns that tell whose voice it was; they are not needed to delete it.
NOBODYS: dict[str, str | None] = {
    "greeting_name": "",
    "name": "",
    "number": None,
    "consent": "",
    "consent_at": None,
    "client_reference": "",
}
FORGET = Statement(f"""
    {voices.GIVE_UP}, {", ".join(f"{column} = :{column}" for column in NOBODYS)} WHERE marker = :marker
""")
# When the last call of the voice ended, or began if it is still open; no value if there is none.
CALLED_AT = "(SELECT max(coalesce(ended_at, begun_at)) FROM calls WHERE calls.marker = voices.marker)"
IDLE = f"""
    state = 'ready' AND used_at <= :unused_since AND NOT {IN_CALL}
    AND coalesce({CALLED_AT}, used_at) <= :unused_since
"""
# Two conditions, so that an index finds both: most voices were never to be kept, or all still are.
UNUSED = (f"kept_until = 0 AND {IDLE}", f"kept_until > 0 AND kept_until <= :now AND {IDLE}")
EXPIRE = tuple(
    Statement(f"""
        {of_some(voices.GIVE_UP, table="voices", key="marker", condition=unused)} RETURNING {voices.FIELDS}
    """)
    for unused in UNUSED
)
LEAST_RECENTLY_USED = Statement(f"""
    {voices.SELECT} WHERE state = 'ready' AND kept_until <= :now AND NOT {IN_CALL}
    ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")
KEPT_OF_CALLER = Statement(f"""
    {voices.SELECT} WHERE state = 'ready' AND kept_until > :now AND caller = :caller AND NOT {IN_CALL}
    LIMIT 1 FOR UPDATE SKIP LOCKED
""")
KEPT_LEAST_RECENTLY_USED = Statement(f"""
    {voices.SELECT} WHERE state = 'ready' AND kept_until > :now AND NOT {IN_CALL}
    ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")
LEAVING = Statement(f"""
    {voices.SELECT} WHERE state = 'deleting' AND voice_id IS NOT NULL ORDER BY due_at LIMIT 1
""")
# A voice waits while somebody has the agent that speaks with it, or the agent waits to be tried again.
HELD = f"held_until > :now AND holder <> '{LOOKED_AT}'"
DUE = f"""state = 'deleting' AND due_at <= :now
    AND NOT EXISTS (SELECT 1 FROM agents WHERE agents.marker = voices.marker AND {HELD})
    AND NOT EXISTS (SELECT 1 FROM agents WHERE former_marker = voices.marker AND {HELD})"""
DELETION_CLAIMED = Statement(f"""
    UPDATE voices SET due_at = :until, tries = tries + 1
    WHERE marker = (
        SELECT marker FROM voices WHERE {DUE}
        ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING {voices.FIELDS}
""")
POSTPONED = Statement("""
    UPDATE voices SET due_at = :due_at, tries = tries - :untried WHERE marker = :marker AND state = 'deleting'
""")
ERASED = Statement("DELETE FROM voices WHERE marker = :marker AND state IN ('gone', 'failed')")
OLD = "state IN ('gone', 'failed') AND closed_at < :dropped_before"
DROPPED = Statement(of_some("DELETE FROM voices", table="voices", key="marker", condition=OLD))


def note_gone(tx: Transaction, marker: str, *, now: float) -> bool:
    """Closes a voice that the provider no longer has. A voice that was given up keeps the reason for it.

    The row of a voice that was forgotten is removed. Returns whether it is lost: nobody had given it up.
    """
    closed = tx.run(GONE, marker=marker, now=now) == 1
    row = voices.get(tx, marker)
    if row is not None and row.state == "gone" and row.reason == FORGOTTEN:
        erase(tx, marker)
    return closed and row is not None and row.reason == LOST


def evict(tx: Transaction, marker: str, *, busy_since: float, now: float, traceparent: str = "") -> bool:
    """Gives a ready voice up, so that another can be made. False if it stays.

    It stays where an open call that began since `busy_since` uses it. `traceparent` is the request that gives
    it up.
    """
    # Postgres looks for the calls once it has the voice: a call that took it meanwhile counts.
    tx.one(voices.GET_LOCKED, marker=marker)
    values = {"marker": marker, "reason": EVICTED, "now": now, "given_up_by": traceparent}
    return tx.run(GIVEN_UP_UNLESS_IN_CALL, **values, busy_since=busy_since) == 1


def forget(tx: Transaction, marker: str, *, now: float, traceparent: str = "") -> VoiceRow | None:
    """Forgets whose voice it is. Where the provider still has it, its row stays until it is deleted there.

    A voice that is still being made loses its row; its maker finds no row and deletes the voice.
    """
    row = voices.lock(tx, marker)
    if row is not None and row.state in ("ready", "deleting"):
        tx.run(FORGET, marker=marker, reason=FORGOTTEN, now=now, given_up_by=traceparent, **NOBODYS)
        requests.forget_voice(tx, marker)
        return voices.get(tx, marker)
    voices.fail(tx, marker, FORGOTTEN, now=now)
    erase(tx, marker)
    return None


def delete(tx: Transaction, marker: str, *, now: float, traceparent: str = "") -> bool:
    """Gives a ready voice up, as a client asked, even if calls use it; no request gets it any more.

    False if it was given up before.
    """
    given_up = tx.run(GIVEN_UP, marker=marker, reason=DELETED, now=now, given_up_by=traceparent) == 1
    tx.run(LOST_AND_GIVEN_UP, marker=marker)
    requests.forget_voice(tx, marker)
    return given_up


def expire(tx: Transaction, *, unused_since: float, busy_since: float, now: float) -> list[VoiceRow]:
    """Gives up voices that no call has used since `unused_since`, and returns these voices.

    A voice that is to be kept for longer stays. Of each kind AT_ONCE go at most; the others are still due.
    """
    values = {"unused_since": unused_since, "busy_since": busy_since, "now": now}
    return [
        row
        for statement in EXPIRE
        for row in voices.every(tx, statement, **values, reason=EXPIRED, given_up_by="")
    ]


def least_recently_used(
    tx: Transaction, *, busy_since: float, now: float, kept: bool, replaces: str | None
) -> VoiceRow | None:
    """The ready voice that no call uses and whose last use is the longest ago.

    Kept voices come last, and only with `kept`, or where the voice is to be replaced anyway.
    """
    row = voices.one(tx, LEAST_RECENTLY_USED, busy_since=busy_since, now=now)
    if row is None and kept:
        row = voices.one(tx, KEPT_LEAST_RECENTLY_USED, busy_since=busy_since, now=now)
    elif row is None and replaces is not None:
        row = voices.one(tx, KEPT_OF_CALLER, busy_since=busy_since, now=now, caller=replaces)
    return row


def make_room(
    tx: Transaction, *, busy_since: float, now: float, kept: bool, replaces: str | None, traceparent: str = ""
) -> VoiceRow | None:
    """Gives up the voice that `least_recently_used` finds, and returns it; None if there is none.

    Of several who ask at once, each gives up another one.
    """
    while True:
        row = least_recently_used(tx, busy_since=busy_since, now=now, kept=kept, replaces=replaces)
        if row is None:
            return None
        # A call may have taken it just before it was locked; then it is not found again.
        if evict(tx, row.marker, busy_since=busy_since, now=now, traceparent=traceparent):
            return voices.get(tx, row.marker)


def leaving(tx: Transaction) -> VoiceRow | None:
    """A voice that was given up and still has its slot: the one whose deletion is due first."""
    return voices.one(tx, LEAVING)


def claim_deletion(tx: Transaction, *, now: float, until: float) -> VoiceRow | None:
    """Claims one voice whose deletion is due: until then nobody else deletes it."""
    return voices.one(tx, DELETION_CLAIMED, now=now, until=until)


def postpone_deletion(tx: Transaction, marker: str, *, due_at: float, untried: int = 0) -> None:
    """Stores when a failed deletion may be tried again. `untried` is the number of tries not to count."""
    tx.run(POSTPONED, marker=marker, due_at=due_at, untried=untried)


def erase(tx: Transaction, marker: str) -> None:
    """Removes every row about a voice that is gone or never was."""
    calls.erase_with_voice(tx, marker)
    tx.run(ERASED, marker=marker)
    requests.forget_voice(tx, marker)


def drop_closed(tx: Transaction, *, before: float) -> bool:
    """Removes rows of voices that were closed before `before`. Returns whether there may be more of them."""
    return tx.run(DROPPED, dropped_before=before) == AT_ONCE
