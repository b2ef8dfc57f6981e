"""What a worker reports about a sample.

It is a module of its own, so that a worker imports nothing that only its parent needs.
"""

from typing import Literal

import msgspec

__all__ = ["SOUND_DBFS", "Finding", "Format", "Reply", "Unreadable"]

SOUND_DBFS = -50.0  # RMS of a window without its mean; what is louder counts as sound

Format = Literal["wav", "mp3", "mp2", "ogg", "opus", "flac", "m4a", "mov", "webm", "matroska"]

# The media type and the extension to upload a format with.
UPLOADED_AS: dict[Format, tuple[str, str]] = {
    "wav": ("audio/wav", "wav"),
    "mp3": ("audio/mpeg", "mp3"),
    "mp2": ("audio/mpeg", "mp2"),
    "ogg": ("audio/ogg", "ogg"),
    "opus": ("audio/ogg", "ogg"),
    "flac": ("audio/flac", "flac"),
    "m4a": ("audio/mp4", "m4a"),
    "mov": ("video/quicktime", "mov"),  # there is no other, whether pictures move in it or not
    "webm": ("audio/webm", "webm"),
    "matroska": ("audio/x-matroska", "mka"),
}
WITH_PICTURES: dict[Format, tuple[str, str]] = UPLOADED_AS | {
    "ogg": ("video/ogg", "ogv"),
    "opus": ("video/ogg", "ogv"),
    "m4a": ("video/mp4", "mp4"),
    "webm": ("video/webm", "webm"),
    "matroska": ("video/x-matroska", "mkv"),
}


class Unreadable(Exception):
    """The sample cannot be decoded. The text says why, as the end of a sentence that can be shown."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample is, whatever its headers claim.

    `format` is wav, mp3, mp2 (MPEG Layer II), ogg (Vorbis or FLAC in OGG), opus (in OGG), flac, m4a (any
    audio in MP4), mov (in QuickTime), webm or matroska. `codec` is the everyday name of the codec. `pictures`
    says whether there is a video beside the sound. `sample_rate` is the decoder's, so 48000 for Opus.
    `sounding_seconds` are the seconds louder than SOUND_DBFS, as far as was measured. `begins` is the number
    of bytes in front that are no part of the recording, and stop other decoders: a tag, a piece of a frame.
    """

    format: Format
    codec: str
    pictures: bool
    begins: int
    duration_seconds: float
    sounding_seconds: float
    sample_rate: int

    @property
    def media_type(self) -> str:
        """The media type to upload it with."""
        return self._uploaded_as[0]

    @property
    def extension(self) -> str:
        """The extension of the file to upload."""
        return self._uploaded_as[1]

    @property
    def _uploaded_as(self) -> tuple[str, str]:
        return (WITH_PICTURES if self.pictures else UPLOADED_AS)[self.format]


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from a worker: a finding, or the fault of the sample, as the end of a sentence.

    `worn_out` says that the worker ends now, as the sample took all of its memory.
    """

    finding: Finding | None = None
    fault: str = "cannot be decoded"
    worn_out: bool = False
