"""Time limits of a process that may stand still: on a busy machine, or in a container that is held.

Its timers are then due before it has looked at anything else that has come meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["extended_if_late"]

# By how much the loop's clock may be off.
CLOCK_SECONDS = 0.002


@asynccontextmanager
async def extended_if_late(clock: asyncio.Timeout, seconds: float) -> AsyncIterator[None]:
    """Extends the time limit once, by so many seconds, if the event loop was blocked past it.

    What had come in time is then still heard: a body, or the reason why a request to ElevenLabs failed.
    """
    loop, due = asyncio.get_running_loop(), clock.when() or 0.0

    def look() -> None:
        if loop.time() > due and clock.when() == due and not clock.expired():
            clock.reschedule(loop.time() + seconds)

    handle = loop.call_at(due - CLOCK_SECONDS, look)
    # It may have been blocked just before: uvloop then ends the limit before it looks.
    look()
    try:
        yield
    finally:
        handle.cancel()
