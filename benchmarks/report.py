"""What was measured as tables in Markdown, each row with what it is held against."""

import math
from collections.abc import Iterable

import msgspec

from benchmarks.turns import Measured

__all__ = ["Figure", "Row", "at_least", "at_most", "figures", "rows", "times"]


COLUMNS = (
    "", "monolith: rate", "p50 / p99 ms", "CPU-ms", "peak MB",
    "Precall: rate", "p50 / p99 ms", "CPU-ms: gateway + cloner + audio", "peak MB", "against the target",
)  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    """One kind of load, and what each side made of it. Without a peer, it is one that the peer has not."""

    name: str
    peer: Measured | None
    ours: Measured
    verdict: str = ""
    """The figure that counts and what it is held against."""


class Figure(msgspec.Struct, frozen=True):
    """One figure by itself."""

    name: str
    value: str
    verdict: str = ""


def at_least(value: float, wanted: float, what: str = "", unit: str = "") -> str:
    """A figure that is to be as large as this, or larger."""
    return _held(f"{what}{_short(value)}{unit}", f">= {wanted:g}{unit}", met=value >= wanted)


def at_most(value: float, wanted: float, what: str = "", unit: str = "") -> str:
    """A figure that is to be as small as this, or smaller."""
    return _held(f"{what}{_short(value)}{unit}", f"<= {wanted:g}{unit}", met=value <= wanted)


def times(value: float, other: float) -> float:
    """How many times the other it is; no number where the other is nothing, as CPU time below a tick is."""
    return value / other if other else math.nan


def rows(measured: Iterable[Row]) -> str:
    """One table."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in measured:
        peer = ("", "", "", "") if row.peer is None else _cells(row.peer)
        lines.append(f"| {' | '.join((row.name, *peer, *_cells(row.ours), row.verdict))} |")
    return "\n".join(lines)


def figures(measured: Iterable[Figure]) -> str:
    """One table."""
    lines = ["| | measured | against the target |", "| --- | --- | --- |"]
    lines += [f"| {figure.name} | {figure.value} | {figure.verdict} |" for figure in measured]
    return "\n".join(lines)


def _cells(of: Measured) -> tuple[str, str, str, str]:
    parts = list(of.cpu_ms.values())
    cpu = _short(of.cpu)
    if len(parts) > 1:
        cpu += f": {' + '.join(map(_short, parts))}"
    answered = of.answered
    return (
        f"{_short(of.rate)}/s",
        f"{_short(answered.quantile(0.5))} / {_short(answered.quantile(0.99))}",
        cpu,
        f"{of.memory:.0f}",
    )


def _held(value: str, wanted: str, *, met: bool) -> str:
    return f"{value} ({wanted}: {'met' if met else 'NOT MET'})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
