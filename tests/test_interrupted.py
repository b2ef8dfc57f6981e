"""The recipes of the justfile, when somebody stops them."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
# To ask for all processes and their sockets takes 20 ms of processor time.
LOOK_SECONDS = 0.3


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files that everybody may enter, as /tmp is: root runs Postgres as nobody."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def environ(uv: str, folder: Path) -> dict[str, str]:
    """What a recipe sees: its temporary files go into this folder."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**ours, "UV": uv, "UV_NO_SYNC": "1", "TMPDIR": str(folder)}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_soak(number: signal.Signals, uv: str, folder: Path) -> None:
    """Stopped in the middle, `just soak` leaves no Postgres, no cloner and no folder behind."""
    process = subprocess.Popen(
        ["just", "soak", "1", "1"], cwd=ROOT, env=environ(uv, folder), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        started: list[psutil.Process] = []
        # A worker, where the provider is, and a cloner; and a Postgres.
        while serving(started) < 2 or not list(folder.glob("precall-postgres-*/url")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(LOOK_SECONDS)
            started = psutil.Process(process.pid).children(recursive=True)
        (pid,) = folder.glob("precall-postgres-*/data/postmaster.pid")
        started.append(psutil.Process(int(pid.read_text().split()[0])))
    finally:
        # A terminal that goes away tells everybody in it; a service manager tells the one that it started.
        (os.killpg if number == signal.SIGHUP else os.kill)(process.pid, number)
        process.communicate()

    assert ([], []) == (psutil.wait_procs(started, timeout=30)[1], left(folder))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("recipe", "number"),
    [
        ("bench", signal.SIGINT),
        ("strangers", signal.SIGTERM),
        ("crowds", signal.SIGINT),
        ("floods", signal.SIGTERM),
    ],
)
def test_measurements(recipe: str, number: signal.Signals, uv: str, folder: Path) -> None:
    """Stopped in the middle, a recipe that measures leaves no process, no folder and no complaint behind."""
    process = subprocess.Popen(
        ["just", recipe], cwd=ROOT, env=environ(uv, folder), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        while not any("cloner" in command for command in commands(started)):
            assert process.poll() is None, process.stdout.read()
            time.sleep(LOOK_SECONDS)
            started = psutil.Process(process.pid).children(recursive=True)
    finally:
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        printed, _ = process.communicate()

    assert not re.search("Traceback|[Ee]rror", printed)
    assert ([], []) == (psutil.wait_procs(started, timeout=40)[1], left(folder))


def commands(processes: list[psutil.Process]) -> Iterator[str]:
    """What those of them run that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield " ".join(process.cmdline())


def serving(processes: list[psutil.Process]) -> int:
    """How many of them are ours, forked, and listen."""
    found = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += any("forkserver" in part for part in process.cmdline()) and any(
                psutil.CONN_LISTEN == each.status for each in process.net_connections("tcp")
            )
    return found


def left(folder: Path) -> list[str]:
    """What is there beside pytest's own folder, which it keeps three of, and a lock of uv's."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(("pytest-of-", "uv-"))]


def test_generated(uv: str, folder: Path) -> None:
    """The check of what is generated finds no difference, and leaves no folder."""
    subprocess.run(["just", "check-generated"], cwd=ROOT, env=environ(uv, folder), check=True)

    assert [] == left(folder)
