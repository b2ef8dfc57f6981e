"""Who is connected, and who gives way when every place is taken.

A newcomer is always let in while anybody is there who has less of a claim:

    idle        no request is under way; the one that is idle longest goes first
    beginning   the headers of a request are incomplete, for the longest time
    asking      a request is under way of somebody we do not know, for the longest time

Whoever came to what he is doing only just now is passed over while there is anybody else to go: somebody who
has connected is idle until his first bytes are here, and would go before everybody who holds up the place.
Only where everybody is known, which is to say that every place is taken by work, a newcomer is turned away.
"""

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

__all__ = ["EXTENSION", "Claim", "Guest", "Places"]

# Where a request's scope has the guest whose request it is.
EXTENSION = "precall.guest"

# How many who gave way may still be on their way out with an answer.
LEAVING = 64
# How long somebody has for the next step before those go first who have taken longer.
GRACE_SECONDS = 1.0


class Claim(IntEnum):
    """What somebody is doing on a connection, those who give way first before the others."""

    IDLE = 0
    BEGINNING = 1
    ASKING = 2
    KNOWN = 3


class Guest(Protocol):
    """Somebody who is connected."""

    refuse: Callable[[], None] | None
    """Answers the request that is under way at once, where it can be refused."""

    def vouch(self) -> None:
        """Says that the sender of the request that is under way is known."""

    def give_way(self, *, at_once: bool) -> None:
        """Makes room; with a word of why where there is one and it need not be `at_once`."""


class Places:
    """Takes no more connections than there are places. `now` is in seconds, and never goes back."""

    def __init__(self, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._claims: dict[Guest, Claim] = {}
        # When each came to it, in that order, so that nobody is searched for.
        self._orders: dict[Claim, dict[Guest, float]] = {claim: {} for claim in Claim}
        self._leaving: set[Guest] = set()

    @property
    def taken(self) -> int:
        """How many are connected."""
        return len(self._claims)

    def enter(self, guest: Guest) -> bool:
        """Whether there is a place; somebody else may have given way for it."""
        if len(self._claims) >= self._most and not self._make_room():
            return False
        self._put(guest, Claim.IDLE)
        return True

    def now(self, guest: Guest, claim: Claim) -> None:
        """Says what somebody does from now on."""
        before = self._claims.get(guest)
        if before is not None:
            del self._orders[before][guest]
            self._put(guest, claim)

    def leave(self, guest: Guest) -> None:
        """Says that somebody is gone."""
        claim = self._claims.pop(guest, None)
        if claim is not None:
            del self._orders[claim][guest]
        self._leaving.discard(guest)

    def _make_room(self) -> bool:
        orders = [self._orders[claim] for claim in (Claim.IDLE, Claim.BEGINNING, Claim.ASKING)]
        longest = [next(iter(order.items())) for order in orders if order]
        if not longest:
            return False
        latest = self._now() - GRACE_SECONDS
        guest = next((guest for guest, since in longest if since <= latest), longest[0][0])
        self.leave(guest)
        at_once = len(self._leaving) >= LEAVING
        self._leaving.add(guest)
        guest.give_way(at_once=at_once)
        return True

    def _put(self, guest: Guest, claim: Claim) -> None:
        self._claims[guest] = claim
        self._orders[claim][guest] = self._now()
