"""Finds out by content which container format a sample has, and where in its bytes it begins."""

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from cloner.audio.foreign import foreign_kind, foreign_stream
from cloner.audio.frames import Bytes, adts_frame, first_chain, first_flac_frame, mpeg_frame
from cloner.audio.reply import Unreadable

__all__ = ["WANTED", "Container", "Kind", "check_index", "check_width", "find_container"]

WANTED = (
    "send WAV (16, 24 or 32 bit PCM), MP3, OGG (Vorbis, Opus or FLAC), FLAC, M4A or MP4 (AAC, ALAC or Opus),"
    " or WebM"
)

Kind = Literal["wav", "mpeg", "ogg", "flac", "mp4", "quicktime", "webm", "matroska"]

MOST_TAGS = 16  # in front of one recording
ID3V1 = 128
APE_HEADER = 32  # bytes, and so has its footer

BLANKS = re.compile(rb"[\x00\t\n\r ]*(?:\xef\xbb\xbf[\t\n\r ]*)?")

EBML = b"\x1a\x45\xdf\xa3"
CLUSTER = b"\x1f\x43\xb6\x75"
SIMPLE_BLOCK = b"\xa3"
DOC_TYPE = b"\x42\x82"
SEGMENT = b"\x18\x53\x80\x67"
LONGEST_EBML_HEADER = 4_096

# The boxes that a file of the QuickTime family may begin with, besides ftyp.
FIRST_BOXES = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx"})
LEAST_BOX = 8

# How the description of an encrypted track begins.
ENCRYPTED = re.compile(rb"stsd.{12}(?:enca|drms|aavd)", re.DOTALL)
# The format chunk of a WAV that says how many bits each sample takes, and how many of them are used.
WIDTHS = re.compile(rb"fmt .{4}\xfe\xff.{12}(..)\x16\x00(..).{4}\x01\x00", re.DOTALL)
LONGEST_HEADER = 1 << 20  # bytes of a WAV in which it is looked for

FIRST_PAGE = 2
LONGEST_PAGE = 1 << 16  # bytes, more than a page of OGG has

WITHOUT_BEGINNING = "without its beginning; send all of its pieces, joined"


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample is: from `begins` to `ends`, without the tags in front of it and behind it."""

    kind: Kind
    begins: int
    ends: int


def find_container(data: Bytes) -> Container:
    """The container of the bytes. Raises Unreadable, whose text says what else they are."""
    if not len(data):
        raise Unreadable("is empty")
    tagged = _behind_tags(data, 0)
    kind, at = _behind_blanks(data, tagged)
    if kind is None and (known := foreign_kind(data, tagged) or foreign_kind(data, at)) is not None:
        raise Unreadable(f"is {known}" if "send" in known else f"is {known}; {WANTED}")
    if kind is None or (kind == "ogg" and not data[at + 5] & FIRST_PAGE):
        kind, at = _search(data, tagged, at)
    return Container(kind=kind, begins=at, ends=_before_tags(data, at))


def check_index(data: Bytes, container: Container) -> None:
    """Raises Unreadable if the index is missing or says that the sound is encrypted."""
    is_piece = False
    for name, begins, ends in _boxes(data, container.begins, container.ends):
        if name == b"moov":
            if ENCRYPTED.search(data[begins:ends]):  # it would decode to noise
                raise Unreadable(f"is encrypted; {WANTED}, without copy protection")
            return
        is_piece = is_piece or name == b"moof"
    if is_piece:
        raise Unreadable(f"is a piece of an MP4 recording {WITHOUT_BEGINNING}")
    raise Unreadable(
        "is an MP4 without its index (moov): it was cut short or never finished; send the whole file"
    )


def check_width(data: Bytes, container: Container) -> None:
    """Raises Unreadable if the samples of a WAV are padded: ffmpeg reads them as more and shorter ones."""
    # By its name, which stands near the beginning: to search so much for the whole pattern takes 0.3 ms.
    at = data.find(b"fmt ", container.begins, container.begins + LONGEST_HEADER)
    form = WIDTHS.match(data, at) if at >= 0 else None
    if form is None:
        return
    width, bits = (int.from_bytes(number, "little") for number in form.groups())
    if 0 < bits <= width - 8:
        raise Unreadable(
            f"holds {bits} bit PCM padded to {width} bits, which many decoders misread; {WANTED}"
        )


def _behind_blanks(data: Bytes, at: int) -> tuple[Kind | None, int]:
    """Skips zeros, spaces, line ends, byte order marks and tags. Returns what follows them, and where."""
    for _ in range(MOST_TAGS):
        if (kind := _kind(data, at)) is not None:
            return kind, at
        blank = BLANKS.match(data, at)
        behind = blank.end() if blank else at
        # The length of a box begins with zeros, which belong to it.
        for earlier in range(max(at, behind - 3), behind):
            if (kind := _kind(data, earlier)) in ("mp4", "quicktime"):
                return kind, earlier
        behind = _behind_tags(data, behind)
        if behind == at:
            break
        at = behind
    return None, at


def _kind(data: Bytes, at: int) -> Kind | None:
    """The format that begins at this place, if its first bytes show it."""
    head = data[at : at + 12]
    kind: Kind | None = None
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        kind = "wav"
    elif head.startswith(b"OggS") and len(head) > 5:
        kind = "ogg"
    elif head.startswith(b"fLaC"):
        kind = "flac"
    elif head[4:8] == b"ftyp":
        kind = "quicktime" if head[8:12] == b"qt  " else "mp4"
    elif head.startswith(EBML):
        kind = "webm" if _doc_type(data, at) == b"webm" else "matroska"
    elif head[4:8] in FIRST_BOXES and _is_box(data, at):
        kind = "quicktime"
    return kind


def _is_box(data: Bytes, at: int) -> bool:
    """Whether the number at this place can be the length of a box; a box of sound may be cut short."""
    size = int.from_bytes(data[at : at + 4], "big")
    return size in (0, 1) or LEAST_BOX <= size <= len(data) - at or data[at + 4 : at + 8] == b"mdat"


def _search(data: Bytes, tagged: int, at: int) -> tuple[Kind, int]:
    """Where a stream that was cut can be decoded from. Raises Unreadable if there is no such place."""
    # Before the first page of an OGG stream nothing can be decoded.
    page = data.find(b"OggS\x00\x02", at)
    if page >= 0:
        return "ogg", page
    for begins in dict.fromkeys((at, tagged, 0)):  # a tag may lie about its length
        frame = first_chain(data, begins, mpeg_frame)
        if frame is not None:
            return "mpeg", frame
    frame = first_flac_frame(data, at)
    if frame is not None:
        return "flac", frame
    if data.find(b"OggS", at, at + LONGEST_PAGE) >= 0:
        raise Unreadable("is a piece of an OGG stream without its beginning; send the whole recording")
    if data[at : at + 4] == CLUSTER or first_chain(data, at, _webm_block, SIMPLE_BLOCK) is not None:
        # A browser hands over what it records piece by piece.
        raise Unreadable(f"is a piece of a WebM recording {WITHOUT_BEGINNING}")
    if mpeg_frame(data, at) is not None:
        return "mpeg", at
    if first_chain(data, at, adts_frame) is not None:
        raise Unreadable(f"is a bare AAC stream (ADTS) in no container; {WANTED}")
    if (known := foreign_stream(data, at)) is not None:
        raise Unreadable(f"is {known}; {WANTED}")
    raise Unreadable(
        "is of no known format (perhaps it is encrypted, or samples without a header, such as G.711, G.722"
        f" or PCM); {WANTED}"
    )


def _behind_tags(data: Bytes, at: int) -> int:
    """The end of the ID3v2 and APE tags that begin at this place."""
    for _ in range(MOST_TAGS):
        tag = data[at : at + 16]
        if tag.startswith(b"APETAGEX"):
            at = min(at + APE_HEADER + int.from_bytes(tag[12:], "little"), len(data))
            continue
        if len(tag) < 10 or not tag.startswith(b"ID3"):
            break
        size = (tag[6] & 127) << 21 | (tag[7] & 127) << 14 | (tag[8] & 127) << 7 | tag[9] & 127
        at = min(at + 10 + size + (10 if tag[5] & 0x10 else 0), len(data))
    return at


def _before_tags(data: Bytes, begins: int) -> int:
    """The beginning of the ID3v1 and APE tags at the end of a file; the file's end if there are none."""
    ends = len(data)
    if data[max(begins, ends - ID3V1) : ends].startswith(b"TAG"):
        ends -= ID3V1
    footer = data[max(begins, ends - APE_HEADER) : ends]
    if footer.startswith(b"APETAGEX"):
        size = int.from_bytes(footer[12:16], "little") + (APE_HEADER if footer[23] & 0x80 else 0)
        ends = ends - size if begins < ends - size else ends
    return ends


def _doc_type(data: Bytes, at: int) -> bytes:
    """The document type that the EBML header at this place states; empty if it states none."""
    size = _vint(data, at + 4)
    if size is None:
        return b""
    at, length = size
    ends = at + LONGEST_EBML_HEADER if length is None else min(at + length, at + LONGEST_EBML_HEADER)
    while at < ends:
        name = data[at : at + _width(data, at)]
        size = _vint(data, at + len(name))
        if not name or name == SEGMENT or size is None or size[1] is None:
            break
        at, length = size[0], size[1]
        if name == DOC_TYPE:
            return bytes(data[at : at + length]).rstrip(b"\x00")
        at += length
    return b""


def _width(data: Bytes, at: int) -> int:
    """The length in bytes of the EBML number that begins here; none is longer than eight."""
    return 9 - data[at].bit_length() if at < len(data) and data[at] else 0


def _vint(data: Bytes, at: int) -> tuple[int, int | None] | None:
    """The end of an EBML number and its value, which is None for "unknown"; None if it is no number."""
    width = _width(data, at)
    digits = data[at : at + width]
    if not width or len(digits) < width:
        return None
    ones = (1 << 7 * width) - 1
    number = int.from_bytes(digits, "big") & ones
    return at + width, None if number == ones else number


def _webm_block(data: Bytes, at: int) -> tuple[int, object] | None:
    """Length and track of the block of WebM or Matroska whose header is at this place."""
    size = _vint(data, at + 1)
    if size is None or not size[1] or data[at : at + 1] != SIMPLE_BLOCK:
        return None
    begins, length = size[0], size[1]
    return begins + length - at, data[begins : begins + 1]


def _boxes(data: Bytes, at: int, ends: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of every box at the top level of the file."""
    while at + LEAST_BOX <= ends:
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = ends - at
        if size < LEAST_BOX:
            return
        yield bytes(data[at + 4 : at + 8]), at, min(at + size, ends)
        at += size
