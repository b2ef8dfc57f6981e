"""A process of Python that a test starts, and that ends with it."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def python(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    stdout: int = PIPE,
    stderr: int | None = PIPE,
) -> AsyncIterator[Process]:
    """Python with these arguments, under way. Killed if it still is when the block ends."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=env, cwd=cwd, stdout=stdout, stderr=stderr
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()
