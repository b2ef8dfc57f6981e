"""Agents that this deployment has changed: what each had before it was given a caller's voice.

A row stays when the agent is put back; then it only counts how often the agent was changed.
"""

import msgspec

from cloner.registry import voices
from cloner.registry.agent import (
    LOOKED_AT,
    UNANSWERED,
    AgentRow,
    AgentState,
    AgentUpdate,
    ClaimedAgent,
    Obstacle,
)
from cloner.registry.consents import CallerForgotten
from cloner.registry.holding import HELD_SECONDS, LANDS_SECONDS
from cloner.registry.reasons import FORGOTTEN
from cloner.registry.statement import Statement, assignments, columns, parameters
from cloner.registry.transaction import Lock, Row, Transaction

__all__ = [
    "any_left_over",
    "claim_restore",
    "has_voice",
    "intend",
    "lock_calls_at",
    "note_restored",
    "obstacle_for",
    "plan_left_over_restores",
    "plan_restore",
    "plan_unsure_restores",
    "record_and_intend",
    "shared",
    "state",
    "state_for",
    "unlock",
]

# How long an agent may keep a voice that was lost. In this time the delivery that found the loss can give the
# agent another voice.
LOST_SECONDS = 60.0


FIELDS = columns(AgentRow)

GIVEN = Statement(
    f"SELECT {FIELDS}, changes, restoring, holder, held_until FROM agents WHERE agent_id = :agent_id"
)
CALL = "SELECT ended_at, stated FROM calls WHERE id = :call_id"
VOICE = "SELECT state, reason FROM voices WHERE marker = :marker"
SEEN_CALL, LOCKED_CALL = Statement(CALL), Statement(f"{CALL} FOR UPDATE")
SEEN_VOICE, LOCKED_VOICE = Statement(VOICE), Statement(f"{VOICE} FOR UPDATE")
OTHER_CALL = Statement("""
    SELECT 1 FROM calls
    WHERE agent_id = :agent_id AND caller <> :caller AND ended_at IS NULL AND begun_at > :others_since
    LIMIT 1
""")
INTENDED = Statement(f"""
    INSERT INTO agents ({FIELDS}, restoring, held_until, holder, changes)
    VALUES ({parameters(AgentRow)}, false, :until, :holder, :changes + 1)
    ON CONFLICT (agent_id) DO UPDATE SET {assignments(AgentRow, key="agent_id", prefix="excluded.")},
        restoring = false, held_until = excluded.held_until, holder = excluded.holder,
        changes = excluded.changes
    WHERE agents.held_until <= :now AND agents.changes = :changes AND agents.holder = ''
""")
INTENDED_BEFORE = Statement("SELECT 1 FROM agents WHERE agent_id = :agent_id AND holder = :holder")
# Whoever read the agent during the lock does not know what it has now.
UNLOCKED = Statement("""
    UPDATE agents SET held_until = :until, holder = :left, changes = changes + 1
    WHERE agent_id = :agent_id AND holder = :holder
""")
GIVEN_FOR_GOOD = Statement("""
    UPDATE agents SET former_marker = NULL, former_voice_id = NULL, former_first_message = NULL
    WHERE agent_id = :agent_id
""")
MARKED_OF_CALL = Statement("UPDATE agents SET restoring = true WHERE call_id = :call_id")
# One that is to be looked at once more is looked at now.
MARKED_WITH_VOICE = Statement(f"""
    UPDATE agents SET restoring = true,
        held_until = CASE WHEN holder = '{LOOKED_AT}' THEN 0 ELSE held_until END,
        holder = CASE WHEN holder = '{LOOKED_AT}' THEN '{UNANSWERED}' ELSE holder END
    WHERE marker = :marker
""")
NOT_GIVEN = Statement("""
    UPDATE agents SET former_marker = NULL WHERE agent_id = :agent_id AND former_marker = ''
""")
# Nobody knows what the agent has: an update of it may have failed. Until it is known to have succeeded there
# is a former marker, which is empty where the agent had its own voice.
UNSURE = "former_marker IS NOT NULL AND held_until <= :now AND NOT restoring"
MARKED_UNSURE = Statement(f"UPDATE agents SET restoring = true WHERE {UNSURE}")
# The call is over, or the voice is lost.
LEFT_OVER = """
    marker IS NOT NULL AND NOT restoring AND (
        NOT EXISTS (SELECT 1 FROM calls WHERE calls.id = agents.call_id AND calls.ended_at IS NULL)
        OR NOT EXISTS (
            SELECT 1 FROM voices
            WHERE voices.marker = agents.marker
                AND (voices.closed_at IS NULL OR voices.closed_at > :lost_since)
        )
    )
"""
ANY_LEFT_OVER = Statement(f"SELECT 1 FROM agents WHERE {LEFT_OVER} LIMIT 1")
MARKED_LEFT_OVER = Statement(f"UPDATE agents SET restoring = true WHERE {LEFT_OVER}")
# What is to be put back now.
DUE = "restoring AND held_until <= :now"
FIRST = f"""
    SELECT {FIELDS}, holder FROM agents WHERE {DUE} {{which}}
    ORDER BY held_until LIMIT 1 FOR UPDATE SKIP LOCKED
"""
MAY_HAVE = "(marker = :marker OR former_marker = :marker)"
FIRST_DUE = Statement(FIRST.format(which=""))
FIRST_DUE_WITH_VOICE = Statement(FIRST.format(which=f"AND {MAY_HAVE}"))
CLAIMED = Statement("""
    UPDATE agents SET held_until = :until, holder = :holder, changes = changes + 1 WHERE agent_id = :agent_id
""")
RESTORED = Statement("""
    UPDATE agents SET marker = NULL, call_id = NULL, voice_id = NULL, first_message = NULL,
        before_voice_id = NULL, before_first_message = NULL, former_marker = NULL, former_voice_id = NULL,
        former_first_message = NULL, traceparent = '', restoring = false, held_until = 0, holder = '',
        changes = changes + 1
    WHERE agent_id = :agent_id AND holder = :holder
""")
PUT_BACK_ONCE = Statement(f"""
    UPDATE agents SET held_until = :look_at, holder = '{LOOKED_AT}', changes = changes + 1
    WHERE agent_id = :agent_id AND holder = :holder
""")
SPEAKING = Statement(f"SELECT 1 FROM agents WHERE {MAY_HAVE} AND holder <> '{LOOKED_AT}' LIMIT 1")


def lock_calls_at(tx: Transaction, agent_id: str) -> None:
    """Locks the calls at an agent: nobody else notes one, or changes the agent because of one.

    The lock is held until the end of the transaction. It is taken before any row is locked, so that no two
    transactions wait for each other.
    """
    tx.lock(Lock.AGENT, agent_id)


def state(tx: Transaction, agent_id: str) -> AgentState:
    """What the agent was given, if it was not put back since."""
    row = tx.one(GIVEN, agent_id=agent_id)
    if row is None:
        return AgentState(row=None, changes=0)
    *fields, changes, restoring, holder, held_until = row
    given = AgentRow(*fields) if row[1] else None
    return AgentState(
        row=given, changes=changes, restoring=bool(restoring), holder=holder, held_until=held_until
    )


def state_for(
    tx: Transaction, agent_id: str, *, call_id: str, caller: str, others_since: float | None
) -> AgentState | None:
    """As `state`; None where the agent may not be changed for the call, however soon it is free.

    That is where the call is over, or another caller's call is in progress, as in `AgentUpdate`.
    """
    call = tx.one(SEEN_CALL, call_id=call_id)
    if call is None or call[0] is not None:
        return None
    if others_since is not None and shared(tx, agent_id, caller=caller, since=others_since):
        return None
    return state(tx, agent_id)


def intend(tx: Transaction, update: AgentUpdate, *, stated: str | None, now: float) -> Obstacle | None:
    """Stores what an agent had before and is about to be given; if it may not be changed, says why.

    It may be changed if it was not changed since it was read, nobody else holds it, no update of it may yet
    be done, the call has not ended and is still the `stated` caller's, its voice is not given up, and no
    other caller's call forbids it. Raises CallerForgotten.
    """
    row = update.row
    call = _lock_call(tx, row)
    obstacle = _obstacle(call, tx.one(LOCKED_VOICE, marker=row.marker), stated)
    return _intend(tx, update, now=now) if obstacle is None else obstacle


def obstacle_for(tx: Transaction, *, call_id: str, marker: str, stated: str | None) -> Obstacle | None:
    """What forbids that any agent is given the voice for the `stated` caller's call; None if nothing does.

    Raises CallerForgotten.
    """
    return _obstacle(tx.one(SEEN_CALL, call_id=call_id), tx.one(SEEN_VOICE, marker=marker), stated)


def record_and_intend(
    tx: Transaction, update: AgentUpdate, *, stated: str | None, now: float
) -> tuple[voices.Recorded | None, Obstacle | None]:
    """Records a new voice as `voices.record` does, and stores as `intend` does that an agent is given it.

    Returns what the two return. A voice that was not recorded is given to no agent.
    """
    row = update.row
    call = _lock_call(tx, row)
    recorded = voices.record(tx, row.marker, row.voice_id, now=now, call_id=row.call_id, stated=stated)
    if recorded is None or call is None or call[0] is not None or voices.has_other_caller(call[1], stated):
        return recorded, Obstacle.CALLS
    return recorded, _intend(tx, update, now=now)


def shared(tx: Transaction, agent_id: str, *, caller: str, since: float) -> bool:
    """Whether another caller's call at the agent began since then and is still open."""
    return tx.one(OTHER_CALL, agent_id=agent_id, caller=caller, others_since=since) is not None


def unlock(
    tx: Transaction,
    agent_id: str,
    *,
    holder: str,
    until: float = 0.0,
    given: bool = False,
    unanswered: bool = False,
) -> bool:
    """Ends the holder's lock of an agent, at once or at `until`; False if it had expired and others took it.

    `given` says that the update succeeded, so the former voice and greeting can be forgotten. An agent that
    stays locked for a while may have been updated, and is put back after that; `unanswered` says that a try
    of it may even be done later, also where another one succeeded.
    """
    held = (
        tx.run(UNLOCKED, agent_id=agent_id, holder=holder, until=until, left=UNANSWERED if unanswered else "")
        == 1
    )
    if held and given:
        tx.run(GIVEN_FOR_GOOD, agent_id=agent_id)
    elif held and not until:
        tx.run(NOT_GIVEN, agent_id=agent_id)
    return held


def plan_restore(tx: Transaction, *, call_id: str | None = None, marker: str | None = None) -> None:
    """Marks the agent that was changed for the call, or those with the voice, to be put back."""
    if marker is not None:
        tx.run(MARKED_WITH_VOICE, marker=marker)
    else:
        tx.run(MARKED_OF_CALL, call_id=call_id)


def plan_unsure_restores(tx: Transaction, *, now: float) -> None:
    """Marks agents to be put back whose last update may have failed and whose lock has ended."""
    tx.run(MARKED_UNSURE, now=now)


def any_left_over(tx: Transaction, *, now: float) -> bool:
    """Whether `plan_left_over_restores` would mark an agent. It goes through all agents that have a voice."""
    return tx.one(ANY_LEFT_OVER, lost_since=now - LOST_SECONDS) is not None


def plan_left_over_restores(tx: Transaction, *, now: float) -> None:
    """Marks agents to be put back whose voice was lost more than LOST_SECONDS ago, or whose call is over.

    Whoever ends a call marks its agent at once; this also finds what was missed, as by a restored back-up.
    """
    tx.run(MARKED_LEFT_OVER, lost_since=now - LOST_SECONDS)


def claim_restore(
    tx: Transaction, *, holder: str, now: float, marker: str | None = None
) -> ClaimedAgent | None:
    """Claims an agent that must be put back: while the lock lasts nobody else may change it."""
    if marker is None:
        row = tx.one(FIRST_DUE, now=now)
    else:
        row = tx.one(FIRST_DUE_WITH_VOICE, now=now, marker=marker)
    if row is None:
        return None
    *fields, last = row
    # Of a holder that died, too, the last update may yet be done; its lock has run out.
    found = ClaimedAgent(*fields, holder=holder, unsure=last not in ("", LOOKED_AT))
    tx.run(CLAIMED, agent_id=found.agent_id, holder=holder, until=now + HELD_SECONDS)
    return found


def note_restored(tx: Transaction, found: ClaimedAgent, *, now: float) -> None:
    """Forgets what an agent was given, because it was put back; if that is not sure to last, later."""
    if found.unsure:
        look_at = now + LANDS_SECONDS
        tx.run(PUT_BACK_ONCE, agent_id=found.agent_id, holder=found.holder, look_at=look_at)
    else:
        tx.run(RESTORED, agent_id=found.agent_id, holder=found.holder)


def has_voice(tx: Transaction, marker: str) -> bool:
    """Whether an agent still has this voice, as far as is known.

    One that was put back has none, even where it is looked at once more.
    """
    return tx.one(SPEAKING, marker=marker) is not None


def _lock_call(tx: Transaction, row: AgentRow) -> Row | None:
    """Locks the calls at the agent, then the call itself, and returns it; None if it is gone.

    The caller locks the voice after that: see the order in `cloner.registry.calls`.
    """
    lock_calls_at(tx, row.agent_id)
    return tx.one(LOCKED_CALL, call_id=row.call_id)


def _obstacle(call: Row | None, voice: Row | None, stated: str | None) -> Obstacle | None:
    """As `obstacle_for`, from the rows of call and voice: its end and whose it is; its state and reason."""
    if call is None:
        raise CallerForgotten
    ended_at, of_whom = call
    state, reason = voice or (None, None)
    anothers = voices.has_other_caller(of_whom, stated)
    # A row that is gone is that of somebody forgotten, or a closed one that was purged.
    forgotten = anothers if voice is None else reason == FORGOTTEN
    if forgotten or voices.is_noted_since(of_whom, stated):
        raise CallerForgotten
    if ended_at is not None:
        return Obstacle.CALLS
    if state != "ready":
        return Obstacle.VOICE
    return Obstacle.CALLS if anothers else None


def _intend(tx: Transaction, update: AgentUpdate, *, now: float) -> Obstacle | None:
    """As `intend`, for an open call and a voice that is ready, both of them locked."""
    # Under the lock of the agent's calls: a call that is not seen here is noted later, and sees this change.
    agent_id, since = update.row.agent_id, update.others_since
    if since is not None and shared(tx, agent_id, caller=update.caller, since=since):
        return Obstacle.CALLS
    values = msgspec.structs.asdict(update.row) | {
        "holder": update.holder,
        "until": now + HELD_SECONDS,
        "former_marker": update.row.former_marker or "",
    }
    if tx.run(INTENDED, **values, changes=update.changes, now=now) == 1:
        return None
    # It may be stored already, by a transaction whose commit was not heard of.
    stored = tx.one(INTENDED_BEFORE, agent_id=agent_id, holder=update.holder) is not None
    return None if stored else Obstacle.CHANGES
