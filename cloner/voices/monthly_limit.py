"""When ElevenLabs makes voices again, once its monthly limit is used up."""

from collections.abc import Callable

from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import MonthlyLimit, ProviderFailure

__all__ = ["monthly_limit", "resets_at"]

# How long the limit counts as used up where ElevenLabs does not say until when.
UNKNOWN_SECONDS = 3600.0
# With a yearly plan the credits may start again later than the counter, which starts again each month.
MONTH_SECONDS = 31 * 86_400.0
LONGEST_PERIOD_SECONDS = 367 * 86_400.0


def monthly_limit(resets_at: float, now: float) -> MonthlyLimit:
    """The failure while the limit is used up, which says how long to wait."""
    return MonthlyLimit(retry_after=max(1.0, resets_at - now))


async def resets_at(provider: ElevenLabs, *, deadline: float, now: Callable[[], float]) -> float:
    """When the counter starts again, in Unix seconds. If ElevenLabs does not say, it is in an hour."""
    try:
        at = (await provider.subscription(deadline=deadline)).resets_at
    except ProviderFailure:
        at = None
    asked = now()
    if at is None or not asked < at < asked + LONGEST_PERIOD_SECONDS:
        return asked + UNKNOWN_SECONDS
    return min(at, asked + MONTH_SECONDS)
