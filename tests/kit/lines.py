"""The lines that `docs/LOGS.md` lists."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

LOGS = Path(__file__).parents[2] / "docs" / "LOGS.md"
ROW = re.compile(r"\| (`.+?`) \| ([A-Z, ]+) \| (gateway|cloner|both) \| (?:(.*?) )?\| .+ \|")
WORD = re.compile(r"`([^`]+)`")
KEY_ROW = re.compile(r"\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| .+ \|")


class Line(NamedTuple):
    """What is said of an event: its levels, the process that writes it, and the keys that are its own."""

    levels: frozenset[str]
    by: str
    keys: frozenset[str]


@cache
def table() -> dict[str, Line]:
    """Every event of the table."""
    rows: dict[str, Line] = {}
    above = Line(frozenset(), "", frozenset())
    for row in LOGS.read_text().splitlines():
        if (found := ROW.fullmatch(row)) is None:
            continue
        events, levels, by, keys = found.groups()
        own = above.keys if keys == "as above" else frozenset(WORD.findall(keys or ""))
        above = Line(frozenset(level.strip().lower() for level in levels.split(",")), by, own)
        for event in WORD.findall(events):
            assert event not in rows
            rows[event] = above
    return rows


EVERYWHERE = frozenset(
    key
    for row in LOGS.read_text().partition("## Every event")[0].splitlines()
    if (found := KEY_ROW.fullmatch(row))
    for key in WORD.findall(found[1])
)
"""What any line may say."""
