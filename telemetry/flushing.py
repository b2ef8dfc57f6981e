"""Sends what a process still has to send, within a bounded time."""

import threading
from collections.abc import Callable

__all__ = ["run_within"]


def run_within(seconds: float, last_words: Callable[[], object]) -> None:
    """Runs the function, and returns when it is done or the time is up.

    A function that is not done by then goes on in the background while the process lives, and does not keep
    it from ending.
    """
    thread = threading.Thread(target=last_words, name="flushing", daemon=True)
    thread.start()
    thread.join(seconds)
