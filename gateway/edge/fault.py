"""The faults of a delivery, and the ids that it may hold. Knows no web framework.

    UNSUPPORTED_MEDIA_TYPE   neither application/json nor multipart/form-data
    MALFORMED_BODY           not JSON, not a form, or not an object
    FIELD_INVALID            one field is missing, empty, of the wrong type or out of range
    SAMPLE_TOO_LARGE         the sample is larger than allowed

No message quotes what the sender wrote.
"""

import re
from typing import Literal

__all__ = ["AGENT_ID", "MAX_CONVERSATION_ID", "DeliveryError", "conversation", "identifier"]

AGENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAX_CONVERSATION_ID = 256

Reason = Literal["MALFORMED_BODY", "FIELD_INVALID", "SAMPLE_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"]


class DeliveryError(Exception):
    """The delivery cannot be used as it is."""

    def __init__(
        self, reason: Reason, message: str, *, field: str | None = None, conversation_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        # Known where it could be read, so that the sender finds the call that the failure is about.
        self.conversation_id = conversation_id


def conversation(told: str | None) -> str | None:
    """The text without blanks around it, if it can be the id of a conversation."""
    told = (told or "").strip(" ")
    # U+FFFD stands for what could not be read, so two conversations might get one id.
    fits = told and len(told) <= MAX_CONVERSATION_ID and told.isprintable() and "\ufffd" not in told
    return told if fits else None


def identifier(told: str | None) -> str | None:
    """The text, if it can be an id of ElevenLabs'."""
    return told if told and AGENT_ID.fullmatch(told) else None
