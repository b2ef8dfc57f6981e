import asyncio

from gateway.edge.turns import Turns


async def begun(turns: Turns, needs: list[int]) -> list[int]:
    """In which order those begin who come at once, by their place in the list."""
    order: list[int] = []

    async def take(place: int) -> None:
        await turns.one(needs[place])
        order.append(place)

    await asyncio.gather(*(take(place) for place in range(len(needs))))
    return order


async def test_in_order() -> None:
    """Who needs as much as the others has a turn in the order of coming."""
    assert list(range(100)) == await begun(Turns(), [1] * 100)


async def test_small_before_large() -> None:
    """What is small comes before nearly all that is large and came before; the first of these goes on as well."""
    needs = [1000] * 200 + [1]

    order = await begun(Turns(), needs)

    assert order.index(200) <= 2 * Turns.AT_ONCE
    assert order.index(20) < 60


async def test_only_so_many_each_round() -> None:
    """Between two rounds the loop does what else there is to do."""
    turns, done = Turns(), []
    tasks = [asyncio.create_task(turns.one(1)) for _ in range(100)]
    for task in tasks:
        task.add_done_callback(done.append)
    rounds = 0
    while len(done) < 100:
        await asyncio.sleep(0)
        rounds += 1

    assert rounds >= 100 // Turns.AT_ONCE


async def test_who_gives_up_holds_up_nobody() -> None:
    """A turn of somebody who has given up is the next one's, in whichever moment that was."""
    turns = Turns()
    for pause in range(4):
        waiting = [asyncio.create_task(turns.one(1)) for _ in range(40)]
        for _ in range(pause):
            await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()

        async with asyncio.timeout(10):
            await asyncio.gather(*waiting, return_exceptions=True)
            await turns.one(1)
