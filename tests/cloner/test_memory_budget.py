"""Who gets in while memory is short."""

import asyncio

import pytest

from cloner.memory_budget import MemoryBudget, Share
from cloner.refusals import Overloaded


async def wait(budget: MemoryBudget, size: int, *, call: bool) -> Share:
    """A share, in the time that a busy machine needs."""
    return await budget.wait(size, call=call, seconds=30)


async def test_room_for_calls() -> None:
    """What no call waits for leaves room, also by what is held beside its shares; a call may take all of it."""
    budget = MemoryBudget(100, for_others=40)
    first = await wait(budget, 30, call=False)
    with pytest.raises(Overloaded) as refused:
        await budget.wait(20, call=False, seconds=0)
    with budget.holding(10):
        await wait(budget, 60, call=True)
        first.resize(10)
        with pytest.raises(Overloaded):
            await budget.wait(1, call=False, seconds=0)

    assert {"limit_bytes_at_once": "40"} == refused.value.facts
    assert 70 == budget.taken


async def test_calls_first() -> None:
    """A call that comes later gets in first."""
    budget = MemoryBudget(100, for_others=90)
    held = await wait(budget, 100, call=True)
    came = []

    async def enter(name: str, *, call: bool) -> None:
        share = await wait(budget, 80, call=call)
        came.append(name)
        share.give_back()

    waiting = [
        asyncio.create_task(enter("enrolment", call=False)),
        asyncio.create_task(enter("call", call=True)),
    ]
    await asyncio.sleep(0)
    held.give_back()
    await asyncio.gather(*waiting)

    assert ["call", "enrolment"] == came


async def test_too_large() -> None:
    """What is larger than all there is gets in while nothing else is held."""
    budget = MemoryBudget(100, for_others=40)
    (await wait(budget, 300, call=False)).give_back()
    (await wait(budget, 300, call=True)).give_back()

    assert 0 == budget.taken
