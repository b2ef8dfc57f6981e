"""A process that keeps something for tests as long as they run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["kept", "outlast"]


@contextmanager
def kept(module: str, **environ: str) -> Iterator[str]:
    """Runs `python -m module` with these variables as well, and yields the first line that it writes.

    Its standard input ends when this block ends, and also when this process ends in any other way.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-m", module], cwd=Path(__file__).parents[2], env={**os.environ, **environ}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with keeper:
        line = keeper.stdout.readline().strip()
        assert line, f"{module} did not start"
        yield line
        keeper.stdin.close()


def outlast() -> None:
    """Has this process end when its standard input does, and not by what is sent to all that the tests started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
