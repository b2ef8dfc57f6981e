"""A cloner that stood still, as in a container that is held: what arrived in time is answered."""

import asyncio
import signal
import time

import uvloop

from cloner.rpc.late import extended_if_late
from tests.kit.processes.cloner import process, ready
from tests.kit.wire import Wire

# Not less: a busy machine may keep a test from stopping the cloner for so long.
SECONDS = 3
EMPTY = b"\0\0\0\0\0"


async def test_body() -> None:
    """No body that arrived while the cloner stood still, and its time ended, is said to be late."""
    async with process(ELEVENLABS_API_KEY="k", CLONER_PORT="0", BODY_TIMEOUT_SECONDS=str(SECONDS)) as started:
        wire = await Wire.open(int((await ready(started)).rpartition(":")[2]))
        streams = [wire.begin("/precall.v1.CloningService/PrepareCall") for _ in range(10)]
        for stream in streams:
            await wire.send(stream, EMPTY[:1])
        # By the first answer the others are being read; by the second gRPC has our answer to its settings, for which it
        # waits as long as for a body.
        for _ in range(2):
            other = wire.begin("/precall.v1.CloningService/GetLimits")
            await wire.send(other, EMPTY, end=True)
            await wire.end_of(other)

        started.send_signal(signal.SIGSTOP)
        for stream in streams:
            await wire.send(stream, EMPTY[1:], end=True)
        await asyncio.sleep(SECONDS + 0.2)
        started.send_signal(signal.SIGCONT)
        ends = [await wire.end_of(stream) for stream in streams]
        await wire.close()

    assert {True} == {b"agent_id is required" in end for end in ends}, ends


def test_before_it_is_watched() -> None:
    """A time limit is extended, too, if the process stood still before anything could look at the limit."""

    async def stand_still() -> None:
        async with asyncio.timeout(0.01) as limit:
            time.sleep(0.05)  # noqa: ASYNC251 - that is what standing still is
            async with extended_if_late(limit, 30):
                await asyncio.sleep(0.01)

    uvloop.run(stand_still())
