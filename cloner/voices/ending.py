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

__all__ = ["ENDINGS", "Ending", "ending_of"]

FAILED = (ProviderFailure, VoiceNeedsVerification, RegistryUnavailable, Overloaded)
# No voice is wanted any more.
GIVEN_UP = (Superseded, CallerForgotten, ConsentWithdrawn, RequestDiffers, RequestForgotten)

ENDINGS: tuple[type[Exception], ...] = (*FAILED, *GIVEN_UP, NotLookedFor)
"""The failures that a clone may come to; any other is a bug."""


class Ending(NamedTuple):
    """What whoever waits is told, how it is measured, and why the intent is closed."""

    told: Voice | Exception
    outcome: str
    reason: str = ""
    why: str | None = None
    """None where there is a voice."""


def ending_of(came: Voice | Exception, known: ProviderFailure | RegistryUnavailable | None) -> Ending:
    """How a clone ends that came to a voice, or to one of ENDINGS. `known` is what went wrong last."""
    if isinstance(came, Voice):
        return Ending(came, "success")
    if isinstance(came, NotLookedFor):
        # Nobody knows whether there is a voice, so only another request may have one made.
        if known is None:
            return Ending(Superseded(), "abandoned", why=reasons.UNANSWERED)
        return Ending(known, "error", known.reason, reasons.UNANSWERED)
    if isinstance(came, FAILED):
        return Ending(came, "error", came.reason, came.reason)
    return Ending(came, "abandoned", why=reasons.NOT_MADE)
