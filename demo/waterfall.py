"""A trace as a picture in the terminal."""

from dataclasses import dataclass

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

__all__ = ["Bar", "waterfall"]

NARROWEST, WIDEST = 8, 48
COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("service", "left"), ("span", "left"), ("time", "left"), ("ms", "right"),
)  # fmt: skip
COLOURS = {"gateway": "cyan", "cloner": "green"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One span. Times are nanoseconds since 1970."""

    span_id: str
    parent_id: str
    service: str
    name: str
    began: int
    ended: int
    failed: bool


def waterfall(trace_id: str, spans: list[Bar], *, width: int) -> Table:
    """Every span of the trace: its service, its place below its parent, its time and how long it took.

    `width` is that of the terminal, in columns.
    """
    table = Table(title=f"trace {trace_id}", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    for column, justify in COLUMNS:
        table.add_column(column, justify=justify, no_wrap=column != "span")
    rows = [
        (span, "  " * depth + span.name + (" ✗" if span.failed else "")) for depth, span in _ordered(spans)
    ]
    if not rows:
        return table
    taken = (
        max(len(name) for _, name in rows) + max(len(span.service) for span, _ in rows) + len("12345.6") + 6
    )
    bars = min(WIDEST, max(NARROWEST, width - taken))
    zero = min(span.began for span in spans)
    scale = bars / max(1, max(span.ended for span in spans) - zero)
    for span, name in rows:
        start = min(int((span.began - zero) * scale), bars - 1)
        length = min(max(1, round((span.ended - span.began) * scale)), bars - start)
        colour = "red" if span.failed else COLOURS.get(span.service, "white")
        table.add_row(
            Text(span.service, style=colour),
            name,
            Text(" " * start + "━" * length, style=colour),
            f"{(span.ended - span.began) / 1e6:.1f}",
        )
    return table


def _ordered(spans: list[Bar]) -> list[tuple[int, Bar]]:
    """Parents before their children, earlier before later, with the depth of each."""
    ids = {span.span_id for span in spans}
    children: dict[str, list[Bar]] = {}
    for span in sorted(spans, key=lambda span: span.began):
        children.setdefault(span.parent_id if span.parent_id in ids else "", []).append(span)

    def below(parent: str, depth: int) -> list[tuple[int, Bar]]:
        rows: list[tuple[int, Bar]] = []
        for span in children.get(parent, []):
            rows += [(depth, span), *below(span.span_id, depth + 1)]
        return rows

    return below("", 0)
