"""Ports for processes that must be told one before they start."""

import os
import socket
from collections import deque

# Of those that no connection, and no other server, is given unasked. Each worker of pytest chooses from its own:
# what one has chosen is free until the process that is told it listens.
FIRST, SHARES, SHARE = 20_000, 24, 500

_chosen: deque[int] = deque(maxlen=SHARE // 2)


def free_port() -> int:
    """A port that nobody listens on, and that was not one of the last that this process chose."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    for _ in range(SHARE):
        port = FIRST + worker * SHARE + int.from_bytes(os.urandom(2)) % SHARE
        if port in _chosen:
            continue
        try:
            with socket.create_server(("127.0.0.1", port)):
                _chosen.append(port)
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")
