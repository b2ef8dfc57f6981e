import asyncio
from typing import Any

import pytest

from gateway.edge.body import Bodies, BodyError, read_body
from gateway.edge.pacing import Pacing


class Held(Pacing):
    """Pacing in which nobody gets a turn until all are told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.goes_on = asyncio.Event(), asyncio.Event()

    async def wait_for_turn(self, need: int) -> None:
        self.asked.set()
        await self.goes_on.wait()
        await super().wait_for_turn(need)


async def body_of_one_piece() -> Any:
    """What a server hands over of a body that is there."""
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def read_of(pacing: Pacing, *, seconds: float) -> float:
    """Reads a body that is there from the beginning."""
    bodies = Bodies(1000, {"/webhook": 1000})
    bodies.pacing = pacing
    with bodies.share(10, "/webhook") as share:
        return await read_body(
            [], body_of_one_piece, lambda _: None, share, limit=10, seconds=seconds, least_rate=1.0
        )


async def begun(pacing: Pacing, needs: list[int]) -> list[int]:
    """In which order those begin who come at once, by their place in the list."""
    order: list[int] = []

    async def take(place: int) -> None:
        await pacing.wait_for_turn(needs[place])
        order.append(place)

    await asyncio.gather(*(take(place) for place in range(len(needs))))
    return order


async def test_in_order() -> None:
    """Who needs as much as the others has a turn in the order of coming."""
    assert list(range(100)) == await begun(Pacing(), [1] * 100)


async def test_small_before_large() -> None:
    """What is small comes before nearly all that is large and came before; the first of these goes on as well."""
    needs = [1000] * 200 + [1]

    order = await begun(Pacing(), needs)

    assert order.index(200) <= 2 * Pacing.AT_ONCE
    assert order.index(20) < 60


async def test_only_so_many_each_round() -> None:
    """Between two rounds the loop does what else there is to do."""
    pacing, done = Pacing(), []
    tasks = [asyncio.create_task(pacing.wait_for_turn(1)) for _ in range(100)]
    for task in tasks:
        task.add_done_callback(done.append)
    rounds = 0
    while len(done) < 100:
        await asyncio.sleep(0)
        rounds += 1

    assert rounds >= 100 // Pacing.AT_ONCE


async def test_who_gives_up_holds_up_nobody() -> None:
    """A turn of somebody who has given up is the next one's, in whichever moment that was."""
    pacing = Pacing()
    for pause in range(4):
        waiting = [asyncio.create_task(pacing.wait_for_turn(1)) for _ in range(40)]
        for _ in range(pause):
            await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()

        async with asyncio.timeout(10):
            await asyncio.gather(*waiting, return_exceptions=True)
            await pacing.wait_for_turn(1)


async def test_waiting_for_a_turn_is_part_of_the_time() -> None:
    """What was there before its turn came began to arrive then: an answer in time counts from there."""
    turns = Held()
    reading = asyncio.create_task(read_of(turns, seconds=60))
    await turns.asked.wait()
    await asyncio.sleep(0.5)
    goes_on_at = asyncio.get_running_loop().time()
    turns.goes_on.set()

    assert await reading < goes_on_at


async def test_no_turn_in_time_is_not_the_senders_fault() -> None:
    """A body whose turn does not come may be sent again; its sender was not too slow."""
    with pytest.raises(BodyError) as refused:
        await read_of(Held(), seconds=0.01)

    assert "RATE_LIMITED" == refused.value.reason
