"""Whether memory and descriptors stay flat under a load that lasts: new callers, at a steady rate."""

import asyncio
import contextlib
from typing import NamedTuple

import uvloop

from benchmarks.client import Answered, Connection, send_evenly
from benchmarks.comparison import NEW
from benchmarks.deliveries import SIZES, deliveries, speech
from benchmarks.report import Figure, at_most
from benchmarks.system import Subject

__all__ = ["SHARE", "endurance"]

# Of the most that it does.
SHARE = 0.7
# What else comes may hold it up for a while; more than these wait for none.
CONNECTIONS = 200
SAMPLES = 60


class Sample(NamedTuple):
    """What all processes hold at one moment.

    The sender's connections are left out: after each pause of the machine it keeps more of them.
    """

    resident_mb: float
    descriptors: int


def endurance(ours: Subject, peak: float, seconds: float) -> list[Figure]:
    """Memory and descriptors in the second tenth of the time and in the last."""
    answered, failures, samples = uvloop.run(_watched(ours, peak * SHARE, seconds))
    tenth = len(samples) // 10 or 1
    early, late = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    memory = [_mean([sample.resident_mb for sample in those]) for those in (early, late)]
    open_files = [_mean([sample.descriptors for sample in those]) for those in (early, late)]
    what = f"{SHARE:.0%} of the peak for {seconds:g} s"
    return [
        Figure(
            f"{what}: {len(answered.times)} new callers at {answered.rate:.0f}/s",
            f"p50 {answered.quantile(0.5):.1f}, p99 {answered.quantile(0.99):.1f} ms, {len(failures)} failed",
        ),
        Figure(
            f"{what}: resident memory, early / late",
            f"{memory[0]:.0f} / {memory[1]:.0f} MB",
            at_most(memory[1] / memory[0], 1.1, "x "),
        ),
        Figure(
            f"{what}: descriptors but those of the sender's connections, early / late",
            f"{open_files[0]:.0f} / {open_files[1]:.0f}",
            at_most(open_files[1] / open_files[0], 1.1, "x "),
        ),
    ]


async def _watched(ours: Subject, rate: float, seconds: float) -> tuple[Answered, list[str], list[Sample]]:
    samples: list[Sample] = []
    made: list[Connection] = []

    async def watch() -> None:
        while True:
            theirs = sum(not connection.closed for connection in made)
            samples.append(Sample(ours.resident_mb(), ours.descriptors() - theirs))
            await asyncio.sleep(seconds / SAMPLES)

    watching = asyncio.create_task(watch())
    try:
        answered, failures = await send_evenly(
            ours.url, deliveries(speech(SIZES["200 KB"]), "JSON"),
            rate=rate, at_most=CONNECTIONS, seconds=seconds, expected=NEW, made=made,
        )  # fmt: skip
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return answered, failures, samples


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)
