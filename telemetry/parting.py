"""Lets go of what a process still has to send, however long the other side takes."""

import threading
from collections.abc import Callable

__all__ = ["within"]


def within(seconds: float, last_words: Callable[[], object]) -> None:
    """Runs this, and returns when it is done or the time is up.

    What is not done by then goes on beside the process for as long as that lives, and keeps it from nothing.
    """
    thread = threading.Thread(target=last_words, name="parting", daemon=True)
    thread.start()
    thread.join(seconds)
