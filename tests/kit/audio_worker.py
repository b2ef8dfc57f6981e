"""Runs in the place of Python for an audio worker, and has one forked that has imported everything.

Importing what decodes samples takes five times as long. That a worker starts by itself is tested where workers are.
"""

import os
import shlex
import sys

# Without `pathlib`, which takes as long as all the rest.
sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))  # noqa: PTH100

from tests.kit.child import Child, fork_from, server_address

__all__ = ["python", "stand_in"]

MODULE = "cloner.audio.inspection"


def python() -> str:
    """The path of the program that stands in for Python, where a process is forked."""
    return f"{os.path.dirname(server_address())}/python"  # noqa: PTH120


def stand_in() -> None:
    """Makes that program."""
    with open(python(), "w") as program:  # noqa: PTH123
        # Without `site`, too.
        program.write(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", __file__, server_address()])} "$@"\n'
        )
        os.fchmod(program.fileno(), 0o700)


def main(address: str, *arguments: str) -> None:
    """Becomes the worker, as far as whoever started this can tell."""
    assert MODULE in arguments, f"this stands in for {MODULE} alone"
    descriptor, *limits = arguments[arguments.index(MODULE) + 1 :]
    fork_from(address)
    child = Child(run, limits, files=[0, 1, 2, int(descriptor)])
    os.close(int(descriptor))
    child.exit_with_it()


def run(limits: list[str], descriptor: int) -> None:
    """Runs in the fork: the worker itself."""
    from cloner.audio import inspection

    inspection.main(str(descriptor), *limits)


if __name__ == "__main__":
    # Under its own name, which is what the fork is told.
    from tests.kit import audio_worker

    audio_worker.main(*sys.argv[1:])
