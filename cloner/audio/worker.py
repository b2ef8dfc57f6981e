"""A worker process as its parent sees it: started, asked, listened to and stopped."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from cloner.audio.reply import Reply

__all__ = ["Worker"]

LONGEST_REPLY = 4_096
# How long a worker that has closed its socket may take to end, so that its exit status says why it did.
ENDING_SECONDS = 1.0
# How long a sample stays in its file after the inspection, if no next one is written there.
KEPT_SECONDS = 1.0

# A worker parses what strangers send, so of the environment, which holds our secrets, it gets only what
# Python needs.
INHERITED = frozenset({"PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL"})


class Worker:
    """A process and our end of the socket to it. `line` is done when the process has answered or ended.

    `gone` says why it must be replaced, as the log does; it is empty as long as it need not.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._said = b""
        self.gone = ""
        self._ended = False
        self.line: asyncio.Future[bytes] = self._loop.create_future()
        self._sample = SampleFile()
        self._forgetting: asyncio.TimerHandle | None = None
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
                self._sample.close()
                raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, sample: bytes) -> None:
        """Hands over a sample, in a file: 10 MB take 1 ms, as a pickle they would take 28.

        This sends one byte to a worker that waits for it, so it never blocks. Raises OSError if there is no
        room for the sample. If the worker has just died, `heard` reports it.
        """
        self._keep()
        self._sample.hold(sample)
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._socket, [b"?"], [self._sample.descriptor])

    def heard(self) -> Reply | None:
        """The worker's answer; None if it ended or sent nonsense. Then `line` is about the next answer."""
        line = self.line.result()
        self.line = self._loop.create_future()
        if self.gone:
            self.line.set_result(b"")
        self._keep()
        self._forgetting = self._loop.call_later(KEPT_SECONDS, self._sample.forget)
        return _reply(line)

    @property
    def was_killed(self) -> bool:
        """Whether something else killed it with SIGKILL. To be asked after `stop`."""
        return self._ended and self._process.returncode == -signal.SIGKILL

    async def stop(self) -> int:
        """Ends the process unless it has ended, and returns its exit status. May be repeated."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self.gone = self.gone or "stopped"
        self._keep()
        self._sample.close()
        if not self._ended:
            self._process.kill()
        # Giving back a gigabyte takes the kernel a moment, in which a wait would hold up the loop.
        return await asyncio.to_thread(self._wait)

    def _wait(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(ENDING_SECONDS)
        self._process.kill()
        return self._process.wait()

    def _keep(self) -> None:
        """Keeps what the last sample was written into, until `heard` is called."""
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

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
            self._ended = not said
            self.gone = "ended" if self._ended else "nonsense"
            self._said = b"\n"
        line, newline, rest = self._said.partition(b"\n")
        if newline and not self.line.done():
            self._said = rest
            self.line.set_result(line)


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    # One thread: numpy reserves 40 MB of addresses for each it might need.
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}


class SampleFile:
    """A nameless file, written anew with each sample that is handed over.

    It keeps its memory pages for the next sample: to make and to free the pages of 10 MB costs three times as
    much as to write into them. `forget` gives them back.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("sample"), "r+b", buffering=0)
        self.descriptor = self._file.fileno()

    def hold(self, sample: bytes) -> None:
        """Holds this sample and nothing else. Raises OSError, and holds nothing then."""
        try:
            written = 0
            while written < len(sample):
                written += os.pwrite(self.descriptor, memoryview(sample)[written:], written)
            os.ftruncate(self.descriptor, len(sample))
        except OSError:
            self.forget()
            raise

    def forget(self) -> None:
        """Holds nothing, and takes no memory."""
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Ends it, sample and all. May be repeated."""
        self._file.close()


def _reply(line: bytes) -> Reply | None:
    """Parses a worker's answer; None if it ended or sent nonsense."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError:
        return None
