"""A process that is forked for a test, of a server that has imported everything (`tests.kit.forkserver`).

This imports as little as it can, since programs that stand for Python do nothing else.
"""

import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["Child", "fork_from", "server_address"]

NUMBER = struct.Struct("i")

_address: list[str] = []


def fork_from(address: str) -> None:
    """Has this process fork from the server at that address, instead of one of its own."""
    _address[:] = [address]


def server_address() -> str:
    """Where this process forks from. It starts a server of its own, unless it was told of one."""
    if not _address:
        from tests.kit.forkserver import started

        fork_from(started())
    return _address[0]


class Child:
    """A process that runs a function. It is killed when this process ends, or closes this, before it has ended."""

    def __init__(
        self, function: Callable[..., None], *arguments: object, files: Sequence[int | None]
    ) -> None:
        """Its standard streams are the first three of these files, with None for nothing.

        The function is given the others behind its arguments.
        """
        server = server_address()
        self._returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            self._connection.connect(server)
            socket.send_fds(self._connection, [b" "], [nothing if file is None else file for file in files])
            self._connection.sendall(pickle.dumps((function, arguments)))
            self.pid = self._told()
        except BaseException:
            self._connection.close()
            raise
        finally:
            os.close(nothing)

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._connection.fileno()

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the number of the signal that ended it, below zero; None while it runs."""
        if self._returncode is None:
            with suppress(BlockingIOError):
                self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                self.wait()
        return self._returncode

    def wait(self) -> None:
        """Returns once it has ended."""
        if self._returncode is None:
            self._returncode = self._told()

    def exit_with_it(self) -> None:
        """Ends this process once it has ended, with the status that a shell tells of it."""
        self.wait()
        sys.exit(self._returncode if self._returncode >= 0 else 128 - self._returncode)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL. Returns once it has ended."""
        self.send(signal.SIGKILL)
        self.wait()

    def _told(self) -> int:
        told = self._connection.recv(NUMBER.size, socket.MSG_WAITALL)
        assert NUMBER.size == len(told), "what tests fork from is gone"
        return NUMBER.unpack(told)[0]

    def close(self) -> None:
        """Kills it unless it has ended."""
        try:
            self.kill()
        finally:
            self._connection.close()
