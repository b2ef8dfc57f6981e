"""Rows of voices that are about to be made."""

from cloner.registry import NewVoiceRow

__all__ = ["intent"]


def intent(marker: str, *, caller: str = "c", owner: str = "process") -> NewVoiceRow:
    """A voice of a caller that is about to be made."""
    return NewVoiceRow(
        marker=marker, caller=caller, replaces=None, number=None, person=caller, greeting_name="", name="n",
        owner=owner, traceparent="", consent="", kept_until=0.0,
    )  # fmt: skip
