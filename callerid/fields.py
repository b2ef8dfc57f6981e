"""What the fields of a request may hold, however it comes in.

A text about a caller may hold everything but control characters; an id holds little. What is wrong with a
field is told as the end of a sentence that begins with its name: only the process knows what its sender calls
it.
"""

import re

from callerid.name import holds_control, holds_lost

__all__ = [
    "ID",
    "MAX_BIRTH",
    "MAX_CALL_ID",
    "MAX_CONSENT",
    "MAX_CONVERSATION_ID",
    "MAX_ID",
    "MAX_NAME",
    "conversation",
    "fault_of",
    "identifier",
]

MAX_ID = 128
ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID}}}")
"""An id of ElevenLabs' or of the sender's own."""

MAX_CALL_ID = 64
MAX_CONVERSATION_ID = 256
MAX_NAME = 200
MAX_BIRTH = 64
MAX_CONSENT = 200


def identifier(text: str | None, *, most: int = MAX_ID) -> str | None:
    """The text, if it can be an id of at most so many characters."""
    return text if text and len(text) <= most and ID.fullmatch(text) else None


def conversation(text: str | None) -> str | None:
    """The text without spaces around it, if it can be the id of a conversation, or of a telephone call."""
    text = (text or "").strip(" ")
    fits = text and len(text) <= MAX_CONVERSATION_ID and text.isprintable() and not holds_lost(text)
    return text if fits else None


def fault_of(text: str, *, most: int) -> str | None:
    """What is wrong with a text about a caller that has no blanks around it; None if nothing is."""
    if len(text) > most:
        return f"may hold at most {most} characters"
    if holds_control(text):
        return "may not hold control characters"
    return None
