"""Cloners in processes of their own, with the settings that a test gives them."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.kit.databases import migrated_sqlite
from tests.kit.forked import Program, started

__all__ = ["API_KEY", "process", "ready", "until_ready"]

API_KEY = "key-of-the-emulator"


@asynccontextmanager
async def process(
    *, imports: bool = False, **settings: str
) -> AsyncIterator[asyncio.subprocess.Process | Program]:
    """A cloner with these settings, in a folder of its own.

    A start need not be shown to do everything each time: it has one audio worker, finds the tables made, and is
    forked from a process that has imported its modules, unless a test wants `imports`.
    """
    environ = {"PATH": os.environ["PATH"], "AUDIO_WORKERS": "1", **settings}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "precall.sqlite3").write_bytes(migrated_sqlite())
        async with started("cloner", environ=environ, folder=Path(folder), imports=imports) as begun:
            yield begun


async def until_ready(started: asyncio.subprocess.Process) -> list[str]:
    """The lines that a process prints until it serves, and the one that says where."""
    lines = []
    while line := (await asyncio.wait_for(started.stdout.readline(), 60)).decode():
        lines.append(line.strip())
        if line.startswith("cloner ready on "):
            return lines
    raise AssertionError((await started.stderr.read()).decode())


async def ready(started: asyncio.subprocess.Process) -> str:
    """The address in the line that a process prints when it serves."""
    return (await until_ready(started))[-1].removeprefix("cloner ready on ")
