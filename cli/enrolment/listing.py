"""Reads the CSV that says who speaks in which recording. The text of a fault repeats nothing of a caller."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from callerid import e164, identify_person

__all__ = ["FileInvalid", "Row", "read_callers"]

COLUMNS = ("file", "phone_number", "name", "date_of_birth", "consent")
REQUIRED = ("file", "phone_number")
# The first line by which Excel is told, and tells, what stands between the columns.
SEPARATOR = re.compile(r'"?sep=([;,\t])"?\s*', re.IGNORECASE)
NO_NUMBER = "phone_number is not a phone number: write it with its country, as +31612345678"


class FileInvalid(Exception):
    """A file that cannot be used as it is; nothing was sent. The text says which line and what to change."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A caller: one line of the CSV."""

    line: int
    file: str = ""
    phone_number: str = ""
    name: str = ""
    date_of_birth: str = ""
    consent: str = ""
    fault: str = ""
    """Why the line is not sent. The text repeats nothing of the line."""


def read_callers(path: Path, region: str | None = None) -> list[Row]:
    """The callers of a CSV, those of faulty lines included. Raises FileInvalid.

    `region` is the country in which national forms of numbers are read.
    """
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise FileInvalid(f"{path} cannot be read ({failure.strerror})") from None
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise FileInvalid(f"{path}, line {line}: save the file as CSV in UTF-8, which this is not") from None

    records = _records(path, text)
    first, header = next(records, (1, []))
    header = [column.casefold() for column in header]
    _check_header(f"{path}, line {first}", header)
    rows: list[Row] = []
    lines: dict[tuple[str, str, str], int] = {}
    for line, cells in records:
        if len(cells) != len(header):
            # It is not known which cell is which, so no cell can be taken for the name of a file.
            counted = f"the line has {len(cells)} columns and the header {len(header)}"
            rows.append(Row(line=line, fault=f"{counted}: quote texts that hold a delimiter"))
            continue
        row = Row(line=line, **dict(zip(header, cells, strict=True)))
        number = e164(row.phone_number, region)
        earlier = lines.setdefault(identify_person(number, row.name, row.date_of_birth), line)
        rows.append(
            msgspec.structs.replace(
                row, phone_number=number or row.phone_number, fault=_fault(row, number, region, earlier)
            )
        )
    if not rows:
        raise FileInvalid(f"{path}: there is no caller below the header line")
    return rows


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not empty, with the number of the line that it begins on."""
    head = next(iter(text.lstrip().splitlines()), "")
    told = SEPARATOR.fullmatch(head)
    delimiter = told[1] if told else next((each for each in ";,\t" if each in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if any(cells) and told is None:
                yield line, cells
            elif any(cells):
                told = None  # this was the line that tells the delimiter
            line = reader.line_num + 1
    except csv.Error:
        raise FileInvalid(f"{path}, line {line}: a quotation mark is not closed, or not doubled") from None


def _check_header(where: str, header: list[str]) -> None:
    # If the file has no header, this line holds a caller: only known column names are repeated.
    for number, column in enumerate(header, 1):
        if column not in COLUMNS:
            names = f"must be named one of {', '.join(COLUMNS)}, or go"
            raise FileInvalid(f"{where}: column {number} {names}; between columns stands , or ; or a tab")
        if column in header[: number - 1]:
            raise FileInvalid(f"{where}: column {number} is {column} once more; one of them must go")
    for column in REQUIRED:
        if column not in header:
            raise FileInvalid(f"{where}: a column {column} is missing; this line names the columns")


def _fault(row: Row, number: str | None, region: str | None, earlier: int) -> str:
    if not row.file:
        return "file is empty"
    if not row.file.isprintable():
        return "file may hold printable characters only"
    if not row.phone_number:
        return "phone_number is empty"
    if number is None:
        return NO_NUMBER if region else f"{NO_NUMBER}, or set DEFAULT_REGION"
    if earlier != row.line:
        return f"the caller is the same as on line {earlier}"
    return ""
