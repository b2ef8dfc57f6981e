"""Bounds the open connections: a new one evicts another when every place is taken.

A new connection is always let in while there is one that may be evicted, in this order:

    idle        no request is under way; the one that has been idle longest
    beginning   the headers of a request are incomplete, for the longest time
    asking      a request of an unknown sender is under way, for the longest time

A connection whose activity has just changed is skipped while there is another one to evict. Otherwise a new
connection, which is idle until its first bytes arrive, would be evicted before those that block the places.
A new connection is refused only if requests of known senders take all places.
"""

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

__all__ = ["EXTENSION", "Activity", "Occupant", "Places"]

# The key of a request's connection in the extensions of its scope.
EXTENSION = "precall.connection"

# How many evicted connections may still be waiting for their answer to be sent.
LEAVING = 64
# How long a connection is skipped after its activity has changed.
GRACE_SECONDS = 1.0


class Activity(IntEnum):
    """What a connection is doing, in the order of eviction."""

    IDLE = 0
    BEGINNING = 1
    ASKING = 2
    KNOWN = 3


class Occupant(Protocol):
    """A connection that takes a place."""

    refuse: Callable[[], None] | None
    """Refuses the request that is under way at once; None if it cannot be refused."""

    def mark_verified(self) -> None:
        """Notes that the sender of the request under way is known."""

    def evict(self, *, at_once: bool) -> None:
        """Closes the connection, after an error answer if it may be sent and it need not be `at_once`."""


class Places:
    """Takes no more connections than there are places. `now` is in seconds, and never goes back."""

    def __init__(self, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._activities: dict[Occupant, Activity] = {}
        # Since when each connection has its activity, in order of time, so that the oldest is the first.
        self._orders: dict[Activity, dict[Occupant, float]] = {activity: {} for activity in Activity}
        self._leaving: set[Occupant] = set()

    @property
    def taken(self) -> int:
        """How many connections are open."""
        return len(self._activities)

    def enter(self, occupant: Occupant) -> bool:
        """Takes a place, and may evict another connection for it; False if there is none."""
        if len(self._activities) >= self._most and not self._make_room():
            return False
        self._put(occupant, Activity.IDLE)
        return True

    def note(self, occupant: Occupant, activity: Activity) -> None:
        """Notes the activity of a connection from now on."""
        before = self._activities.get(occupant)
        if before is not None:
            del self._orders[before][occupant]
            self._put(occupant, activity)

    def leave(self, occupant: Occupant) -> None:
        """Frees the place of a connection."""
        activity = self._activities.pop(occupant, None)
        if activity is not None:
            del self._orders[activity][occupant]
        self._leaving.discard(occupant)

    def refuse_unknown(self) -> None:
        """Refuses every request under way whose sender is not known by now."""
        for occupant in list(self._orders[Activity.ASKING]):
            if occupant.refuse is not None:
                occupant.refuse()

    def _make_room(self) -> bool:
        orders = [self._orders[activity] for activity in (Activity.IDLE, Activity.BEGINNING, Activity.ASKING)]
        longest = [next(iter(order.items())) for order in orders if order]
        if not longest:
            return False
        latest = self._now() - GRACE_SECONDS
        occupant = next((occupant for occupant, since in longest if since <= latest), longest[0][0])
        self.leave(occupant)
        at_once = len(self._leaving) >= LEAVING
        self._leaving.add(occupant)
        occupant.evict(at_once=at_once)
        return True

    def _put(self, occupant: Occupant, activity: Activity) -> None:
        self._activities[occupant] = activity
        self._orders[activity][occupant] = self._now()
