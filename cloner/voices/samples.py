"""Whether a sample is good enough to clone from."""

import asyncio
import hashlib

import msgspec
from opentelemetry.sdk.trace import TracerProvider

from cloner.audio.inspector import InspectionUnavailable, Inspector
from cloner.audio.reply import SOUND_DBFS, Finding
from cloner.provider.failures import FAIR_SECONDS, DeadlineTooShort
from cloner.provider.turns import urgency
from telemetry.facts import note
from telemetry.parts import part
from telemetry.tracing import failing

__all__ = [
    "Recording",
    "SampleLimits",
    "SampleRateTooLow",
    "SampleRefused",
    "SampleRequired",
    "SampleSilent",
    "SampleTooLarge",
    "SampleTooLong",
    "SampleTooShort",
    "Samples",
    "digest_of",
    "judge",
]


class SampleRefused(Exception):
    """The sample is refused. The text says what was found and what is needed; it can be shown.

    `facts` are the limit and what was found, such as `limit_bytes` and `actual_bytes`.
    """

    def __init__(self, message: str, **facts: float) -> None:
        super().__init__(message)
        self.facts = {
            name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in facts.items()
        }


class SampleRequired(SampleRefused):
    """No sample came, and no voice of the caller is known."""

    def __init__(self) -> None:
        super().__init__("No voice of this caller is known: send a sample to make one from.")


class SampleTooLarge(SampleRefused):
    """The sample has too many bytes."""


class SampleTooShort(SampleRefused):
    """The sample has too little audio."""


class SampleTooLong(SampleRefused):
    """The sample has too much audio."""


class SampleSilent(SampleRefused):
    """Too little of the sample is sound."""


class SampleRateTooLow(SampleRefused):
    """The sample has too few samples a second."""


class SampleLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a sample: bytes, seconds and hertz."""

    max_bytes: int
    min_seconds: float
    max_seconds: float
    min_sound_seconds: float
    min_rate: int


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that was accepted."""

    sample: bytes
    filename: str
    media_type: str


class Samples:
    """Inspects samples."""

    def __init__(self, inspector: Inspector, tracing: TracerProvider, *, limits: SampleLimits) -> None:
        self._inspector = inspector
        self._tracer = tracing.get_tracer("precall.samples")
        self._limits = limits

    async def inspect(self, sample: bytes, *, deadline: float) -> Recording:
        """Inspects a sample and returns it, if it is accepted.

        Raises a SampleRefused, what the Inspector raises, and DeadlineTooShort.
        """
        if not sample:
            raise SampleRequired
        if len(sample) > self._limits.max_bytes:
            allowed = self._limits.max_bytes / 1_048_576
            raise SampleTooLarge(
                f"Voice sample too large: more than the {allowed:.1f} MB allowed",
                limit_bytes=self._limits.max_bytes,
                actual_bytes=len(sample),
            )
        with (
            part("audio"),
            self._tracer.start_as_current_span(
                "inspect sample", record_exception=False, set_status_on_exception=False
            ) as span,
            failing(span),
        ):
            left = deadline - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(deadline):
                    audio = await self._inspector.inspect(sample, call=urgency().call)
            except TimeoutError:
                raise (DeadlineTooShort if left < FAIR_SECONDS else InspectionUnavailable) from None
            note(
                sample_format=audio.format,
                sample_seconds=audio.duration_seconds,
                sample_rate=audio.sample_rate,
            )
            judge(audio, self._limits)
        return Recording(
            sample=sample[audio.begins :], filename=f"sample.{audio.extension}", media_type=audio.media_type
        )


async def digest_of(sample: bytes) -> str:
    """The digest of a sample. 10 MB take 5 ms; hashing releases the GIL, so the loop goes on meanwhile."""
    return await asyncio.to_thread(lambda: hashlib.sha256(sample).hexdigest())


def judge(audio: Finding, limits: SampleLimits) -> None:
    """Raises a SampleRefused if the audio is outside the limits."""
    seconds, sounding = audio.duration_seconds, audio.sounding_seconds
    if seconds < limits.min_seconds:
        found = _text_below(seconds, limits.min_seconds)
        raise SampleTooShort(
            f"Voice sample too short: {found} s, at least {limits.min_seconds:.1f} s needed",
            limit_seconds=limits.min_seconds,
            actual_seconds=seconds,
        )

    if seconds > limits.max_seconds:
        # Decoding stopped at the limit, so the real duration is not known.
        raise SampleTooLong(
            f"Voice sample too long: more than the {limits.max_seconds:.1f} s allowed, of {audio.codec}"
            f" at {audio.sample_rate} Hz. Send a part of it",
            limit_seconds=limits.max_seconds,
        )
    if audio.sample_rate < limits.min_rate:
        raise SampleRateTooLow(
            f"Voice sample rate too low: {audio.sample_rate} Hz, at least {limits.min_rate} Hz needed;"
            f" this is {seconds:.1f} s of {audio.codec}. Record at {limits.min_rate} Hz or more (converting"
            " adds nothing), or have VOICE_CLONE_MIN_SAMPLE_RATE lowered",
            limit_hertz=limits.min_rate,
            actual_hertz=audio.sample_rate,
        )
    if sounding < limits.min_sound_seconds:
        found = _text_below(sounding, limits.min_sound_seconds)
        raise SampleSilent(
            f"Voice sample is silent: {found} s of its {seconds:.1f} s are louder than {SOUND_DBFS:.0f} dBFS,"
            f" at least {limits.min_sound_seconds:.1f} s needed",
            limit_seconds=limits.min_sound_seconds,
            actual_seconds=sounding,
        )


def _text_below(seconds: float, limit: float) -> str:
    """The number with one decimal, which never reads as the limit: it is below it."""
    text = f"{seconds:.1f}"
    return text if float(text) < limit else f"{int(seconds * 10) / 10:.1f}"
