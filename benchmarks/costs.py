"""The figures that stand by themselves: what tracing costs, memory while the provider works, idleness."""

import asyncio
import time
from contextlib import ExitStack
from itertools import islice

import msgspec
import uvloop

from benchmarks.client import ask, send
from benchmarks.comparison import NEW, VOICE, known_callers
from benchmarks.deliveries import SIZES, deliveries, speech
from benchmarks.floor import floor
from benchmarks.report import Figure, Row, at_most
from benchmarks.system import Subject, Usage, peer, system
from benchmarks.turns import FASTEST, Length, Measured, measured

__all__ = ["floor_figures", "held", "idle", "telemetry"]

HELD = 20
LARGE = "10 MB"
SETTLE_SECONDS = 2.0


def floor_figures(ours: Measured, tries: int) -> list[Figure]:
    """CPU of all processes for a delivery of 10 MB as JSON, against what cannot be done without."""
    steps = floor(speech(SIZES[LARGE]), tries)
    whole, silent = sum(steps.values()), sum(steps.values()) - steps["audio"]
    told = ", ".join(f"{name} {spent:.1f}" for name, spent in steps.items())
    return [
        Figure("floor of a 10 MB delivery as JSON", f"{whole:.1f} CPU-ms: {told}"),
        Figure(
            "CPU of all processes, 10 MB JSON",
            f"{ours.cpu:.0f} ms, x {ours.cpu / silent:.2f} of the floor without audio",
            at_most(ours.cpu / whole, 3, "x "),
        ),
    ]


def telemetry(off: Subject, on: Subject, length: Length) -> tuple[list[Row], list[Figure]]:
    """What it costs to trace everything: of a known caller, without and with it."""
    rows, told = [], []
    for at_once, how in ((16, "16 at once"), (1, "alone")):
        without, traced = measured(
            [known_callers(off), known_callers(on)], length, at_once=at_once, fastest=FASTEST[SIZES["200 KB"]]
        )
        rows.append(Row(f"known caller, {how}, traced", None, traced))
        most, least = traced.answered.quantile(0.99), without.answered.quantile(0.99)
        told.append(
            Figure(
                f"p99 of a known caller, {how}, traced / not",
                f"{most:.1f} / {least:.1f} ms",
                at_most(most / least, 2, "x "),
            )
        )
    return rows, told


def held(elevenlabs: str, count: int | None = None) -> list[Figure]:
    """The most memory while so many deliveries of 10 MB wait for the provider, as JSON."""
    count = HELD if count is None else count
    told = []
    for name in ("monolith", "Precall"):
        with ExitStack() as stack:
            subject = stack.enter_context(
                peer(elevenlabs) if name == "monolith"
                else system(elevenlabs, PROVIDER_CONCURRENCY=str(count + 1), PRECALL_BUDGET_MS="60000")
            )  # fmt: skip
            used, most = uvloop.run(_hold(subject, elevenlabs, count))
        bytes_mb = count * SIZES[LARGE] / 1_048_576
        parts = " + ".join(f"{part} {peak:.0f}" for part, peak in used.peak_mb.items())
        told.append(
            Figure(
                f"{name}: peak memory, {count} x 10 MB held at the provider",
                f"{most:.0f} MB at one moment; each by itself, shared pages and all: {parts}",
                "" if name == "monolith" else at_most(most, 1.5 * bytes_mb + 150, "", " MB"),
            )
        )
    return told


async def _hold(subject: Subject, elevenlabs: str, count: int) -> tuple[Usage, float]:
    """What was used, and the most memory that all processes held together."""
    requests = list(islice(deliveries(speech(SIZES[LARGE]), "JSON"), count))
    await ask(elevenlabs, "/hold")
    subject.begin()
    expected = NEW if subject.name == "Precall" else VOICE
    most = 0.0
    sending = asyncio.create_task(send(subject.url, requests, at_once=count, seconds=60, expected=expected))
    try:
        async with asyncio.timeout(50):
            while msgspec.json.decode(await ask(elevenlabs, "/held", "GET"))["held"] < count:
                most = max(most, subject.proportional_mb())
                if sending.done():
                    break
                await asyncio.sleep(0.03)
        most = max(most, subject.proportional_mb())
    finally:
        await ask(elevenlabs, "/release")
        await sending
    return subject.used(), most


def idle(ours: Subject, seconds: float) -> Figure:
    """What a cloner does while nothing comes."""
    time.sleep(min(SETTLE_SECONDS, seconds))
    ours.begin()
    time.sleep(seconds)
    share = ours.used().cpu_ms["cloner"] / (seconds * 1000) * 100
    return Figure(
        f"CPU of an idle cloner, over {seconds:g} s",
        f"{share:.2f} % of a core",
        at_most(share, 0.5, "", " %"),
    )
