"""Runs in the place of Python for a process of ours, and has one forked that has imported everything.

For programs that start ours by `python -m`, as documents do. That such a process imports what it needs is tested
where processes are.
"""

import os
import shlex
import signal
import stat
import sys

# Without `pathlib`, which takes as long to import as all the rest.
sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))  # noqa: PTH100 - see above

from tests.kit.child import Child, fork_from, server_address

__all__ = ["programs", "stand_in"]

# What is forked, unless its variables are read while it is imported; any other call of Python is Python's.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m cloner"|"-m gateway"|"-m emulator"|"-m cli"|"-m cloner.backup"|"-m cloner.health") shift; exec {ours} "$@" ;;
esac
exec {python} "$@"
"""
COMMANDS = {"precall": "cli", "precall-registry": "cloner.backup"}
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def programs() -> str:
    """The folder of the programs that stand for Python and for the commands of ours, where a process is forked."""
    return f"{os.path.dirname(server_address())}/programs"  # noqa: PTH120 - see above


def stand_in() -> None:
    """Makes these programs."""
    # Without `site`, too.
    ours = shlex.join([sys.executable, "-S", __file__, server_address()])
    made = {
        "python": PYTHON.format(ours=ours, python=shlex.quote(sys.executable)),
        **{name: f'#!/bin/sh\nexec {ours} {module} "$@"\n' for name, module in COMMANDS.items()},
    }
    os.mkdir(programs())  # noqa: PTH102 - see above
    for name, text in made.items():
        with open(f"{programs()}/{name}", "w") as program:  # noqa: PTH123 - see above
            program.write(text)
            os.fchmod(program.fileno(), stat.S_IRWXU)


def main(address: str, module: str, *arguments: str) -> None:
    """Becomes the process, as far as whoever started this can tell."""
    fork_from(address)
    child = Child(run, module, arguments, dict(os.environ), os.getcwd(), files=[0, 1, 2])  # noqa: PTH109 - see above

    def pass_on(number: int, _: object) -> None:
        child.send(signal.Signals(number))

    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    child.exit_with_it()


def run(module: str, arguments: tuple[str, ...], environ: dict[str, str], folder: str) -> None:
    """Runs in the fork: the process itself."""
    from pathlib import Path

    from tests.kit import forked

    forked.become(module, arguments, environ, Path(folder))


if __name__ == "__main__":
    # Under its own name, which is what the fork is told.
    from tests.kit import stand_in as named

    named.main(*sys.argv[1:])
