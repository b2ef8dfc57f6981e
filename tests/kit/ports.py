"""Ports for processes that must be told one before they start."""

import os
import socket


def free_port() -> int:
    """A port that nobody listens on, of those that no connection, and no other server, is given unasked."""
    for _ in range(100):
        port = 20_000 + int.from_bytes(os.urandom(2)) % 12_000
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")
