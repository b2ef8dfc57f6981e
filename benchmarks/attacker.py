"""Another process that attacks while honest requests are measured."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from demo.processes import ProcessFailed

__all__ = ["attacker"]

UNDER_WAY_SECONDS = 2.0


@asynccontextmanager
async def attacker(*command: str) -> AsyncIterator[None]:
    """Runs `python -m` with the command beside the block, which begins when the attack is under way.

    Raises ProcessFailed where it ended by itself: what was measured then was measured beside nothing.
    """
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *command)
    try:
        await asyncio.sleep(UNDER_WAY_SECONDS)
        yield
    finally:
        status = process.returncode
        if status is None:
            process.kill()
        await process.wait()
    if status is not None:
        raise ProcessFailed(f"{' '.join(command)} ended by itself, with exit status {status}")
