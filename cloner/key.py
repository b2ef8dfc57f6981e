"""The key of the hashes by which callers are told apart."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from cloner.address import sqlite_file
from environment import Key
from environment.secret import file_text

__all__ = ["KeyUnavailable", "kept_beside"]


class KeyUnavailable(Exception):
    """The file of the key can be neither read nor made."""


def kept_beside(database_url: str) -> bytes:
    """The key that is kept beside a SQLite file, made the first time for its owner alone to read.

    Raises KeyUnavailable.
    """
    path = Path(f"{sqlite_file(database_url)}.key")
    try:
        if not path.exists():
            # Written whole before it has its name: others may start now, and this process may be killed.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as fresh:
                fresh.write(secrets.token_hex(32).encode())
                fresh.flush()
                os.fsync(fresh.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(fresh.name, path)
        content = path.read_bytes()
    except OSError as failure:
        raise KeyUnavailable(f"{path} can be neither read nor made ({failure.strerror})") from failure
    try:
        # As CALLER_HASH_KEY_FILE would be read: the file may be named there when the database moves.
        return Key.read(file_text(content)).reveal().encode()
    except ValueError as fault:
        raise KeyUnavailable(f"{path} holds no key: it {_reason(fault)}") from fault


def _reason(fault: ValueError) -> str:
    return "must be UTF-8" if isinstance(fault, UnicodeDecodeError) else str(fault)
