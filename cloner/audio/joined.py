"""Tells recordings apart that were joined to one file, where a decoder would hear the first alone."""

import struct
from collections.abc import Iterator

from cloner.audio.frames import Bytes
from cloner.audio.reply import Unreadable

__all__ = ["check_joined"]

PAGE = b"OggS\x00\x02"  # the first one of a stream
PAGE_HEADER = 27
FLAC = b"fLaC"
BLOCK_HEADER = 4
LAST_BLOCK = 0x80
STREAMINFO = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # its header, not the last one or the last one
IDENTIFIED = 32  # bytes of a stream that say what it is
MOST_STREAMS = 4  # compared in one recording
CHANNELS = {1: "mono", 2: "stereo"}


def check_joined(data: Bytes, kind: str, at: int) -> None:
    """Raises Unreadable if an OGG or FLAC file is several recordings that not every decoder hears as one.

    ffmpeg 8 drops what follows a change of codec, of channels or rate in Vorbis and Opus, of bits in FLAC, or
    larger blocks of FLAC; where rate and channels of a bare FLAC change, it counts too much. So nobody could
    tell how much will be heard.
    """
    recordings = _in_ogg(data, at) if kind == "ogg" else _in_flac(data, at)
    first = next(recordings, "")
    other = next((recording for recording in recordings if recording != first), None)
    if other is not None:
        raise Unreadable(
            f"is joined recordings that differ, first {first}, then {other}: many decoders hear only the"
            " first; send a single recording"
        )


def _in_flac(data: Bytes, at: int) -> Iterator[str]:
    while (at := data.find(FLAC, at)) >= 0:
        head = data[at : at + IDENTIFIED]
        at += len(FLAC)
        if head[4:8] in STREAMINFO:
            yield _flac(head)
            at = _behind_blocks(data, at)


def _behind_blocks(data: Bytes, at: int) -> int:
    """Where the frames of FLAC begin: what is attached in its blocks of metadata may be a FLAC file, too."""
    is_last = False
    while not is_last and len(block := data[at : at + BLOCK_HEADER]) == BLOCK_HEADER:
        is_last = block[0] >= LAST_BLOCK
        at += BLOCK_HEADER + int.from_bytes(block[1:], "big")
    return at


def _in_ogg(data: Bytes, at: int) -> Iterator[str]:
    streams: list[str] = []
    ends = at
    while (at := data.find(PAGE, at)) >= 0:
        # The first pages of all streams of a recording follow each other.
        if at != ends and streams:
            yield " and ".join(streams)
            streams = []
        lengths = data[at + PAGE_HEADER : at + PAGE_HEADER + sum(data[at + 26 : at + 27])]
        begins = at + PAGE_HEADER + len(lengths)
        if len(streams) < MOST_STREAMS:
            streams.append(_stream(data[begins : begins + IDENTIFIED]))
        at = ends = begins + sum(lengths)
    if streams:
        yield " and ".join(streams)


def _stream(head: bytes) -> str:
    """The codec of the stream that begins so, with what of it must not change."""
    if head.startswith(b"OpusHead") and len(head) > 9:
        return f"Opus ({_channels(head[9])})"
    if head.startswith(b"\x01vorbis") and len(head) > 15:
        channels, rate = struct.unpack_from("<BI", head, 11)
        return f"Vorbis ({rate} Hz, {_channels(channels)})"
    if head.startswith(b"\x7fFLAC"):
        return _flac(head[9:])
    if head.startswith(b"Speex   "):
        return "Speex"
    return "something else"


def _flac(head: bytes) -> str:
    """What a FLAC stream consists of, by its STREAMINFO."""
    block = int.from_bytes(head[10:12], "big")
    sort = int.from_bytes(head[18:22], "big")
    rate, channels, bits = sort >> 12, (sort >> 9 & 7) + 1, (sort >> 4 & 31) + 1
    return f"FLAC ({rate} Hz, {_channels(channels)}, {bits} bit, blocks of {block})"


def _channels(count: int) -> str:
    return CHANNELS.get(count, f"{count} channels")
