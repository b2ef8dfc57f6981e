"""What a multipart body held, without keeping the audio."""

import hashlib
from dataclasses import dataclass
from io import BytesIO

from multipart import MultipartParser, parse_options_header

MAX_TEXT = 65_536
"""Characters kept of a text part; a sample sent by mistake as text is not kept whole."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a form, in the order sent."""

    name: str
    filename: str | None
    """None for a text part, also where the sender meant a file and forgot its name."""
    content_type: str
    size: int
    sha256: str
    text: str | None
    """The value of a text part, cut after `MAX_TEXT` characters; None for a file."""
    is_audio: bool


def parse(content_type: str, body: bytes) -> tuple[Part, ...] | None:
    """The parts of a multipart body; None if it is not one, or cannot be read as one."""
    room = len(body) + 1
    try:
        kind, options = parse_options_header(content_type)
        if kind != "multipart/form-data" or not options.get("boundary"):
            return None
        parser = MultipartParser(
            BytesIO(body), options["boundary"], memory_limit=room, spool_limit=room, disk_limit=0
        )
        return tuple(_part(part.name, part.filename, part.content_type, part.raw) for part in parser.parts())
    except ValueError:  # the parser's own errors, and text that is not UTF-8
        return None


def _part(name: str, filename: str | None, content_type: str, content: bytes) -> Part:
    return Part(
        name=name,
        filename=filename,
        content_type=content_type,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        text=content.decode(errors="replace")[:MAX_TEXT] if filename is None else None,
        is_audio=is_audio(content[:12]),
    )


def is_audio(head: bytes) -> bool:
    """Whether a file that begins so claims to be audio: WAV, MP3, Ogg, FLAC, MP4, QuickTime or WebM."""
    return (
        (head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE")
        or head.startswith((b"ID3", b"OggS", b"fLaC", b"\x1a\x45\xdf\xa3"))
        or head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    )
