"""What only the garbage collector frees."""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["left_in_cycles"]

ROOT = Path(__file__).parents[2]


@contextmanager
def left_in_cycles(*packages: str) -> Iterator[list[str]]:
    """Lists, once it is left, the calls within these packages of which something is left that refers to itself.

    A failure refers to the frames that it passed. If one of them refers to the failure, or to the task that
    failed, then all that these frames hold stays until somebody looks for cycles.
    """
    left: list[str] = []
    gc.disable()
    try:
        collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        yield left
        collect()
        left += [
            place for found in gc.garbage if isinstance(found, FrameType) for place in within(found, packages)
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def collect() -> None:
    """Collects all garbage. gc.collect() does nothing while another thread collects, and that may take long."""
    begun_by: set[int] = set()

    def note_begun(phase: str, _: object) -> None:
        if phase == "start":
            begun_by.add(threading.get_ident())

    gc.callbacks.append(note_begun)
    try:
        while threading.get_ident() not in begun_by:
            gc.collect()
            time.sleep(0)  # the other thread goes on
    finally:
        gc.callbacks.remove(note_begun)


def within(frame: FrameType, packages: tuple[str, ...]) -> Iterator[str]:
    """Where a frame runs, if it runs in one of the packages."""
    file = Path(frame.f_code.co_filename)
    if any(file.is_relative_to(ROOT / package) for package in packages):
        yield f"{file.relative_to(ROOT)}: {frame.f_code.co_name}"
