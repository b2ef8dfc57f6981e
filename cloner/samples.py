"""Whether a sample is good enough to clone from."""

import msgspec

from cloner.audio import Audio

__all__ = [
    "Limits",
    "SampleRateTooLow",
    "SampleRefused",
    "SampleSilent",
    "SampleTooLarge",
    "SampleTooLong",
    "SampleTooShort",
    "judge",
]

SILENCE_DBFS = -50.0


class SampleRefused(Exception):
    """The sample does not do. The text says what was found and what is needed; it can be shown."""


class SampleTooLarge(SampleRefused):
    """More bytes than allowed."""


class SampleTooShort(SampleRefused):
    """Less audio than needed."""


class SampleTooLong(SampleRefused):
    """More audio than allowed."""


class SampleSilent(SampleRefused):
    """Nothing in it is louder than the threshold."""


class SampleRateTooLow(SampleRefused):
    """Fewer samples a second than needed."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample must keep to: bytes, seconds and hertz."""

    max_bytes: int
    min_seconds: float
    max_seconds: float
    min_rate: int


def judge(audio: Audio, limits: Limits) -> None:
    """Returns if the audio will do; raises a SampleRefused if not."""
    seconds = audio.duration_seconds
    if seconds < limits.min_seconds:
        found = _below(seconds, limits.min_seconds)
        raise SampleTooShort(f"Voice sample too short: {found} s, at least {limits.min_seconds:.1f} s needed")

    if seconds > limits.max_seconds:
        raise SampleTooLong(f"Voice sample too long: more than the {limits.max_seconds:.1f} s allowed")
    if audio.sample_rate < limits.min_rate:
        raise SampleRateTooLow(
            f"Voice sample rate too low: {audio.sample_rate} Hz, at least {limits.min_rate} Hz needed"
        )
    if audio.peak_dbfs < SILENCE_DBFS:
        raise SampleSilent(f"Voice sample is silent: nothing in it is louder than {SILENCE_DBFS:.0f} dBFS")


def _below(seconds: float, limit: float) -> str:
    """One decimal, and never one that reads as the limit that was fallen short of."""
    text = f"{seconds:.1f}"
    return text if float(text) < limit else f"{int(seconds * 10) / 10:.1f}"
