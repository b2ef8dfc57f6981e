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
    redirected: str = "",
) -> AsyncIterator[Process]:
    """Python with these arguments, under way. Killed if it still is when the block ends.

    Its streams may be `redirected` as a shell does it, such as `<&-`.
    """
    by_shell = ("sh", "-c", f'exec "$0" "$@" {redirected}') if redirected else ()
    started = await asyncio.create_subprocess_exec(
        *by_shell, sys.executable, *arguments, env=env, cwd=cwd, stdout=stdout, stderr=stderr
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()
