"""Who is connected to a process, as the machine tells."""

import asyncio

import psutil

__all__ = ["connected"]


async def connected(pid: int, port: int, *, count: int) -> None:
    """Waits until a process has so many connections to the port at which it listens."""
    process = psutil.Process(pid)
    async with asyncio.timeout(60):
        while _established(process, port) < count:
            await asyncio.sleep(0.02)


def _established(process: psutil.Process, port: int) -> int:
    found = process.net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)
