"""Commands of ours that start with their modules imported: importing takes longer than most of what they do.

A process of its own, `python -m tests.kit.warm`, imports them once and forks for each command. Who starts one
starts `command(module)`, a program that does next to nothing: it lends the fork its streams, its folder and its
environment, passes signals on, and ends as the fork ends. Nothing but the importing is spared.
"""

import gc
import io
import marshal
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Warm"]

# What the commands import when they start, or soon after. A module that is run as a program is not imported.
IMPORTED = (
    "alembic.command", "cloner.backup.command", "cloner.enrolment", "cloner.registry.postgres", "precall_client",
)  # fmt: skip
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Run without `site`, which takes longer than all of this.
LENDING = f"""
import marshal, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as wire:
    wire.connect(sys.argv[1])
    lent = marshal.dumps((sys.argv[2:], dict(os.environ), os.getcwd()))
    socket.send_fds(wire, [len(lent).to_bytes(4)], [0, 1, 2])
    wire.sendall(lent)
    pid = int.from_bytes(wire.recv(4))
    for number in {tuple(int(number) for number in PASSED_ON)}:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int.from_bytes(wire.recv(4), signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class Warm:
    """Where commands start warm."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, module: str) -> tuple[str, ...]:
        """What to start instead of `python -m module`; arguments follow."""
        return (sys.executable, "-I", "-S", "-c", LENDING, str(self._path), module)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Warm"]:
        """Such a place, for as long as the block lasts, or this process."""
        with tempfile.TemporaryDirectory(prefix="precall-warm-") as folder:
            path = Path(folder) / "socket"
            keeper = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.warm", str(path)], cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]},
            )  # fmt: skip
            with keeper:
                if not keeper.stdout.readline():
                    raise RuntimeError("nothing was imported")
                yield cls(path)
                keeper.stdin.close()


def keep(path: str) -> str | None:
    """Forks whenever it is asked to, until standard input ends. Returns in each fork: the module to run."""
    under_way: dict[int, socket.socket] = {}
    heard, hearing = socket.socketpair()
    for end in (heard, hearing):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(hearing.fileno(), warn_on_full_buffer=False)
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(path)
        door.listen(64)
        for source in (sys.stdin, door, heard):
            selector.register(source, selectors.EVENT_READ)
        sys.stdout.write("imported\n")
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for pid in under_way:
                        os.kill(pid, signal.SIGKILL)
                    return None
                elif key.fileobj is heard:
                    heard.recv(4096)
                    ended(under_way, selector)
                elif key.fileobj is not door:
                    # Whoever lent its streams is gone.
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                else:
                    wire, _ = door.accept()
                    head, streams, _, _ = socket.recv_fds(wire, 4, 3)
                    lent = wire.recv(int.from_bytes(head), socket.MSG_WAITALL)
                    if (pid := os.fork()) == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for other in (heard, hearing, wire, *under_way.values()):
                            other.close()
                        return borrowed(lent, streams)
                    for stream in streams:
                        os.close(stream)
                    under_way[pid] = wire
                    selector.register(wire, selectors.EVENT_READ, pid)
                    wire.sendall(pid.to_bytes(4))


def ended(under_way: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tells of forks that have ended how they did."""
    for pid in list(under_way):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with under_way.pop(pid) as wire:
                if wire in (key.fileobj for key in selector.get_map().values()):
                    selector.unregister(wire)
                    wire.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))


def borrowed(lent: bytes, streams: list[int]) -> str:
    """Takes what was lent for this process's own, and says what it is to run."""
    (module, *arguments), environ, folder = marshal.loads(lent)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [module, *arguments]
    # As Python opens them when it starts.
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        lines = name == "stderr" or os.isatty(number)
        setattr(sys, name, io.TextIOWrapper(file, encoding="utf-8", line_buffering=lines))
    random.seed()
    return module


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    # Else each fork would go through all of it once more when it ends, which takes longer than the importing.
    gc.collect()
    gc.freeze()
    if (chosen := keep(sys.argv[1])) is not None:
        runpy.run_module(chosen, run_name="__main__", alter_sys=True)
