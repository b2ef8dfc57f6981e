"""The recipes of the justfile, when somebody stops them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent


def environ(uv: str, folder: Path) -> dict[str, str]:
    """What a recipe sees: its temporary files go into this folder."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**ours, "UV": uv, "UV_NO_SYNC": "1", "TMPDIR": str(folder)}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_soak(number: signal.Signals, uv: str, tmp_path: Path) -> None:
    """Stopped in the middle, `just soak` leaves no Postgres, no cloner and no folder behind."""
    process = subprocess.Popen(
        ["just", "soak", "1"], cwd=ROOT, env=environ(uv, tmp_path), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with process:
        while not (found := list(tmp_path.glob("precall-postgres-*/data/postmaster.pid"))):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        started.append(psutil.Process(int(found[0].read_text().split()[0])))

        # A terminal that goes away tells everybody in it; a service manager tells the one that it started.
        (os.killpg if number == signal.SIGHUP else os.kill)(process.pid, number)
        process.communicate()

    assert ([], []) == (psutil.wait_procs(started, timeout=30)[1], left(tmp_path))


def left(folder: Path) -> list[str]:
    """What is there beside pytest's own folder, which it keeps three of, and a lock of uv's."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(("pytest-of-", "uv-"))]


def test_generated(uv: str, tmp_path: Path) -> None:
    """The check of what is generated finds no difference, and leaves no folder."""
    subprocess.run(["just", "check-generated"], cwd=ROOT, env=environ(uv, tmp_path), check=True)

    assert [] == left(tmp_path)
