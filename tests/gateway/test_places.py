from collections.abc import Callable

from gateway.edge.places import GRACE_SECONDS, Claim, Places


class Somebody:
    """A guest who notes whether he had to go."""

    refuse: Callable[[], None] | None = None
    gone = False

    def vouch(self) -> None:
        """Nobody knows him."""

    def give_way(self, *, at_once: bool) -> None:
        """Goes, with or without a word."""
        assert not at_once
        self.gone = True


class Clock:
    """A time that goes on when it is told to."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def gone(guests: list[Somebody]) -> list[int]:
    """Which of them had to go."""
    return [number for number, guest in enumerate(guests) if guest.gone]


def test_newcomer_is_not_pushed_out_by_the_next_one() -> None:
    """Where strangers' requests take every place, who has only just connected gets to say what he wants."""
    clock = Clock()
    places = Places(3, now=clock)
    guests = [Somebody() for _ in range(5)]
    for guest in guests[:3]:
        places.enter(guest)
        places.now(guest, Claim.ASKING)
    clock.time += GRACE_SECONDS
    for guest in guests[3:]:
        places.enter(guest)

    assert [0, 1] == gone(guests)


def test_idle_first() -> None:
    """Who is idle for long goes before who asks for longer, and the longest idle before the others."""
    clock = Clock()
    places = Places(3, now=clock)
    guests = [Somebody() for _ in range(5)]
    for guest in guests[:3]:
        places.enter(guest)
        clock.time += GRACE_SECONDS
    places.now(guests[0], Claim.ASKING)
    for guest in guests[3:]:
        clock.time += GRACE_SECONDS
        places.enter(guest)

    assert [1, 2] == gone(guests)


def test_all_newcomers() -> None:
    """Where everybody came at once, the first of those with the least claim goes."""
    places = Places(2, now=Clock())
    guests = [Somebody() for _ in range(3)]
    places.enter(guests[0])
    places.now(guests[0], Claim.ASKING)
    for guest in guests[1:]:
        places.enter(guest)

    assert [1] == gone(guests)


def test_only_known() -> None:
    """Nobody who is known has to go, for however long he is here."""
    clock = Clock()
    places = Places(1, now=clock)
    known, newcomer = Somebody(), Somebody()
    places.enter(known)
    places.now(known, Claim.KNOWN)
    clock.time += 100

    assert not places.enter(newcomer)
    assert not known.gone
