import asyncio
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
    return weakref.ref(cyclic())


def cyclic() -> Held:
    """Something that refers to itself."""
    held = Held()
    held.itself = held
    return held


async def test_cycle() -> None:
    """What is left in cycles goes with every 32 MB."""
    freed, left = FreedMemory(lambda: None), in_cycle()
    for _ in range(31):
        freed.note_freed(MEBIBYTE, held=1)
    before = left() is not None
    freed.note_freed(MEBIBYTE, held=1)
    assert (True, None) == (before, left())


async def test_cycle_that_was_in_use() -> None:
    """What was in use while others were looked for goes some looks later."""
    gc.collect()
    freed, held = FreedMemory(lambda: None), cyclic()
    left = weakref.ref(held)
    freed.note_freed(32 * MEBIBYTE, held=1)
    del held
    freed.note_freed(32 * MEBIBYTE, held=1)
    before = left() is not None
    for _ in range(11):
        freed.note_freed(32 * MEBIBYTE, held=1)
    assert (True, None) == (before, left())


async def test_cycle_that_was_in_use_for_long() -> None:
    """Whatever is left in cycles is gone when memory is given back."""
    loop, given_back = asyncio.get_running_loop(), asyncio.Event()
    freed, held = FreedMemory(lambda: loop.call_soon_threadsafe(given_back.set)), cyclic()
    left = weakref.ref(held)
    gc.collect()
    del held
    freed.note_freed(16 * MEBIBYTE, held=0)
    before = left() is not None
    async with asyncio.timeout(60):
        await given_back.wait()
    assert (True, None) == (before, left())
