"""The key of the hashes by which callers are told apart."""

import contextlib
import hashlib
import hmac
import secrets
from pathlib import Path

from cloner.database_url import is_sqlite, sqlite_file
from cloner.private_file import publishing
from cloner.registry import Store, deployment
from environment import Key
from environment.secret import file_text

__all__ = [
    "KeyDiffers",
    "KeyUnavailable",
    "check_of",
    "file_beside",
    "found_beside",
    "kept_beside",
    "missing",
    "put",
    "settled",
]

CHECKED = b"Which key the hashes of this registry are made with."


class KeyUnavailable(Exception):
    """The file of the key can be neither read nor made."""


class KeyDiffers(Exception):
    """The hashes of the registry are made with another key."""


async def settled(store: Store, database_url: str, told: Key | None) -> bytes:
    """The key of the registry's hashes: the `told` one, or the one that is kept beside its SQLite file.

    The registry knows it from its first start on, and has no other as long as it lives: with another key it
    would recognise nobody, and erase nothing. Raises KeyDiffers, KeyUnavailable and RegistryUnavailable.
    """
    path = None if told is not None else file_beside(database_url)
    if told is not None:
        key: bytes | None = told.reveal().encode()
    elif await store.read(deployment.is_keyed):
        key = found_beside(database_url)
    else:
        key = kept_beside(database_url)
    if key is None:
        raise KeyUnavailable(missing(database_url))
    if not await store.write(deployment.settle_key, check_of(key)):
        raise KeyDiffers(
            f"{path or 'CALLER_HASH_KEY'} is not the key by which the registry knows its callers: set"
            " CALLER_HASH_KEY to that one, or DATABASE_URL to an empty database"
            + _unsetting(path, database_url)
        )
    return key


def missing(database_url: str) -> str:
    """What an operator should read where the file of the key is gone."""
    return (
        f"{file_beside(database_url)} is missing, by which the registry knows its callers: put it back, or"
        " set CALLER_HASH_KEY to what it held"
    )


def file_beside(database_url: str) -> Path:
    """Where the key of a SQLite file is kept."""
    return Path(f"{sqlite_file(database_url)}.key")


def kept_beside(database_url: str) -> bytes:
    """The key that is kept beside a SQLite file, made the first time for its owner alone to read.

    Raises KeyUnavailable.
    """
    path = file_beside(database_url)
    if not path.exists():
        # Other processes may start at the same time: all of them use the key that is written first.
        with contextlib.suppress(FileExistsError):
            put(path, secrets.token_hex(32).encode(), replace=False)
    if (key := found_beside(database_url)) is None:
        raise KeyUnavailable(f"{path} can be neither read nor made (it vanished)")
    return key


def found_beside(database_url: str) -> bytes | None:
    """The key that is kept beside a SQLite file; None where there is none. Raises KeyUnavailable."""
    path = file_beside(database_url)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise KeyUnavailable(f"{path} can be neither read nor made ({failure.strerror})") from failure
    try:
        # Read as CALLER_HASH_KEY_FILE would be, which may name this file when the database moves.
        return Key.read(file_text(content)).reveal().encode()
    except ValueError as fault:
        raise KeyUnavailable(f"{path} holds no key: it {_reason(fault)}") from fault


def put(path: Path, key: bytes, *, replace: bool) -> None:
    """Writes a key to a file, whole or not at all. Raises FileExistsError or KeyUnavailable."""
    try:
        with publishing(path, replace=replace) as file:
            file.write(key)
    except FileExistsError:
        raise
    except OSError as failure:
        raise KeyUnavailable(f"{path} can be neither read nor made ({failure.strerror})") from failure


def check_of(key: bytes) -> str:
    """A text by which a key is recognised, and from which nothing else can be learnt of it."""
    return hmac.new(key, CHECKED, hashlib.sha256).hexdigest()[:32]


def _unsetting(used: Path | None, database_url: str) -> str:
    """What else helps if CALLER_HASH_KEY was used where a SQLite file has a key beside it."""
    if used is not None or not is_sqlite(database_url) or not file_beside(database_url).exists():
        return ""
    return f"; or unset CALLER_HASH_KEY: {file_beside(database_url).name} is there"


def _reason(fault: ValueError) -> str:
    return "must be UTF-8" if isinstance(fault, UnicodeDecodeError) else str(fault)
