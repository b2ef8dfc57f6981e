"""For how long `just soak` goes on with new examples."""

import os
import time
from collections.abc import Callable

__all__ = ["SOAK_SECONDS", "as_long_as_asked"]

# Not set, the examples are few and always the same.
SOAK_SECONDS = 60 * float(os.environ.get("PRECALL_SOAK_MINUTES", "0"))


def as_long_as_asked(lives: Callable[[], None]) -> None:
    """Goes through the examples once, and with `just soak` through others until its time is over."""
    until = time.monotonic() + SOAK_SECONDS
    lives()
    while time.monotonic() < until:
        lives()
