from collections.abc import Callable

from gateway.edge.places import GRACE_SECONDS, Activity, Places


class Somebody:
    """A connection that notes whether it had to go."""

    refuse: Callable[[], None] | None = None
    evicted = False

    def mark_verified(self) -> None:
        """Nobody knows its sender."""

    def evict(self, *, at_once: bool) -> None:
        """Goes, with or without a word."""
        assert not at_once
        self.evicted = True


class Clock:
    """A time that goes on when it is told to."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def evicted(occupants: list[Somebody]) -> list[int]:
    """Which of them had to go."""
    return [number for number, occupant in enumerate(occupants) if occupant.evicted]


def test_newcomer_is_not_pushed_out_by_the_next_one() -> None:
    """Where strangers' requests take every place, who has only just connected gets to say what he wants."""
    clock = Clock()
    places = Places(3, now=clock)
    occupants = [Somebody() for _ in range(5)]
    for occupant in occupants[:3]:
        places.enter(occupant)
        places.note(occupant, Activity.ASKING)
    clock.time += GRACE_SECONDS
    for occupant in occupants[3:]:
        places.enter(occupant)

    assert [0, 1] == evicted(occupants)


def test_idle_first() -> None:
    """Who is idle for long goes before who asks for longer, and the longest idle before the others."""
    clock = Clock()
    places = Places(3, now=clock)
    occupants = [Somebody() for _ in range(5)]
    for occupant in occupants[:3]:
        places.enter(occupant)
        clock.time += GRACE_SECONDS
    places.note(occupants[0], Activity.ASKING)
    for occupant in occupants[3:]:
        clock.time += GRACE_SECONDS
        places.enter(occupant)

    assert [1, 2] == evicted(occupants)


def test_all_newcomers() -> None:
    """Where everybody came at once, the first of those that are evicted first goes."""
    places = Places(2, now=Clock())
    occupants = [Somebody() for _ in range(3)]
    places.enter(occupants[0])
    places.note(occupants[0], Activity.ASKING)
    for occupant in occupants[1:]:
        places.enter(occupant)

    assert [1] == evicted(occupants)


def test_only_known() -> None:
    """Nobody who is known has to go, for however long he is here."""
    clock = Clock()
    places = Places(1, now=clock)
    known, newcomer = Somebody(), Somebody()
    places.enter(known)
    places.note(known, Activity.KNOWN)
    clock.time += 100

    assert not places.enter(newcomer)
    assert not known.evicted
