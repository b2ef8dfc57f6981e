"""Starts the project's processes and stops them again."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, Queue

__all__ = ["ProcessFailed", "running", "started", "stop"]

READY_SECONDS = 60
STOP_SECONDS = 40


class ProcessFailed(Exception):
    """A process did not get ready. The text is what it wrote."""


@contextmanager
def running(module: str, settings: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `python -m module` with these settings alone; yields it and the address that it serves on.

    The process is stopped when the block ends, unless it was before, and when this process dies. Call it from
    the main thread: for Linux, a thread that ends is a parent that dies.
    """
    ready = rf"^{re.escape(module)} ready on (\S+)"
    with started(module, [sys.executable, "-m", module], settings, ready=ready) as (process, found):
        yield process, found[1]


@contextmanager
def started(
    name: str, command: Sequence[str], settings: Mapping[str, str], *, ready: str, times: int = 1
) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """As `running`, for any program: it is ready when `times` of its lines match `ready`."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    lines: Queue[str | None] = Queue()
    reader = threading.Thread(target=lambda: _read(process.stdout or (), lines), daemon=True)
    with subprocess.Popen(  # noqa: S603 - the callers' own programs
        [sys.executable, "-m", "demo.leash", str(os.getpid()), *command],
        env={**inherited, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C goes to the whole terminal; here only the demo takes it, and stops the others in order.
        start_new_session=True,
    ) as process:
        try:
            reader.start()
            yield process, _ready(name, lines, ready, times)
        finally:
            stop(process)
            if reader.ident is not None:  # else Ctrl-C came before it was started
                reader.join(STOP_SECONDS)


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
    with suppress(ValueError):  # closed meanwhile, by whoever pressed Ctrl-C again
        for line in output:
            lines.put(line)
    lines.put(None)


def _ready(name: str, lines: "Queue[str | None]", ready: str, times: int) -> re.Match[str]:
    written: list[str] = []
    while True:
        try:
            line = lines.get(timeout=READY_SECONDS)
        except Empty:
            line = None
        if line is None:
            raise ProcessFailed(f"{name} did not get ready:\n{''.join(written)}")
        written.append(line)
        if match := re.search(ready, line):
            times -= 1
            if not times:
                return match
