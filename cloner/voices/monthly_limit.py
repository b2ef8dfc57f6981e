"""When ElevenLabs makes voices again, once its monthly limit is used up."""

from collections.abc import Callable

from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import ProviderFailure

__all__ = ["resets_at"]

# How long the limit counts as used up where ElevenLabs does not say until when.
UNKNOWN_SECONDS = 3600.0
# Credits of a plan that is paid by the year may start again later than the counter, which is a month's.
MONTH_SECONDS = 31 * 86_400.0
LONGEST_PERIOD_SECONDS = 367 * 86_400.0


async def resets_at(provider: ElevenLabs, *, deadline: float, now: Callable[[], float]) -> float:
    """When the counter starts again, in Unix seconds. Where ElevenLabs does not tell, in an hour."""
    try:
        at = (await provider.subscription(deadline=deadline)).resets_at
    except ProviderFailure:
        at = None
    asked = now()
    if at is None or not asked < at < asked + LONGEST_PERIOD_SECONDS:
        return asked + UNKNOWN_SECONDS
    return min(at, asked + MONTH_SECONDS)
