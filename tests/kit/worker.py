"""Runs in the place of Python for a worker of pytest-xdist, and has one forked that has imported everything.

Importing what all tests need takes a worker a second.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.kit.child import Child, fork_from

__all__ = ["interpreter"]

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interpreter(address: str) -> str:
    """What pytest-xdist takes for Python, to fork from the server at that address."""
    # Without `site`, which takes as long as all the rest.
    return shlex.join([sys.executable, "-S", __file__, address])


def main(address: str, *_: str) -> None:
    """Becomes the worker, as far as whoever started this can tell."""
    program = sys.argv[-1]  # python -u -c PROGRAM
    fork_from(address)
    child = Child(run, program, str(Path.cwd()), files=[0, 1, 2])

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send(signal.Signals(number))

    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    child.exit_with_it()


def run(program: str, folder: str) -> None:
    """Runs in the fork: the worker itself."""
    os.chdir(folder)
    sys.argv = ["-c"]
    exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    # Under its own name, which is what the fork is told.
    from tests.kit import worker

    worker.main(*sys.argv[1:])
