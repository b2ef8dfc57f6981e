"""What a worker says of a sample. Apart, so that a worker need not import what only its parent does."""

from typing import Literal

import msgspec

__all__ = ["SOUND_DBFS", "Finding", "Format", "Reply", "Unreadable"]

SOUND_DBFS = -50.0  # RMS of a window, its mean taken off; what is louder sounds

Format = Literal["wav", "mp3", "mp2", "ogg", "opus", "flac", "m4a", "mov", "webm", "matroska"]


class Unreadable(Exception):
    """The sample is not a recording that can be decoded; says why, as the end of a sentence to be shown."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker found out about a sample.

    `codec` is what people call it. `pictures` says whether a video moves beside the sound. `begins` is
    where the recording itself begins, behind what is no part of it.
    """

    format: Format
    codec: str
    pictures: bool
    begins: int
    duration_seconds: float
    sounding_seconds: float
    sample_rate: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line from a worker: what it found, or what is wrong with the sample, as the end of a sentence."""

    finding: Finding | None = None
    fault: str = "cannot be decoded"
