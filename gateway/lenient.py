"""Reads JSON whose sender may add, leave out or change what it likes: what is not as expected is missing."""

import msgspec
from msgspec import Raw

from gateway.delivery import AGENT_ID

__all__ = ["NULL", "fields", "identifier", "text"]

NULL = b"null"


def fields(token: bytes | Raw | None) -> dict[str, Raw]:
    """What an object holds; nothing for what is none."""
    try:
        return msgspec.json.decode(token or NULL, type=dict[str, Raw])
    except (ValueError, RecursionError):
        return {}


def text(token: bytes | Raw | None) -> str | None:
    """The text behind a JSON string; None for what is none."""
    try:
        return msgspec.json.decode(token or NULL, type=str)
    except ValueError:
        return None


def identifier(token: bytes | Raw | None) -> str | None:
    """The text where it may be an id of ElevenLabs'."""
    found = text(token) or ""
    return found if AGENT_ID.fullmatch(found) else None
