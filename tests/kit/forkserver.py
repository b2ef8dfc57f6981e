"""A process that has imported everything, from which tests fork others: that takes a tenth of a start.

One serves all workers of pytest: `multiprocessing` has one for each, and importing takes each a second.
"""

import atexit
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from tests.kit import audio_worker, stand_in
from tests.kit.child import NUMBER, fork_from
from tests.kit.keeper import kept, outlast

__all__ = ["running", "started"]

MOST_FILES = 8


def running() -> AbstractContextManager[str]:
    """Starts a server, and yields its address while it still imports. Who asks it then has to wait for it.

    It ends when this block ends, and also when this process ends in any other way.
    """
    # Threads of its own would take processor time, and none lives on in a fork.
    return kept("tests.kit.forkserver", OPENBLAS_NUM_THREADS="1")


def started() -> str:
    """Starts a server that ends with this process, and returns its address."""
    server = ExitStack()
    atexit.register(server.close)
    return server.enter_context(running())


class Server:
    """Forks whatever is asked for, and tells each who asked how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._children: dict[int, socket.socket] = {}
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        self._poll = select.poll()
        for readable in (self._listener, self._woken, sys.stdin):
            self._poll.register(readable, select.POLLIN)

    def serve(self) -> None:
        """Serves until standard input ends; then kills what still runs."""
        while True:
            ready = {number for number, _ in self._poll.poll()}
            if sys.stdin.fileno() in ready:
                break
            for pid, connection in list(self._children.items()):
                if connection.fileno() in ready:
                    # Who asked for it is gone.
                    self._poll.unregister(connection)
                    os.kill(pid, signal.SIGKILL)
            if self._woken.fileno() in ready:
                self._woken.recv(512)
                self._tell_ends()
            if self._listener.fileno() in ready:
                self._fork()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _tell_ends(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._children.pop(pid) as connection:
                with suppress(KeyError):
                    self._poll.unregister(connection)
                with suppress(OSError):
                    connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        pid = os.fork()
        if not pid:
            for each in (self._listener, self._woken, self._wakes, *self._children.values()):
                each.close()
            _become(connection)
        self._children[pid] = connection
        # Of no event but the one that is always told: the other end is closed.
        self._poll.register(connection, 0)
        with suppress(OSError):
            connection.sendall(NUMBER.pack(pid))


def _become(connection: socket.socket) -> NoReturn:
    """Runs the function that is asked for in this process, and ends it."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        with connection, connection.makefile("rb") as asked:
            _, files, _, _ = socket.recv_fds(connection, 1, MOST_FILES)
            function, arguments = pickle.load(asked)
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, "w" if number else "r", buffering=1, closefd=False) for number in range(3)
        )
        try:
            function(*arguments, *files[3:])
            status = 0
        finally:
            # As at the end of a program: waits for threads that are no daemons, and does what was put off to this.
            threading._shutdown()
            atexit._run_exitfuncs()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the end of any program tells it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def main() -> None:
    """Listens, says where, imports what is forked, and forks it."""
    outlast()
    # So that it wakes the poll.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Not a TemporaryDirectory, which a fork would remove when it ends.
    folder = Path(tempfile.mkdtemp(prefix="precall-forks-"))
    try:
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(f"{folder}/socket")
            here.listen(128)
            # What is forked may fork others from here.
            fork_from(f"{folder}/socket")
            audio_worker.stand_in()
            stand_in.stand_in()
            sys.stdout.write(f"{folder}/socket\n")
            sys.stdout.flush()
            server = Server(here)
            import tests.kit.preloaded  # noqa: F401 - for what it imports

            server.serve()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
