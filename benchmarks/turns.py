"""Measures several systems under the same load, in turns: what else the machine does harms them alike."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec
import uvloop

from benchmarks.client import Answered, send
from benchmarks.deliveries import Request
from benchmarks.system import Subject

__all__ = ["Length", "Measured", "Side", "measured"]

# Beyond what anybody answers in a second here; each costs as much memory as its headers.
FASTEST = {200 * 1024: 450, 1024 * 1024: 160, 10 * 1024 * 1024: 36}


class Length(msgspec.Struct, frozen=True):
    """How long is measured: so many rounds of so many seconds, and no more requests than `most` in each.

    After a round what was begun and not awaited has `aftermath` seconds to end, before the CPU time is read.
    Before the first round each side is sent `warm` requests of each form, so that what is done once is done.
    """

    rounds: int
    seconds: float
    most: int | None = None
    aftermath: float = 0.2
    warm: int = 24

    def requests(self, fastest: float) -> int:
        """How many requests to have ready for a round."""
        ready = max(8, int(fastest * self.seconds))
        return ready if self.most is None else min(self.most, ready)


class Side(msgspec.Struct, frozen=True):
    """One system, what it is sent in each round, and what its answers must hold."""

    subject: Subject
    requests: Callable[[], Iterator[Request]]
    expected: bytes


class Measured(msgspec.Struct):
    """What one system did over all rounds."""

    answered: Answered
    cpu_ms: dict[str, float]
    """For one request, by the part that a process plays."""

    peak_mb: dict[str, float]

    @property
    def rate(self) -> float:
        """How many it answered in a second."""
        return self.answered.rate

    @property
    def cpu(self) -> float:
        """CPU-ms of all its processes for one request."""
        return sum(self.cpu_ms.values())

    @property
    def memory(self) -> float:
        """The peaks of all its processes, in MB, as if they had come at the same moment."""
        return sum(self.peak_mb.values())


def measured(sides: Sequence[Side], length: Length, *, at_once: int, fastest: float) -> list[Measured]:
    """What each side did. Who goes first changes with each round. Raises RequestFailed."""
    rounds: list[list[Answered]] = [[] for _ in sides]
    cpu: list[dict[str, float]] = [{} for _ in sides]
    peaks: list[dict[str, float]] = [{} for _ in sides]
    for turn in range(length.rounds):
        order = list(range(len(sides)))
        for index in order[turn % len(order) :] + order[: turn % len(order)]:
            side = sides[index]
            # Signed before the clock runs.
            ready = list(islice(side.requests(), length.requests(fastest)))
            side.subject.begin()
            rounds[index].append(
                uvloop.run(
                    send(
                        side.subject.url,
                        ready,
                        at_once=at_once,
                        seconds=length.seconds,
                        expected=side.expected,
                    )
                )
            )
            time.sleep(length.aftermath)
            used = side.subject.used()
            for part, spent in used.cpu_ms.items():
                cpu[index][part] = cpu[index].get(part, 0.0) + spent
                peaks[index][part] = max(peaks[index].get(part, 0.0), used.peak_mb[part])
    whole = [sum(each[1:], each[0]) for each in rounds]
    return [
        Measured(answered, {part: spent / len(answered.times) for part, spent in spent_by.items()}, peak)
        for answered, spent_by, peak in zip(whole, cpu, peaks, strict=True)
    ]
