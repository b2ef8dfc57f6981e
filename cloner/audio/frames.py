"""Finds where a decoder can begin in a stream: at the first of several consecutive frames that agree."""

from collections.abc import Callable
from mmap import mmap

__all__ = ["Bytes", "adts_frame", "first_chain", "first_flac_frame", "mpeg_frame"]

Bytes = mmap | bytes

SEARCHED = 1 << 18  # bytes in which the first frame must stand
CHAIN = 4  # frames in a row that nothing else has
MOST_SYNCS = 20_000  # looked at before a search is given up

# Kilobits a second by the index in a frame's header, for MPEG-1 layer II and III, and for MPEG-2.
BITRATES = {
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
LOW_BITRATES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
ADTS_RATES = 13
ADTS_HEADER = 7
LONGEST_FLAC_HEADER = 16

Measure = Callable[[Bytes, int], tuple[int, object] | None]


def first_chain(data: Bytes, at: int, measure: Measure, sync: bytes = b"\xff") -> int | None:
    """Where the first chain of frames begins that `measure` recognises, each of which begins with `sync`."""
    end = min(len(data), at + SEARCHED)
    for _ in range(MOST_SYNCS):
        at = data.find(sync, at, end)
        if at < 0:
            return None
        if _is_chain(data, at, measure):
            return at
        at += 1
    return None


def _is_chain(data: Bytes, at: int, measure: Measure) -> bool:
    first = None
    for _ in range(CHAIN):
        frame = measure(data, at)
        if frame is None:
            return False
        size, sort = frame
        if first is not None and sort != first:
            return False
        first = sort
        at += size
    return True


def mpeg_frame(data: Bytes, at: int) -> tuple[int, object] | None:
    """Length and kind of the frame of layer II or III whose header is at this place."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    # Layer I would let in every UTF-16 text, whose mark is FF FE.
    if version == 1 or layer not in (1, 2) or bitrate in (0, 15) or rate == 3:
        return None
    kilobits = BITRATES.get((version, layer), LOW_BITRATES)[bitrate]
    hertz = RATES[version][rate]
    slots = 72 if layer == 1 and version != 3 else 144
    return slots * kilobits * 1000 // hertz + padding, (version, layer, rate)


def adts_frame(data: Bytes, at: int) -> tuple[int, object] | None:
    """Length and kind of the frame of bare AAC whose header is at this place."""
    head = data[at : at + ADTS_HEADER]
    if len(head) < ADTS_HEADER or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    rate = head[2] >> 2 & 15
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (size, (head[1], rate)) if size > ADTS_HEADER and rate < ADTS_RATES else None


def first_flac_frame(data: Bytes, at: int) -> int | None:
    """The place of the first of two consecutive FLAC frames, each with a correct checksum."""
    end = min(len(data), at + SEARCHED)
    last: tuple[int, int, bytes] | None = None
    for _ in range(MOST_SYNCS):
        at = data.find(b"\xff", at, end)
        if at < 0:
            return None
        header = _flac_header(bytes(data[at : at + LONGEST_FLAC_HEADER]))
        if header is not None:
            number, sort = header
            if last is not None and (last[1] + 1, last[2]) == (number, sort):
                return last[0]
            last = at, number, sort
        at += 1
    return None


def _flac_header(head: bytes) -> tuple[int, bytes] | None:
    """Number and kind of the FLAC frame whose header is at this place, in a stream of blocks of one size."""
    if head[:2] != b"\xff\xf8" or len(head) < LONGEST_FLAC_HEADER:
        return None
    coded = 8 - (head[4] ^ 0xFF).bit_length()  # the ones in front say how many bytes the number takes
    width = max(1, coded)
    if coded == 1 or width > 6:
        return None
    number = head[4] & (0x7F >> coded)
    for byte in head[5 : 4 + width]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    more = {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    length = 4 + width + more
    return (number, head[1:4]) if _crc8(head[:length]) == head[length] else None


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107 if crc & 0x80 else crc << 1) & 0xFF
    return crc
