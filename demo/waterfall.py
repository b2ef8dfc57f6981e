"""A trace as a picture in the terminal."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

__all__ = ["Bar", "waterfall"]

WIDTH = 36
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


def waterfall(trace_id: str, spans: list[Bar]) -> Table:
    """Every span of the trace: its service, its place below its parent, its time and how long it took."""
    table = Table(title=f"trace {trace_id}", title_justify="left", expand=False, box=None, padding=(0, 1))
    table.add_column("service")
    table.add_column("span", no_wrap=True)
    table.add_column("time", no_wrap=True)
    table.add_column("ms", justify="right")
    if not spans:
        return table
    zero = min(span.began for span in spans)
    scale = WIDTH / max(1, max(span.ended for span in spans) - zero)
    for depth, span in _ordered(spans):
        start = int((span.began - zero) * scale)
        length = max(1, round((span.ended - span.began) * scale))
        colour = "red" if span.failed else COLOURS.get(span.service, "white")
        table.add_row(
            Text(span.service, style=colour),
            "  " * depth + span.name + (" ✗" if span.failed else ""),
            Text(" " * min(start, WIDTH - 1) + "━" * min(length, WIDTH - min(start, WIDTH - 1)), style=colour),
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
