"""Starts the project's processes and stops them again."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Queue

__all__ = ["ProcessFailed", "running", "stop"]

READY_SECONDS = 60
STOP_SECONDS = 40


class ProcessFailed(Exception):
    """A process did not get ready. The text is what it wrote."""


@contextmanager
def running(module: str, settings: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `python -m module` with these settings alone; yields it and the address that it serves on.

    The process is stopped when the block ends, if it has not been before, and when this process dies. Call it
    from the main thread: to Linux, a thread that ends is a parent that dies.
    """
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own modules
        [sys.executable, "-m", "demo.leash", str(os.getpid()), module],
        env={**inherited, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C goes to the whole terminal; here only the demo takes it, and stops the others in order.
        start_new_session=True,
    )
    lines: Queue[str | None] = Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    try:
        yield process, _ready(module, lines)
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Ends the process as an operator would, and waits until it has sent its last spans."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(output: Iterable[str], lines: "Queue[str | None]") -> None:
    for line in output:
        lines.put(line)
    lines.put(None)


def _ready(module: str, lines: "Queue[str | None]") -> str:
    written: list[str] = []
    while True:
        try:
            line = lines.get(timeout=READY_SECONDS)
        except Empty:
            line = None
        if line is None:
            raise ProcessFailed(f"{module} did not get ready:\n{''.join(written)}")
        written.append(line)
        if match := re.search(rf"^{module} ready on (\S+)", line):
            return match[1]
