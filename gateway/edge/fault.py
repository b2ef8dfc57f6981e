"""The faults of a delivery. Knows no web framework.

    UNSUPPORTED_MEDIA_TYPE   neither application/json nor multipart/form-data
    MALFORMED_BODY           not JSON, not a form, or not an object
    FIELD_INVALID            one field is missing, empty, of the wrong type or out of range
    SAMPLE_TOO_LARGE         the sample is larger than allowed

No message quotes what the sender wrote.
"""

from typing import Literal

__all__ = ["DeliveryError"]

Reason = Literal["MALFORMED_BODY", "FIELD_INVALID", "SAMPLE_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"]


class DeliveryError(Exception):
    """The delivery cannot be used as it is."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        agent_id: str | None = None,
        conversation_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        # Known where they could be read, so that the call is found that the failure is about.
        self.agent_id = agent_id
        self.conversation_id = conversation_id
