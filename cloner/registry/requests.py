"""Requests that carry an id of the sender: what each asked for, and which voice it led to.

A row is stored in one transaction with the intent to make a voice, so that no process can buy a voice without
knowing later for which request. A request that failed before that is not remembered.
"""

import msgspec

from cloner.registry.statement import AT_ONCE, Statement, of_some
from cloner.registry.transaction import Transaction

__all__ = [
    "KEPT_SECONDS",
    "Answer",
    "NamedRequest",
    "RequestDiffers",
    "RequestForgotten",
    "answer",
    "drop_old",
    "forget_voice",
    "lock",
    "note_voice",
    "settle",
]

KEPT_SECONDS = 86_400.0


class RequestDiffers(Exception):
    """The sender used the same id for another request within a day. Nothing was done."""

    faults = (("request_id", "was used for another request within a day: give each an id of its own"),)

    def __init__(self) -> None:
        super().__init__(" ".join(self.faults[0]))


class RequestForgotten(Exception):
    """The request was answered with a voice that has been forgotten since. Nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            "The voice that this request made was forgotten since; another one needs another request_id."
        )


class NamedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request, by its sender's id for it and by its content, both as keyed hashes."""

    key: str
    content: str


class Answer(msgspec.Struct, frozen=True):
    """The voice that a request led to, and whether it was there already."""

    marker: str
    reused: bool


KEY_TAKEN = Statement("""
    INSERT INTO requests (key, content, reused, at) VALUES (:key, :content, :reused, :now)
    ON CONFLICT (key) DO NOTHING
""")
# The voice of a request is remembered for a day.
FOUND = """
    SELECT requests.content, requests.marker, requests.reused, voices.state FROM requests
    LEFT JOIN voices ON voices.marker = requests.marker WHERE requests.key = :key AND requests.at > :since
"""
ANSWER = Statement(FOUND)
LOCKED = Statement("SELECT 1 FROM requests WHERE key = :key FOR UPDATE")
LED_TO = Statement("""
    UPDATE requests SET content = :content, marker = :marker, reused = :reused, at = :now WHERE key = :key
""")
FORGOTTEN = Statement("UPDATE requests SET content = '', marker = NULL WHERE marker = :marker")
OLD = "at <= :answered_before"
DROPPED = Statement(of_some("DELETE FROM requests", table="requests", key="key", condition=OLD))


def answer(tx: Transaction, request: NamedRequest, *, now: float) -> Answer | None:
    """The voice that any process found or made for the request within a day; None if it counts as new.

    The voice may still be on its way. Raises RequestDiffers or RequestForgotten.
    """
    row = tx.one(ANSWER, key=request.key, since=now - KEPT_SECONDS)
    if row is None:
        return None
    content, marker, reused, state = row
    if state == "failed":
        return None
    if content and content != request.content:
        raise RequestDiffers
    if state is None:
        raise RequestForgotten
    return Answer(marker, bool(reused))


def lock(tx: Transaction, request: NamedRequest, *, now: float) -> Answer | None:
    """As `answer`, and locks the request for this transaction, so that it leads to one voice only."""
    # Stored as if it was answered a day ago, so that `answer` finds nothing before `note_voice`.
    tx.run(KEY_TAKEN, key=request.key, content=request.content, reused=False, now=now - KEPT_SECONDS)
    tx.one(LOCKED, key=request.key)
    return answer(tx, request, now=now)


def note_voice(tx: Transaction, request: NamedRequest, marker: str, *, reused: bool, now: float) -> None:
    """Stores the voice of a request that was taken in this transaction."""
    tx.run(LED_TO, key=request.key, content=request.content, marker=marker, reused=reused, now=now)


def settle(tx: Transaction, request: NamedRequest, marker: str, *, reused: bool, now: float) -> Answer:
    """Stores this answer unless there is one already, and returns the one that was stored first."""
    noted = lock(tx, request, now=now)
    if noted is not None:
        return noted
    note_voice(tx, request, marker, reused=reused, now=now)
    return Answer(marker, reused)


def forget_voice(tx: Transaction, marker: str) -> None:
    """Removes a voice from its requests, but keeps their rows, so that none of them makes a voice anew."""
    tx.run(FORGOTTEN, marker=marker)


def drop_old(tx: Transaction, *, before: float) -> bool:
    """Removes requests that were answered before `before`. Returns whether there may be more of them."""
    return tx.run(DROPPED, answered_before=before) == AT_ONCE
