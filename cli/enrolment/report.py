"""The report of an enrolment, a CSV: the outcome of each line, from which a later run continues."""

import contextlib
import csv
import fcntl
import io
import os
from pathlib import Path
from typing import Literal, Self

import msgspec

from cli.enrolment.listing import FileInvalid

__all__ = ["Entry", "Report"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the report: the outcome of a line of the CSV. The fields are the columns."""

    line: int
    file: str
    digest: str
    """A digest of the recording and the caller: it changes if either changes."""

    outcome: Literal["enrolled", "known", "refused"]
    voice_id: str = ""
    reason: str = ""
    message: str = ""


class Report:
    """The report, open for this run alone, with the entries of earlier runs.

    Entering it raises FileInvalid. Once `add` has returned, the entry is on the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[tuple[int, str, str], Entry] = {}
        self._size = 0

    def __enter__(self) -> Self:
        try:
            number = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file = open(number, "r+b", buffering=0)  # noqa: PTH123 - closed by __exit__
        except OSError as failure:
            raise FileInvalid(f"{self._path} cannot be written ({failure.strerror})") from None
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def done(self, line: int, file: str, digest: str) -> Entry | None:
        """What an earlier run wrote for the same line and recording, unless that was refused."""
        return self._done.get((line, file, digest))

    def add(self, entry: Entry) -> None:
        """Appends an entry. Raises OSError, and then leaves the report as it was."""
        self._write(msgspec.structs.astuple(entry))

    def _take_up(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = self._file.readall()
            whole = content[: content.rfind(b"\n") + 1]
            header, *records = csv.reader(io.StringIO(whole.decode(), newline="")) if whole else [[]]
            if content and header != [*Entry.__struct_fields__] and (whole or not HEADER.startswith(content)):
                raise FileInvalid(f"{self._path} is no report of this command; name another with --report")
            for record in records:
                self._take(record)
            self._size = len(whole)
            # A line that a kill has cut off was never finished.
            self._file.truncate(self._size)
            if not whole:
                self._write(Entry.__struct_fields__)
        except BlockingIOError:
            raise FileInvalid(f"{self._path} is being written by another run") from None
        except OSError as failure:
            raise FileInvalid(f"{self._path} cannot be written ({failure.strerror})") from None
        except (UnicodeDecodeError, csv.Error, msgspec.ValidationError):
            raise FileInvalid(f"{self._path} is damaged; name another with --report") from None

    def _take(self, record: list[str]) -> None:
        if len(record) != len(Entry.__struct_fields__):
            raise msgspec.ValidationError
        told = dict(zip(Entry.__struct_fields__, record, strict=True))
        entry = msgspec.convert(told, Entry, strict=False)
        if entry.outcome != "refused":
            self._done[entry.line, entry.file, entry.digest] = entry

    def _write(self, cells: tuple[object, ...]) -> None:
        content = _line(cells)
        try:
            # A write may write only a part; the next write then raises the reason.
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(content)


def _line(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


HEADER = _line(Entry.__struct_fields__)
