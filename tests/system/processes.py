"""Processes of ours that tell everything they can, for tests that read all of it."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Self

from tests.kit.stand_in import programs

__all__ = ["Process"]


class Process:
    """One of ours with everything it can say switched on: debug logs and spans on its standard output."""

    def __init__(
        self, module: str, folder: Path, form: str, settings: dict[str, str], *, imports: bool = False
    ) -> None:
        # It is forked from a process that has imported its modules, unless a test wants `imports`.
        self._python = sys.executable if imports else f"{programs()}/python"
        self.module = module
        self.folder = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "LOG_LEVEL": "DEBUG",
            "LOG_FORMAT": form,
            "OTEL_TRACES_EXPORTER": "console",
            **settings,
        }
        self.written = b""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            self._python, "-m", self.module, cwd=self.folder,
            env=self.environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        while b" ready on " not in (line := await self._process.stdout.readline()):
            assert line, self.written.decode()
            self.written += line
        self.address = json.loads(line)["address"] if line.startswith(b"{") else line.decode().split()[-1]
        self._reading = asyncio.create_task(self._process.stdout.read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        self.written += await self._reading
        assert 0 == await self._process.wait()

    def command(self) -> str:
        """What a process list shows."""
        return Path(f"/proc/{self._process.pid}/cmdline").read_text()
