"""Keeps the memory of one large sample for the next one, and looks for garbage less often.

glibc gives every large block back to the kernel as soon as it is free, and the kernel clears each
page of the next one anew. For samples of 10 MB that was a third of the processor time of a delivery.
"""

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = [
    "FreedMemory",
    "collect_seldom",
    "give_back",
    "importing",
    "keep_large_blocks",
    "spare_modules",
    "unraised",
]

E = TypeVar("E", bound=Exception)

# Parameters of mallopt(3).
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3

# The largest value that glibc accepts.
LARGEST_BLOCK = 32 * 1_048_576
KEPT = 128 * 1_048_576
# After how many freed bytes memory is given back: while others are in use, and when none are.
MUCH = 128 * 1_048_576
LITTLE = 16 * 1_048_576
PAUSE_SECONDS = 1.0
# At least so long between two times. While samples keep coming, memory that is given back is taken again a
# moment later, and the kernel has to clear it.
BETWEEN_SECONDS = 10.0
# The garbage collector looks for cycles after so many new objects, and after so many bytes were freed.
OBJECTS = 20_000
IN_CYCLES = 32 * 1_048_576


class FreedMemory:
    """Gives memory back, in the background, a second after much of it or the last of it was freed.

    It does so every ten seconds at most, and before that collects all garbage: a failure refers to the calls
    that it passed, which may refer to the failure and to the sample, so that such a cycle keeps the sample.
    With every 32 MB that are freed it looks for new garbage, as CPython would after so many objects.
    """

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._size = self._unsought = 0
        self._last = -BETWEEN_SECONDS
        self._coming: asyncio.TimerHandle | None = None

    def note_freed(self, size: int, *, held: int) -> None:
        """Notes that so many bytes were freed, and how many are still in use."""
        self._size += size
        self._unsought += size
        if self._unsought >= IN_CYCLES:
            self._break_cycles()
        if self._coming is None and self._size >= (MUCH if held else LITTLE):
            loop = asyncio.get_running_loop()
            at = max(loop.time() + PAUSE_SECONDS, self._last + BETWEEN_SECONDS)
            self._coming = loop.call_at(at, self._tidy_up)

    def _tidy_up(self) -> None:
        self._coming, self._size = None, 0
        # Only a full collection finds garbage that was in use during earlier ones. It takes 5 to 30 ms.
        gc.collect()
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        loop.run_in_executor(None, self._give_back)

    def _break_cycles(self) -> None:
        self._unsought = 0
        # What was in use during one look is looked at again after eleven more, by CPython's own rule. Alone
        # CPython would not come to that: it counts objects from the last look on.
        _, looks, _ = gc.get_count()
        gc.collect(1 if looks > gc.get_threshold()[1] else 0)


def give_back() -> None:
    """Gives the kernel every free page of the heap. Takes some milliseconds.

    By itself glibc gives memory back only from the end of the heap, where one small block that is still in
    use can keep hundreds of megabytes.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    trim(0)


def keep_large_blocks() -> None:
    """Makes the allocator keep up to 128 MiB of freed memory. Does nothing if it is not glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(TRIM_THRESHOLD, KEPT)


@contextmanager
def importing() -> Iterator[None]:
    """Makes what is imported in this block cheaper, for a process that shows nothing in colour.

    Imports make no garbage, and looking for it is a tenth of the time to start. rich is another: httpx 0.28
    and structlog 26.1 import it if it is installed. When they no longer do, keeping it out can go.
    """
    gc.disable()
    # With None in its place, Python takes it for not installed.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    try:
        yield
        collect_seldom()
        spare_modules()
    finally:
        gc.enable()


def collect_seldom() -> None:
    """Makes the garbage collector look for cycles only after every 20,000 new objects.

    By default it looks after some hundreds, and so visits all objects in use a few times in each request: a
    tenth of the processor time. When samples are freed, FreedMemory makes it look sooner.
    """
    gc.set_threshold(OBJECTS)


def spare_modules() -> None:
    """Exempts all present objects from garbage collection: modules, which live as long as the process.

    Otherwise the collector visits them again and again, and once more at exit: for a process that only starts
    and stops, this is a sixth of its processor time.
    """
    gc.freeze()


def unraised(failure: E) -> E:
    """A copy of a failure that was never raised, and so refers to no call.

    Once raised, a failure refers to the calls that it passes and to all that these hold, as long as anybody
    keeps it. What is kept to be raised later is such a copy, and what is raised is a copy of that.
    """
    copied = type(failure).__new__(type(failure), *failure.args)
    copied.__dict__.update(failure.__dict__)
    return copied
