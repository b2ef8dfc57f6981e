"""What may be told of the path of a request: a URL that somebody mistyped must show, and nothing private."""

import re

__all__ = ["legible"]

LONGEST = 64
OURS = re.compile(r"/webhook[A-Za-z0-9/_.-]*")
NUMBER = re.compile(r"[0-9]{4,}")


def legible(path: str) -> str | None:
    """The path as far as it can be a mistyped one of ours, without numbers; None for any other."""
    found = OURS.match(path[:LONGEST])
    return NUMBER.sub("#", found[0]) if found else None
