"""What follows once a file has changed."""

import asyncio
from typing import Any

__all__ = ["comes_true"]


async def comes_true(holds: Any) -> None:
    """Waits for what a file that has changed brings about."""
    async with asyncio.timeout(60):
        while not await holds():
            await asyncio.sleep(0.05)
