"""The benchmark in its smallest form: that it runs and measures what it says, never how fast."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.report import times

ROOT = Path(__file__).parents[2]
NEW = [
    "new caller, 200 KB JSON, 8 at once",
    "new caller, 200 KB form, 8 at once",
    "new caller, 1 MB JSON, 8 at once",
    "new caller, 1 MB form, 8 at once",
    "new caller, 10 MB JSON, 4 at once",
    "new caller, 10 MB form, 4 at once",
    "the same, 200 KB JSON, all at one agent",
    "new caller, 200 KB JSON, alone",
]
KNOWN = [
    "known caller, 200 KB JSON, 16 at once",
    "known caller, alone",
    "known caller, 200 KB JSON, 16 at once, all at one agent",
    "known caller, alone, all at one agent",
    "initiation webhook of a known caller, 50 at once",
    "initiation webhook, alone",
]
FIGURES = [
    "p99 of a known caller, 16 at once, traced / not",
    "p99 of a known caller, alone, traced / not",
    "floor of a 10 MB delivery as JSON",
    "CPU of all processes, 10 MB JSON",
    "CPU of an idle cloner, over 0.5 s",
    "monolith: peak memory, 2 x 10 MB held at the provider",
    "Precall: peak memory, 2 x 10 MB held at the provider",
    "70% of the peak for 2 s: resident memory, early / late",
    "70% of the peak for 2 s: descriptors but those of the sender's connections, early / late",
]


def test_nothing_measured() -> None:
    """What took less than a tick of the processor's clock is compared with nothing."""
    assert (1.5, "nan") == (times(3, 2), f"{times(3, 0):.2f}")


def tables(printed: str) -> dict[str, list[list[str]]]:
    """The rows of each table, by its title, without the head."""
    found: dict[str, list[list[str]]] = {}
    for line in printed.splitlines():
        if line.startswith("## "):
            rows = found[line[3:]] = []
        elif line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {title: rows[2:] for title, rows in found.items()}


@pytest.mark.long
@pytest.mark.timeout(500)
def test_tiny(uv: str) -> None:
    """Both sides are measured in every row that both have, and every figure is there."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        ["just", "bench", "--tiny"], cwd=ROOT, env={**ours, "UV": uv, "UV_NO_SYNC": "1"},
        capture_output=True, check=False, text=True,
    )  # fmt: skip

    assert "" == done.stderr
    assert 0 == done.returncode
    found = tables(done.stdout)
    # That one tells the rate, which is measured.
    (told,) = [row for row in found["Figures"] if "new callers at" in row[0]]
    found["Figures"].remove(told)
    assert ("70% of the peak for 2 s", "0 failed") == (told[0].partition(":")[0], told[1].rpartition(", ")[2])
    assert {
        "Not traced": NEW + KNOWN,
        "Everything traced, by both": [
            *NEW,
            "known caller, 16 at once, traced",
            "known caller, alone, traced",
        ],
        "Figures": FIGURES,
    } == {title: [row[0] for row in rows] for title, rows in found.items()}
    rates = [cell for rows in found.values() for row in rows for cell in row if cell.endswith("/s")]
    # One for each side, and none in a row that the monolith has not.
    assert 2 * 2 * len(NEW) + len(KNOWN) + 2 == len(rates)
    assert [] == [rate for rate in rates if float(re.sub("/s$", "", rate)) <= 0]
