"""What becomes of a standard output or error that cannot be written: a full disk, or a pipe without a reader.

Python would fail again, at its end, to write what is left, and end with a status of its own. The exit status
stays that of the program here.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

__all__ = ["complain", "drop_errors", "drop_output", "parsing", "report_done"]


def complain(text: str) -> None:
    """Writes a line to standard error, if that can be written."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"{text}\n")
    drop_errors()


def report_done(text: str, program: str) -> None:
    """Writes to standard output what was done. An output that cannot be written is no failure."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as failure:
        drop_output()
        complain(f"{program}: standard output: {failure.strerror}")


@contextmanager
def parsing() -> Iterator[None]:
    """Ends the program with status 2 for a wrong call that argparse finds in this block.

    It does so also if standard error cannot be written.
    """
    try:
        yield
    except OSError:
        # argparse ignores that from Python 3.11.4 on (python/cpython#101640); then this can go.
        sys.exit(2)
    finally:
        drop_errors()


def drop_errors() -> None:
    """Discards what standard error did not take."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            _drop(sys.stderr)


def drop_output() -> None:
    """Discards what standard output did not take. Standard error holds what the program says."""
    if sys.stdout is not None:
        _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
