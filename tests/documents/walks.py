"""A document as somebody follows it: its blocks, and a folder in which they are run."""

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.kit.golang import CHEAPLY
from tests.kit.ports import free_port
from tests.kit.stand_in import programs

__all__ = ["Block", "Checkout", "blocks", "section"]

ROOT = Path(__file__).parents[2]
# Where a document has the port of a process, a test has one that nobody else uses.
PORTS = ("50051", "8090", "3005")
# `uv run` runs in the environment of the tests, in the folder of the walk; all else is the true uv's.
UV = """#!/bin/sh
[ "$1" = run ] && shift && exec "$@"
exec {uv} "$@"
"""


class Block(NamedTuple):
    """A block of code, and what language it says it is in."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is, which its first line tells."""
        named = re.match(r"(?:#|//) ([\w.]+)\n", self.text)
        return named[1] if named else None


def section(text: str, heading: str) -> str:
    """What stands under a heading, with everything below that."""
    depth = heading.index(" ")
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, heading
    lines, in_block = [], False
    for line in rest.splitlines(keepends=True):
        in_block ^= line.startswith("```")
        if not in_block and re.match(f"#{{1,{depth}}} ", line):
            break
        lines.append(line)
    return "".join(lines)


def blocks(text: str) -> list[Block]:
    """The blocks of code, in order."""
    return [Block(*each) for each in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


class Checkout:
    """A folder that looks like a checkout of the repository; what a walk makes stays in it."""

    def __init__(self, folder: Path, uv: str) -> None:
        self.folder = folder
        self._ports = {port: str(free_port()) for port in PORTS}
        for name in ("client", "examples", "proto", "tests"):
            (folder / name).symlink_to(ROOT / name)
        tools = folder / ".tools"
        tools.mkdir()
        (tools / "uv").write_text(UV.format(uv=shlex.quote(uv)))
        (tools / "uv").chmod(0o755)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "VIRTUAL_ENV"))},
            "PATH": f"{tools}:{programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "EMULATOR_PORT": self._ports["8090"], "CLONER_PORT": self._ports["50051"],
            "CLONER_TARGET": f"localhost:{self._ports['50051']}", "PRECALL_WEBHOOK_PORT": self._ports["3005"],
            "AUDIO_WORKERS": "1", **CHEAPLY,
            # No document says how long ElevenLabs takes.
            "EMULATOR_CREATE_LATENCY_SECONDS": "0.3", "EMULATOR_LATENCY_SECONDS": "0.01",
        }  # fmt: skip

    def printed(self, text: str) -> str:
        """What a document prints, with the ports that these processes have."""
        # All at once: a port of ours may hold one of those, as 30051 does.
        return re.sub("|".join(PORTS), lambda found: self._ports[found[0]], text)

    def write(self, block: Block, folder: str = ".") -> None:
        """Makes the file that the block is."""
        assert block.file is not None
        (self.folder / folder / block.file).write_text(self.printed(block.text))

    async def start(self, text: str, stdin: str = "", folder: str = ".") -> asyncio.subprocess.Process:
        """A shell that does what is printed, and has read what it is given."""
        started = await asyncio.create_subprocess_exec(
            "bash", "-euc", self.printed(text), cwd=self.folder / folder, env=self._environment, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert started.stdin is not None
        started.stdin.write(stdin.encode())
        started.stdin.close()
        return started

    async def run(self, text: str, stdin: str = "", folder: str = ".") -> str:
        """What a shell prints that does what is printed, without a failure."""
        started = await self.start(text, stdin, folder)
        out, err = await started.communicate()
        assert 0 == started.returncode, (text, out.decode(), err.decode())
        return out.decode()

    @asynccontextmanager
    async def serving(self, text: str, *names: str) -> AsyncIterator[None]:
        """Does what is printed until the block ends, which begins once a cloner serves, or the processes named."""
        started = await self.start(text)
        assert started.stdout is not None
        awaited, said = set(names or ("cloner",)), ""
        reading = None
        try:
            while awaited:
                line = (await asyncio.wait_for(started.stdout.readline(), 60)).decode()
                said += line
                assert line, said
                awaited.discard(line.partition(" ready on ")[0])
            reading = asyncio.create_task(started.communicate())
            yield
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            await (reading or started.communicate())
