"""A worker process as its parent sees it: started, asked, listened to and stopped."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cloner.audio.finding import Reply

__all__ = ["Worker", "file_of"]

LONGEST_REPLY = 4_096

# A worker parses what strangers send, so of the environment, which holds our secrets, it gets only what
# Python needs.
INHERITED = frozenset({"PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL"})


class Worker:
    """A process and our end of the socket to it. `line` is done when the process has answered or ended."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._said = b""
        self.gone = False
        self.line: asyncio.Future[bytes] = self._loop.create_future()
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                # Not asyncio's or uvloop's: this one runs none of gRPC's fork handlers. In the loop's own
                # thread: the worker dies with the thread that started it.
                self._process = subprocess.Popen(  # noqa: S603 - all of it is ours
                    [sys.executable, "-P", "-m", "cloner.audio.inspection", str(theirs.fileno()), *arguments],
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError:
                self._socket.close()
                raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, descriptor: int) -> None:
        """Hands over a sample. This sends one byte to a worker that waits for it, so it never blocks."""
        socket.send_fds(self._socket, [b"?"], [descriptor])

    def heard(self) -> Reply | None:
        """The worker's answer; None if it ended or sent nonsense. Then `line` is about the next answer."""
        line = self.line.result()
        self.line = self._loop.create_future()
        if self.gone:
            self.line.set_result(b"")
        return _reply(line)

    async def stop(self) -> int:
        """Kills the process unless it is dead, and returns its exit status. May be repeated."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self.gone = True
        self._process.kill()
        # Giving back a gigabyte takes the kernel a moment, in which a wait would hold up the loop.
        return await asyncio.to_thread(self._process.wait)

    def _readable(self) -> None:
        try:
            said = self._socket.recv(LONGEST_REPLY)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self._said += said
        if not said or len(self._said) > LONGEST_REPLY:
            self._loop.remove_reader(self._socket)
            self.gone = True
            self._said = b"\n"
        line, newline, rest = self._said.partition(b"\n")
        if newline and not self.line.done():
            self._said = rest
            self.line.set_result(line)


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    # One thread: numpy reserves 40 MB of addresses for each it might need.
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}


@contextlib.contextmanager
def file_of(sample: bytes) -> Iterator[int]:
    """A nameless file with the sample in it. Written for 10 MB in 2 ms; as a pickle it would take 28."""
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            descriptor = os.memfd_create("sample")
            stack.callback(os.close, descriptor)
        else:
            descriptor = stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        written = 0
        while written < len(sample):
            written += os.pwrite(descriptor, memoryview(sample)[written:], written)
        yield descriptor


def _reply(line: bytes) -> Reply | None:
    """Parses a worker's answer; None if it ended or sent nonsense."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError:
        return None
