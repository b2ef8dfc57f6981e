"""Sends what a process still has to send, within a bounded time."""

import threading
from collections.abc import Callable

__all__ = ["run_within"]


def run_within(seconds: float, last_words: Callable[[], object]) -> None:
    """Runs the function, and returns when it is done or the time is up.

    If the function is not done by then, it goes on in the background while the process lives, but does not
    keep the process from ending.
    """
    thread = threading.Thread(target=last_words, name="flushing", daemon=True)
    thread.start()
    thread.join(seconds)
