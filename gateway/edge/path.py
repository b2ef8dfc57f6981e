"""Decides how much of a request's path may be logged: a mistyped URL must be seen, but nothing private."""

import re

__all__ = ["legible"]

LONGEST = 64
OURS = re.compile(r"/webhook[A-Za-z0-9/_.-]*")
NUMBER = re.compile(r"[0-9]{4,}")


def legible(path: str) -> str | None:
    """The path without its numbers, if it may be one of ours, mistyped; None for any other."""
    found = OURS.match(path[:LONGEST])
    return NUMBER.sub("#", found[0]) if found else None
