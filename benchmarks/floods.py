"""`python -m benchmarks.floods`: what more work than can be done costs, and how it is answered.

waves     120 deliveries of 9.9 MB at once, three times: the memory of each process
callers   1,000 new callers, 400 at once: how each of them was answered
bodies    bodies that nobody signed, as fast as they can be sent, beside honest deliveries
"""

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.attacker import attacker
from benchmarks.deliveries import speech
from benchmarks.emulated import System
from benchmarks.sending import Answer, deliver, deliver_all
from benchmarks.strangers import ROUTES, forged_head
from demo.ending import end_in_order
from demo.processes import ProcessFailed

LARGE = int(9.9 * 1_048_576)
SMALL = 200 * 1024
SETTLE_SECONDS = 10.0
MEBIBYTE = 1_048_576
KINDS = ("waves", "callers", "bodies")
ALL = "all"


class Watch:
    """The most memory that each process holds from now on, looked at 20 times a second."""

    def __init__(self, system: System) -> None:
        self._processes = system.processes
        self.peaks: dict[str, float] = dict.fromkeys(self._processes, 0.0)

    def look(self) -> dict[str, float]:
        """What each process holds now, in MB."""
        now = {name: held(process) for name, process in self._processes.items()}
        for name, megabytes in now.items():
            self.peaks[name] = max(self.peaks[name], megabytes)
        return now

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks for as long as the block lasts."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.05):
                self.look()

        self.peaks = dict.fromkeys(self._processes, 0.0)
        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def held(process: psutil.Process) -> float:
    """The MB that a process holds."""
    return float(process.memory_info().rss) / MEBIBYTE


def waves(console: Console, *, count: int, at_once: int) -> None:
    """Prints peak and settled memory of each process, for each wave."""
    sample = speech(LARGE)
    table = Table(title=f"waves of {at_once} forms of 9.9 MB at once", title_justify="left")
    for column in (
        "wave",
        "answers",
        "seconds",
        "gateway",
        "settled",
        "cloner",
        "settled",
        "worker",
        "settled",
    ):
        table.add_column(column, justify="right")
    with System() as system:
        watch = Watch(system)
        for wave in range(count):
            began = time.monotonic()
            with watch.watching():
                answers = asyncio.run(
                    deliver_all(
                        system.url, sample, range(wave * at_once, (wave + 1) * at_once), at_once=at_once
                    )
                )
                took = time.monotonic() - began
            peaks = watch.peaks
            time.sleep(SETTLE_SECONDS)
            settled = watch.look()
            memory = [f"{each[name]:.0f} MB" for name in peaks for each in (peaks, settled)]
            table.add_row(str(wave + 1), counted(answers), f"{took:.1f}", *memory)
    console.print(table)


def callers(console: Console, *, callers: int, at_once: int, latency: float) -> None:
    """Prints how new callers were answered who all call at once."""
    sample = speech(SMALL)
    with System(create_latency=latency) as system:
        watch = Watch(system)
        with watch.watching():
            answers = asyncio.run(deliver_all(system.url, sample, range(callers), at_once=at_once))
    title = f"{callers} new callers, {at_once} at once, a clone takes ElevenLabs {latency:g} s"
    console.print(outcome_table(title, answers))
    console.print(", ".join(f"{name} {most:.0f} MB" for name, most in watch.peaks.items()))


def bodies(console: Console, *, deliveries: int, connections: int) -> None:
    """Prints how honest deliveries were answered beside bodies that nobody signed."""
    sample = speech(SMALL)
    with System() as system:
        watch = Watch(system)
        with watch.watching():
            answers = asyncio.run(_beside_bodies(system.url, sample, deliveries, connections))
    title = f"honest deliveries beside {3 * connections} unsigned bodies at full rate"
    console.print(outcome_table(title, answers))
    console.print(", ".join(f"{name} {most:.0f} MB" for name, most in watch.peaks.items()))


async def _beside_bodies(url: str, sample: bytes, deliveries: int, connections: int) -> list[Answer]:
    answers = []
    async with attacker("benchmarks.floods", "--attack", url, "--connections", str(connections)):
        for number in range(deliveries):
            answers.append(await deliver(url, sample, number))
            await asyncio.sleep(0.5)
    return answers


async def unsigned_bodies(url: str, connections: int) -> None:
    """Bodies with a made-up signature on every route, one after the other, as fast as they are taken."""
    place = urlsplit(url)

    async def send(route: str) -> None:
        size = 262_144 if route.endswith("init") else 8 * MEBIBYTE
        piece = bytes(65_536)
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(place.hostname, place.port)
                writer.write(forged_head(route, f"Content-Length: {size}"))
                for _ in range(size // len(piece)):
                    writer.write(piece)
                    await writer.drain()
                writer.close()

    await asyncio.gather(*(send(route) for route in ROUTES for _ in range(connections)))


def counted(answers: list[Answer]) -> str:
    """How often each status and reason came."""
    return ", ".join(f"{len(each)} {name}" for name, each in _grouped(answers).items())


def outcome_table(title: str, answers: list[Answer]) -> Table:
    """Status and reason, how often, and how long that took."""
    table = Table(title=title, title_justify="left")
    for column in ("answer", "count", "p50", "p99", "slowest", "with Retry-After"):
        table.add_column(column, justify="left" if column == "answer" else "right")
    for name, each in _grouped(answers).items():
        times = sorted(answer.seconds for answer in each)
        quantiles = (times[len(times) // 2], times[len(times) * 99 // 100], times[-1])
        told = sum(answer.retry_after for answer in each)
        table.add_row(name, str(len(each)), *(f"{seconds:.2f} s" for seconds in quantiles), str(told))
    return table


def _grouped(answers: list[Answer]) -> dict[str, list[Answer]]:
    groups = defaultdict(list)
    for answer in answers:
        groups[f"{answer.status} {answer.reason}"].append(answer)
    return dict(sorted(groups.items()))


def main() -> int:
    """The exit status: 0."""
    arguments = argparse.ArgumentParser(
        prog="benchmarks.floods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "kinds", nargs="*", choices=(*KINDS, ALL), default=ALL, help="which (default: all)"
    )
    arguments.add_argument("--attack", metavar="URL", help="send unsigned bodies there, and nothing else")
    arguments.add_argument(
        "--connections", type=int, default=64, help="of the unsigned bodies, for each route"
    )
    arguments.add_argument("--deliveries", type=int, default=20, help="beside them (default 20)")
    chosen = arguments.parse_args()
    if chosen.attack:
        asyncio.run(unsigned_bodies(chosen.attack, chosen.connections))
        return 0
    kinds, console = KINDS if ALL in chosen.kinds else chosen.kinds, Console(width=150)
    if "waves" in kinds:
        waves(console, count=3, at_once=120)
    if "callers" in kinds:
        for latency in (0.0, 2.0):
            callers(console, callers=1000, at_once=400, latency=latency)
    if "bodies" in kinds:
        bodies(console, deliveries=chosen.deliveries, connections=chosen.connections)
    return 0


if __name__ == "__main__":
    end_in_order()
    try:
        sys.exit(main())
    except ProcessFailed as failure:
        sys.exit(f"benchmarks.floods: {failure}")
