"""What a worker says of a sample. Apart, so that a worker need not import what only its parent does."""

from typing import Literal

import msgspec

__all__ = ["SILENCE_DBFS", "Finding", "Format", "Reply"]

SILENCE_DBFS = -120.0  # nothing is reported as quieter

Format = Literal["wav", "mp3", "ogg", "opus", "flac", "m4a", "webm"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker found out about a sample."""

    format: Format
    duration_seconds: float
    sample_rate: int
    peak_dbfs: float


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line from a worker: what it found, or what is wrong with the sample, as the end of a sentence."""

    finding: Finding | None = None
    fault: str = "cannot be decoded"
