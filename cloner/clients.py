"""Who may call: named clients, each with the hashes of its tokens, its rights and its bound.

The TOML of CLONER_CLIENTS:

    [clients.crm]
    token_sha256 = ["<64 hex digits>"]   # several while one takes the place of another
    may = ["calls", "voices", "read", "erase"]
    max_requests = 8                     # at once; if it is left out, the client has no limit of its own

A token of CLONER_TOKEN is that of the client "default", which may do everything.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Literal

import msgspec

from environment import Secret

__all__ = ["ANYBODY", "Client", "Clients", "Right", "calling", "clients_of"]

Right = Literal["calls", "voices", "read", "erase"]
EVERYTHING: frozenset[Right] = frozenset(("calls", "voices", "read", "erase"))

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
# Where in the text a TOML parser stopped; the rest of its message can hold a part of the text.
PLACE = re.compile(r"at line [0-9]+, column [0-9]+|at end of document")
DEFAULT = "default"


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client that may call."""

    name: str
    may: frozenset[Right] = EVERYTHING
    max_requests: int | None = None
    """How many of its requests are handled at once; None if it has no limit of its own."""


ANYBODY = Client(name="anybody")
"""The client of every call where no client has to identify itself."""

calling: ContextVar[Client] = ContextVar("calling", default=ANYBODY)
"""The client whose call is being answered."""


class Clients:
    """All clients that may call, by the hashes of their tokens."""

    def __init__(self, entries: Sequence[tuple[bytes, Client]]) -> None:
        self._entries = tuple(entries)

    def known_by(self, token: bytes) -> Client | None:
        """The client of a token. The token is compared with all of them, so that the time tells nothing."""
        digest = hashlib.sha256(token).digest()
        found = None
        for known, client in self._entries:
            if hmac.compare_digest(known, digest):
                found = client
        return found


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[clients.NAME]`. A list may be empty, as when a token has to go at once."""

    token_sha256: tuple[str, ...]
    may: tuple[Right, ...]
    max_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


def clients_of(text: str | None, tokens: Sequence[Secret] = ()) -> Clients:
    """The clients that the TOML names, and the one of CLONER_TOKEN where that has `tokens`.

    Raises ValueError, which names everything that is wrong and repeats nothing that is written there.
    """
    faults: list[str] = []
    entries = [(hashlib.sha256(token.reveal().encode()).digest(), Client(name=DEFAULT)) for token in tokens]
    for name, table in _tables(text, faults).items():
        entries += [
            (
                bytes.fromhex(digest),
                Client(name=name, may=frozenset(table.may), max_requests=table.max_requests),
            )
            for digest in table.token_sha256
        ]
    faults += _shared(entries)
    if faults:
        raise ValueError(*faults)
    return Clients(entries)


def _tables(text: str | None, faults: list[str]) -> dict[str, _Table]:
    if text is None:
        return {}
    try:
        whole = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as fault:
        found = PLACE.search(str(fault))
        faults.append(f"CLONER_CLIENTS is not TOML{f' ({found[0]})' if found else ''}")
        return {}
    except RecursionError:
        faults.append("CLONER_CLIENTS is nested too deeply")
        return {}
    named = whole.get("clients")
    if set(whole) != {"clients"} or not isinstance(named, dict):
        faults.append("CLONER_CLIENTS must hold tables [clients.NAME], and nothing else")
        return {}
    tables: dict[str, _Table] = {}
    for number, (name, table) in enumerate(named.items(), 1):
        if not NAME.fullmatch(name):
            expected = 'letters, digits, "_" and "-", at most 64'
            faults.append(f"CLONER_CLIENTS: the name of client {number} must be {expected}")
        elif name == DEFAULT:
            faults.append(f"CLONER_CLIENTS: the name {name} is that of CLONER_TOKEN")
        else:
            _take(name, table, tables, faults)
    return tables


def _take(name: str, table: Any, tables: dict[str, _Table], faults: list[str]) -> None:
    try:
        taken = msgspec.convert(table, _Table)
    except msgspec.ValidationError as fault:
        faults.append(f"CLONER_CLIENTS: {name}: {_in_words(fault)}")
        return
    empty = hashlib.sha256().hexdigest()
    if not all(DIGEST.fullmatch(digest) for digest in taken.token_sha256):
        faults.append(f"CLONER_CLIENTS: {name}: token_sha256 must hold SHA-256 hashes, 64 hex digits each")
    elif empty in {digest.lower() for digest in taken.token_sha256}:
        faults.append(f"CLONER_CLIENTS: {name}: token_sha256 holds the hash of an empty token")
    else:
        tables[name] = taken


def _shared(entries: Sequence[tuple[bytes, Client]]) -> Iterator[str]:
    """Reports tokens that two clients share: by such a token the two could not be told apart."""
    clients: dict[bytes, str] = {}
    for digest, client in entries:
        first = clients.setdefault(digest, client.name)
        if first != client.name:
            yield f"CLONER_CLIENTS: {first} and {client.name} have the same token"


def _in_words(fault: msgspec.ValidationError) -> str:
    """What msgspec says, without the value that it repeats for an unknown right."""
    told, _, place = str(fault).partition(" - at `$")
    told = "a right must be one of: calls, voices, read, erase" if "enum value" in told else told
    where = place.partition("`")[0].lstrip(".").partition("[")[0]
    return f"{where}: {told.replace('`', '')}" if where else told.replace("`", "")
