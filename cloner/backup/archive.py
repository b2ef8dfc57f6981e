"""The file of a back-up: lines of JSON, the same for SQLite and Postgres, whole or refused.

    {"precall_registry_backup": 1, "revision": "0007", "deployment": "1a2b3c4d", "key": ..., ...}
    {"table": "agents", "columns": ["agent_id", ...]}
    ["agent_1", ...]                                    a line for each row
    {"table": "calls", "columns": [...]}
    ...
    {"end": true, "rows": 123, "sha256": "..."}         of every byte above

A file that was cut anywhere lacks its last line, and a file with a flipped bit has another digest.
"""

import hashlib
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from cloner.registry.opening import known_revisions
from cloner.registry.snapshot import Snapshot

__all__ = ["DAMAGED", "BackupInvalid", "Heading", "heading_of", "parts", "write"]

FORM = 1
BEGINS = b'{"precall_registry_backup":'
# A row of ours has a few hundred bytes; a file that is no back-up may be one endless line.
LONGEST_LINE = 16 * 1024 * 1024
CUT = "is not whole: its end is missing"
DAMAGED = "is damaged: it is not what was written"


class BackupInvalid(Exception):
    """The file is no back-up, is not whole, or is of another release. The text says which."""


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a back-up: what it says of itself."""

    precall_registry_backup: int
    made_at: str
    database: str
    revision: str
    deployment: str
    key: str | None
    """The key of the hashes, if it was kept beside the database."""

    key_check: str | None
    """A text by which the key is recognised, if the key was known when the back-up was made."""

    def __repr__(self) -> str:
        return f"Heading(revision={self.revision!r}, deployment={self.deployment!r})"


class _Form(msgspec.Struct, frozen=True, kw_only=True):
    precall_registry_backup: int


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    table: str
    columns: list[str]


class _End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    end: bool
    rows: int
    sha256: str


def write(file: IO[bytes], heading: Heading, snapshot: Snapshot) -> None:
    """Writes a back-up."""
    digest = hashlib.sha256()
    encoder = msgspec.json.Encoder()
    rows = 0

    def put(line: Any) -> None:
        content = encoder.encode(line) + b"\n"
        digest.update(content)
        file.write(content)

    put(heading)
    for table in snapshot.tables:
        put(_Table(table=table.name, columns=list(table.columns)))
        for row in snapshot.rows(table):
            put(row)
            rows += 1
    end = _End(end=True, rows=rows, sha256=digest.hexdigest())
    file.write(encoder.encode(end) + b"\n")


def heading_of(file: IO[bytes]) -> tuple[Heading, bytes]:
    """The heading of a back-up, and its line. Raises BackupInvalid."""
    line = file.readline(LONGEST_LINE)
    if not line.startswith(BEGINS):
        raise BackupInvalid("is not a back-up of a registry")
    if not line.endswith(b"\n"):
        raise BackupInvalid(CUT)
    try:
        form = msgspec.json.decode(line, type=_Form).precall_registry_backup
        if form > FORM:
            raise BackupInvalid(f"was made by a newer release (form {form}, and this one knows {FORM})")
        heading = msgspec.json.decode(line, type=Heading)
    except msgspec.DecodeError:
        # Not as the cause: it holds the key.
        raise BackupInvalid(DAMAGED) from None
    if heading.revision not in (known := known_revisions()):
        raise BackupInvalid(
            f"was made by another release (revision {heading.revision}, and this one knows {known[-1]})"
        )
    return heading, line


def parts(file: IO[bytes], first: bytes) -> Iterator[tuple[str, list[str], Iterator[list[Any]]]]:
    """The tables of a back-up: name, columns and rows. Each must be read to its end before the next.

    Raises BackupInvalid at the latest when the last part is asked for.
    """
    reading = _Reading(file, first)
    while (table := reading.table()) is not None:
        yield table.table, table.columns, reading.rows()


class _Reading:
    """Reads line by line, and checks that each line may follow the one before."""

    def __init__(self, file: IO[bytes], first: bytes) -> None:
        self._file = file
        self._digest = hashlib.sha256(first)
        self._rows = 0
        self._ahead: bytes | None = None
        self._row = msgspec.json.Decoder(type=list[str | float | int | bool | None])

    def table(self) -> _Table | None:
        """The table that begins here; None at the end of a complete file."""
        line = self._ahead or self._line()
        self._ahead = None
        try:
            if not line.startswith(b'{"end"'):
                self._digest.update(line)
                return msgspec.json.decode(line, type=_Table)
            end = msgspec.json.decode(line, type=_End)
        except msgspec.DecodeError:
            raise self._fault(line) from None
        if (end.rows, end.sha256) != (self._rows, self._digest.hexdigest()) or self._file.read(1):
            raise BackupInvalid(DAMAGED)
        return None

    def rows(self) -> Iterator[list[Any]]:
        """The rows up to the next table, or the end."""
        while (line := self._line()).startswith(b"["):
            try:
                row: list[Any] = self._row.decode(line)
            except msgspec.DecodeError:
                raise self._fault(line) from None
            self._digest.update(line)
            self._rows += 1
            yield row
        self._ahead = line

    def _line(self) -> bytes:
        line = self._file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self._fault(line)
        return line

    def _fault(self, line: bytes) -> BackupInvalid:
        if line.endswith(b"\n") or len(line) == LONGEST_LINE:
            return BackupInvalid(DAMAGED)
        return BackupInvalid(CUT)
