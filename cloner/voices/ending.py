"""What a clone comes to: the voice, or the failure that came instead."""

from typing import NamedTuple

from cloner.provider.failures import ProviderFailure
from cloner.refusals import Overloaded
from cloner.registry import (
    CallerForgotten,
    ConsentWithdrawn,
    RegistryUnavailable,
    RequestDiffers,
    RequestForgotten,
    reasons,
)
from cloner.voices.clone import Superseded
from cloner.voices.marked import NotLookedFor, VoiceNeedsVerification
from cloner.voices.voice import Voice

__all__ = ["ENDINGS", "CloneEnding", "ending_of"]

FAILED = (ProviderFailure, VoiceNeedsVerification, RegistryUnavailable, Overloaded)
# No voice is wanted any more.
GIVEN_UP = (Superseded, CallerForgotten, ConsentWithdrawn, RequestDiffers, RequestForgotten)

ENDINGS: tuple[type[Exception], ...] = (*FAILED, *GIVEN_UP, NotLookedFor)
"""The failures that a clone may come to; any other is a bug."""


class CloneEnding(NamedTuple):
    """How a clone ends: what is answered, measured and stored."""

    told: Voice | Exception
    """What whoever waits gets."""

    outcome: str
    """The outcome for the metric."""

    reason: str = ""
    """The reason for the metric."""

    closed_with: str | None = None
    """The reason that is stored in the row of the intent; None where there is a voice."""


def ending_of(came: Voice | Exception, known: ProviderFailure | RegistryUnavailable | None) -> CloneEnding:
    """How a clone ends that came to a voice, or to one of ENDINGS. `known` is what went wrong last."""
    if isinstance(came, Voice):
        return CloneEnding(came, "success")
    if isinstance(came, NotLookedFor):
        # Nobody knows whether there is a voice, so only another request may have one made.
        if known is None:
            return CloneEnding(Superseded(), "abandoned", closed_with=reasons.UNANSWERED)
        return CloneEnding(known, "error", known.reason, reasons.UNANSWERED)
    if isinstance(came, FAILED):
        return CloneEnding(came, "error", came.reason, came.reason)
    return CloneEnding(came, "abandoned", closed_with=reasons.NOT_MADE)
