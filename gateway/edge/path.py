"""Decides how much of a request's path may be logged: as much as shows where a URL of ours was mistyped."""

from gateway.measures import DELIVERIES, ROUTES

__all__ = ["legible"]

# A slash at the end is often written, and says nothing of anybody.
OURS = tuple(f"{route}/" for route in ROUTES)
MASK = "#"


def legible(path: str) -> str | None:
    """The path for as long as it is one of ours, and a mask for its rest.

    None for a path that does not begin as ours do: nobody mistyped it.
    """
    if not path.startswith(DELIVERIES):
        return None
    shown = max(_shared(path, ours) for ours in OURS)
    return path if shown == len(path) else path[:shown] + MASK


def _shared(path: str, ours: str) -> int:
    """With how many of the same characters both begin."""
    pairs = enumerate(zip(path, ours, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(path), len(ours)))
