import asyncio
import gc
import threading
from typing import Any

import pytest

from gateway.edge.aside import LARGE_BYTES, Aside
from gateway.edge.problems import DeadlineTooShort


async def test_large() -> None:
    """The loop goes on while a large body is read."""
    goes_on = threading.Event()
    reading = asyncio.create_task(Aside().read(LARGE_BYTES + 1, lambda: goes_on.wait(20)))
    await asyncio.sleep(0)
    goes_on.set()

    assert await reading


async def test_small() -> None:
    """A small body is not worth a thread."""
    assert threading.get_ident() == await Aside().read(LARGE_BYTES, threading.get_ident)


async def test_one_at_a_time() -> None:
    """However many large bodies there are, one is read at a time."""
    under_way, most = 0, 0
    lock = threading.Lock()

    def read() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.01)  # so that others would have the time to begin
        with lock:
            under_way -= 1

    aside = Aside()
    await asyncio.gather(*(aside.read(LARGE_BYTES + 1, read) for _ in range(8)))

    assert (0, 1) == (under_way, most)


async def test_failure() -> None:
    """A body that cannot be read fails as it would on the spot."""

    def read() -> None:
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        await Aside().read(LARGE_BYTES + 1, read)


async def test_failure_that_nobody_waits_for() -> None:
    """A body that turns out to be unreadable once nobody waits for it is no bug, and is not told as one."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    goes_on, aside = threading.Event(), Aside()

    def read() -> None:
        goes_on.wait(20)
        raise ValueError("unreadable")

    with pytest.raises(DeadlineTooShort):
        await aside.read(LARGE_BYTES + 1, read, seconds=0.01)
    goes_on.set()
    await aside.read(LARGE_BYTES + 1, goes_on.is_set)
    gc.collect()

    assert [] == told


async def test_no_time() -> None:
    """Who has no time left does not wait, and the next body is read once the one before it was read."""
    goes_on = threading.Event()
    aside = Aside()
    with pytest.raises(DeadlineTooShort):
        await aside.read(LARGE_BYTES + 1, lambda: goes_on.wait(20), seconds=0.01)
    next_one = asyncio.create_task(aside.read(LARGE_BYTES + 1, goes_on.is_set))
    await asyncio.sleep(0)
    goes_on.set()

    assert await next_one
