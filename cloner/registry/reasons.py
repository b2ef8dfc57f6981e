"""Why a voice failed or is gone, in the words of its row.

Where ElevenLabs or the registry failed, the row has the name of the ErrorReason instead.
"""

__all__ = [
    "CONSENT_WITHDRAWN",
    "DELETED",
    "EVICTED",
    "EXPIRED",
    "FORGOTTEN",
    "LOST",
    "NEEDS_VERIFICATION",
    "NOT_MADE",
    "REPLACED",
    "RESTORED",
    "UNANSWERED",
]

# Why a voice was given up, or is gone.
EXPIRED, EVICTED, REPLACED, DELETED, FORGOTTEN = "expired", "evicted", "replaced", "deleted", "forgotten"
LOST = "lost"
"""ElevenLabs does not have it any more, and nobody had given it up."""

RESTORED = "restored"
"""The registry that was restored does not know it."""

CONSENT_WITHDRAWN = "consent withdrawn"
"""Also replaces the reason of a voice that had failed."""

# Why a voice failed.
UNANSWERED = "unanswered"
"""ElevenLabs did not say whether it was made, and none was found; it may still appear."""

NOT_MADE = "not made"
"""It was not wanted any more, or a bug ended its clone. Rows of earlier releases say "given up"."""

NEEDS_VERIFICATION = "VOICE_NEEDS_VERIFICATION"
"""ElevenLabs has made it, and wants it verified before it may speak. The name of the ErrorReason as well."""
