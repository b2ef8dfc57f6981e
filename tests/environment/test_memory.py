import gc
import weakref
from collections.abc import Iterator

import pytest

from environment.memory import FreedMemory

MEBIBYTE = 1_048_576


class Held:
    """What may be part of a cycle."""

    itself: "Held"


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    """Nobody else looks for cycles meanwhile."""
    gc.disable()
    yield
    gc.enable()


def in_cycle() -> "weakref.ref[Held]":
    """Something that nobody holds but itself."""
    held = Held()
    held.itself = held
    return weakref.ref(held)


async def test_cycle() -> None:
    """What is left in cycles goes with every 32 MB."""
    freed, left = FreedMemory(lambda: None), in_cycle()
    for _ in range(31):
        freed.note_freed(MEBIBYTE, held=1)
    before = left() is not None
    freed.note_freed(MEBIBYTE, held=1)
    assert (True, None) == (before, left())
