"""What becomes of a standard output that cannot be written: a full disk, or a pipe that nobody reads."""

import os
import sys
from pathlib import Path

__all__ = ["drop_output"]


def drop_output() -> None:
    """Sends what is left of the output nowhere, because Python would fail again to write it at its end.

    The exit status is then that of the program, and standard error holds what the program says.
    """
    if sys.stdout is not None:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
