"""The standard streams of a process that was started without some of them."""

import os

__all__ = ["open_missing_streams"]


def open_missing_streams() -> None:
    """Opens /dev/null in place of each standard stream that is closed.

    Some init scripts start a process so. The next file or socket would take that place, and libuv, which
    closes no standard stream, ends a process whose loop has such a socket.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            # The lowest number that is free is taken, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
