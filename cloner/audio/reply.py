"""What a worker reports about a sample.

It is a module of its own, so that a worker imports nothing that only its parent needs.
"""

from typing import Literal

import msgspec

__all__ = ["SOUND_DBFS", "Finding", "Format", "Reply", "Unreadable"]

SOUND_DBFS = -50.0  # RMS of a window without its mean; what is louder counts as sound

Format = Literal["wav", "mp3", "mp2", "ogg", "opus", "flac", "m4a", "mov", "webm", "matroska"]


class Unreadable(Exception):
    """The sample cannot be decoded. The text says why, as the end of a sentence that can be shown."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker found out about a sample.

    `codec` is its everyday name. `pictures` says whether there is a video beside the sound. `begins` is where
    the recording itself begins, after bytes that are no part of it.
    """

    format: Format
    codec: str
    pictures: bool
    begins: int
    duration_seconds: float
    sounding_seconds: float
    sample_rate: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from a worker: a finding, or the fault of the sample, as the end of a sentence.

    `worn_out` says that the worker ends now, as the sample took all of its memory.
    """

    finding: Finding | None = None
    fault: str = "cannot be decoded"
    worn_out: bool = False
