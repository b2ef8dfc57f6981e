"""`python -m benchmarks`, or `just bench`: this system beside a monolith that does the same, in one run.

Both take the same deliveries over the loopback, in turns, and ask the same stand-in for ElevenLabs, which
answers at once. Who sends and who stands in share the machine's cores with them, and take the same from both.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import psutil
from rich.console import Console

from benchmarks import comparison, costs, report
from benchmarks.client import RequestFailed
from benchmarks.deliveries import SIZES
from benchmarks.endurance import endurance
from benchmarks.growth import growth
from benchmarks.report import Row
from benchmarks.system import Subject, peer, provider, system, traced
from benchmarks.turns import Length
from demo.ending import end_in_order
from demo.processes import ProcessFailed

SHORT = Length(3, 0.7)
LONG = Length(5, 4.0)
TINY = Length(1, 1.0, most=2, aftermath=0.02, warm=2)
# Where a few requests tell no peak: in a second, on any machine.
TINY_PEAK = 20.0

IDLE_SECONDS = {SHORT: 8.0, LONG: 60.0, TINY: 0.5}


def main(given: Sequence[str] | None = None) -> int:
    """The exit status: 0 once everything was measured, whether or not the targets are met."""
    arguments = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = arguments.add_mutually_exclusive_group()
    how.add_argument("--long", action="store_true", help="longer rounds; growth; ten minutes under load")
    how.add_argument("--tiny", action="store_true", help="a few requests of each kind: no measurement")
    chosen = arguments.parse_args(given)
    length = LONG if chosen.long else TINY if chosen.tiny else SHORT
    try:
        _run(length, Console(stderr=True))
    except (ProcessFailed, RequestFailed) as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    return 0


def _run(length: Length, console: Console) -> None:
    tiny = length is TINY
    watch = Watch()
    with ExitStack() as stack:
        status = stack.enter_context(console.status("starting"))
        elevenlabs = stack.enter_context(provider())
        theirs, ours = stack.enter_context(peer(elevenlabs)), stack.enter_context(system(elevenlabs))
        comparison.warm(length, theirs, ours)
        status.update("idle")
        # Before thousands of agents are in a call: that is not idle.
        idle = costs.idle(ours, IDLE_SECONDS[length])
        status.update("new callers")
        new, standard = comparison.new_rows(theirs, ours, length)
        status.update("known callers")
        rows = [*new, *comparison.known_rows(ours, standard, length)]
        print(_titled("Not traced", report.rows(rows)), flush=True)
        status.update("everything traced")
        on = [
            stack.enter_context(peer(elevenlabs, **traced(elevenlabs))),
            stack.enter_context(system(elevenlabs, **traced(elevenlabs))),
        ]
        traced_rows, figures = _traced(ours, on[0], on[1], length)
        print(_titled("Everything traced, by both", report.rows(traced_rows)), flush=True)
        status.update("floor")
        large = next(row for row in new if "10 MB JSON" in row.name).ours
        figures += costs.floor_figures(large, 1 if tiny else 7)
        figures.append(idle)
        status.update("memory")
        figures += costs.held(elevenlabs, 2 if tiny else None)
        if length is not SHORT:
            status.update("under load")
            peak = TINY_PEAK if tiny else rows[0].ours.rate
            figures += endurance(ours, peak, 2 if tiny else 600)
    if length is LONG:
        with console.status("growth"), provider() as elevenlabs:
            figures += growth(elevenlabs, length, 1_000_000)
    print(_titled("Figures", report.figures(figures)), flush=True)
    print(watch.told())


def _traced(
    off: Subject, peer_on: Subject, on: Subject, length: Length
) -> tuple[list[Row], list[report.Figure]]:
    comparison.warm(length, peer_on, on)
    rows, _ = comparison.new_rows(peer_on, on, length, ("200 KB",) if length is SHORT else tuple(SIZES))
    comparison.make_known(on)
    more, figures = costs.telemetry(off, on, length)
    return [*rows, *more], figures


class Watch:
    """Tells how much of the machine others took, which says how far the figures can be trusted."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()

    def told(self) -> str:
        """For how long was measured, and what others did meanwhile. Call it when all processes have ended."""
        took = time.monotonic() - self._began
        ours = sum(os.times()[:4])
        others = max(0.0, _busy_seconds() - self._busy - ours) / (took * (os.cpu_count() or 1))
        return f"Took {took:.0f} s on {os.cpu_count()} cores, of whose time others took {others:.0%}."


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _titled(title: str, table: str) -> str:
    return f"\n## {title}\n\n{table}\n"


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
