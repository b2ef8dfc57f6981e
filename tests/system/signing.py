"""Deliveries as ElevenLabs signs and sends them, written from its documentation."""

import hashlib
import hmac
import time
from typing import Any


def signed(body: bytes, *, secret: str, at: float | None = None) -> str:
    """The header by which ElevenLabs signs a body."""
    stamp = str(int(time.time() if at is None else at))
    return (
        f"t={stamp},v0={hmac.new(secret.encode(), stamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"
    )


def event(**changes: Any) -> dict[str, Any]:
    """A pre-call event of Ivan's, without its sample."""
    return {
        "type": "pre_call",
        "event_timestamp": 1702425485,
        "conversation_id": "conv_1",
        "agent_id": "agent_demo",
        "caller_metadata": {"name": "Ivan", "date_of_birth": "11.12.2007", "phone_number": "+31612345678"},
        **changes,
    }
