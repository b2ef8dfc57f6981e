"""Gateways in processes of their own, with the settings that a test gives them."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.kit.forked import Program, started

__all__ = ["SECRET", "Process", "Start", "ended", "process", "ready"]

SECRET = "test-webhook-secret-0001"
Process = asyncio.subprocess.Process | Program
Start = Callable[..., Awaitable[Process]]


@asynccontextmanager
async def process(
    *, imports: bool = False, output: int | None = None, **settings: str
) -> AsyncIterator[Process]:
    """A gateway with no settings but these, to which a warning is an error.

    It is forked from a process that has imported its modules, unless a test wants `imports`. If it is given an
    `output`, it writes there.
    """
    environ = {
        "PATH": os.environ["PATH"], "PYTHONWARNINGS": "error", "PRECALL_WEBHOOK_HOST": "127.0.0.1", **settings,
    }  # fmt: skip
    async with started("gateway", environ=environ, imports=imports, output=output) as begun:
        yield begun


async def ready(process: Process) -> str:
    """The address in the line that says that the gateway is ready."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = (await process.stdout.readline()).decode()
    if line.startswith("{"):
        told = json.loads(line)
        assert ("gateway", f"gateway ready on {told['address']}") == (told["service.name"], told["event"])
        return str(told["address"])
    match = re.fullmatch(r"gateway ready on (http://(?:127\.0\.0\.1|\[::1?\]):\d+)\n", line)
    assert match is not None, line
    return match[1]


async def ended(process: Process) -> tuple[int | None, str, str]:
    """Exit status and what was written."""
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()
