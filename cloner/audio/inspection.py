"""The process that decodes samples: `python -m cloner.audio.inspection`, started by the inspector alone.

It gets one sample after the other as an open file and answers each with one line of JSON. A hostile sample
harms only this process, which has no secret, limited time and memory, and only the socket to its parent.
"""

import contextlib
import ctypes
import math
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import av
import msgspec
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from cloner.audio.container import WANTED, Container, Kind, check_index, check_width, find_container
from cloner.audio.foreign import CODECS, is_ascii, went_as_text
from cloner.audio.frames import Bytes
from cloner.audio.joined import check_joined
from cloner.audio.reply import Finding, Format, Reply, Unreadable
from cloner.audio.sounding import Sounding

# Each kind's demuxer and format. The demuxer is named, never guessed: a playlist, a concat script or an image
# sequence cannot be opened.
KINDS: dict[Kind, tuple[str, Format]] = {
    "wav": ("wav", "wav"),
    "mpeg": ("mp3", "mp3"),
    "ogg": ("ogg", "ogg"),
    "flac": ("flac", "flac"),
    "mp4": ("mov", "m4a"),
    "quicktime": ("mov", "mov"),
    "webm": ("matroska", "webm"),
    "matroska": ("matroska", "matroska"),
}
# The codecs that voices are recorded in. ffmpeg never opens anything else, video included.
DECODERS = (
    "aac,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,flac,gsm_ms,mp2,mp2float,mp3,mp3float,opus,vorbis,"
    "pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,"
    "pcm_s64be,pcm_s64le,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le"
)

Options = dict[str, str]

# How much ffmpeg reads to recognise a stream: at first little and, if that is too little, its default.
READINGS = ({"probesize": "32768"}, {"probesize": "5000000"})
# WAV can be read in packets of any size. With ffmpeg's own, of 2 to 4 KB, 10 MB take 23 ms to decode. The
# larger the first packet is, the longer it takes to find out from it that a WAV does not hold PCM.
LEAST_PACKET, MOST_PACKET, PACKETS = 8_192, 65_536, 64

LEAST_ROOM = 64 << 20  # bytes that must be left for a sample; the imports alone take about 200 MB
SAMPLE_RATES = range(1_000, 768_001)
MAX_CHANNELS = 8
MOST_TRACKS = 8  # of sound, looked at one after the other until one can be decoded
DAMAGED_PLACES = 1_000  # stepped over while reading; a file with more of them is read no further
BEYOND_SECONDS = 1.0  # decoded beyond the limit, so that nobody mistakes the limit for the duration

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

NO_SOUND = "holds no sound that can be decoded: it is damaged or cut short"
WENT_AS_TEXT = "was taken for text on its way, which changed its bytes; send them as they are"


class InspectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is to be found out."""

    most: float
    """Decoding stops soon after so many seconds."""

    enough: float
    """Once so many seconds are sound, the rest is not measured."""


def find_out(data: Bytes, limits: InspectionLimits) -> Finding:
    """Decodes a sample and returns what it is; stops soon after `most` seconds. Raises Unreadable."""
    container = find_container(data)
    if container.kind in ("mp4", "quicktime"):
        check_index(data, container)
    elif container.kind in ("ogg", "flac"):
        check_joined(data, container.kind, container.begins)
    elif container.kind == "wav":
        check_width(data, container)
    fault = ""
    for reading in _readings_of_wav(len(data)) if container.kind == "wav" else READINGS:
        try:
            return _decode(data, container, reading, limits)
        except MemoryError:
            raise
        except Unreadable as error:
            fault = str(error)
        except Exception:  # noqa: BLE001 - no document lists what PyAV raises for hostile bytes
            fault = fault or "cannot be decoded: it is damaged or cut short"
    raise Unreadable(fault)


def _readings_of_wav(size: int) -> tuple[Options, ...]:
    packet = min(MOST_PACKET, max(LEAST_PACKET, size // PACKETS))
    return {"probesize": "4096", "max_size": str(packet)}, READINGS[1]


class _Window:
    """The part of a sample that is the recording, with as much of a file's interface as PyAV needs."""

    def __init__(self, data: Bytes, container: Container) -> None:
        self._data = data
        self._begins = container.begins
        self._ends = container.ends
        self._at = container.begins

    def read(self, size: int) -> bytes:
        piece = self._data[self._at : min(self._at + size, self._ends)]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._begins, os.SEEK_CUR: self._at, os.SEEK_END: self._ends}[whence]
        self._at = max(self._begins, base + offset)
        return self.tell()

    def tell(self) -> int:
        return self._at - self._begins


def _decode(data: Bytes, container: Container, reading: Options, limits: InspectionLimits) -> Finding:
    """Decodes the first of several tracks that can be decoded."""
    fault = NO_SOUND
    foreign: list[str] = []
    for track in range(MOST_TRACKS):
        with _opened(data, container, reading) as opened:
            if not opened.streams.audio:
                raise Unreadable(_soundless(opened))
            if track >= len(opened.streams.audio):
                break
            stream = opened.streams.audio[track]
            codec = stream.codec_context
            if codec is None or codec.name not in DECODERS.split(","):
                foreign.append(_foreign_name(codec.name if codec else ""))
                continue
            if codec.channels > MAX_CHANNELS:
                fault = _too_many(_name(codec.name), codec.channels)
                continue
            try:
                return _listen(container, opened, stream, limits)
            except Unreadable as error:
                fault = str(error)
    if foreign and fault == NO_SOUND:
        raise Unreadable(f"holds {' and '.join(dict.fromkeys(foreign))}, which is not taken here; {WANTED}")
    raise Unreadable(fault)


@contextlib.contextmanager
def _opened(data: Bytes, container: Container, reading: Options) -> Iterator[InputContainer]:
    options = {**reading, "threads": "1", "codec_whitelist": DECODERS}
    with av.open(
        _Window(data, container),
        "r",
        KINDS[container.kind][0],
        options=options,
        metadata_errors="replace",
        io_open=_refuse,
    ) as opened:
        yield opened


def _soundless(opened: InputContainer) -> str:
    if _has_pictures(opened):
        return f"is a video without sound; {WANTED}"
    return "holds no sound"


def _has_pictures(opened: InputContainer) -> bool:
    """Whether it holds a video; a cover picture is none."""
    return any(not stream.disposition & Disposition.attached_pic for stream in opened.streams.video)


def _foreign_name(codec: str) -> str:
    """The name of a codec that is not taken; some PCM is."""
    name = _name(codec)
    return f"{name} of the kind {codec}" if name == "PCM" else name


def _too_many(codec: str, channels: int) -> str:
    return f"holds {codec} in {channels} channels, more than {MAX_CHANNELS}; send mono or stereo"


def _name(codec: str) -> str:
    """What people call the codec."""
    if codec in CODECS:
        return CODECS[codec]
    if codec.startswith("pcm_"):
        return "PCM"
    return codec or "an unknown codec"


def _refuse(*_: Any) -> NoReturn:
    """Refuses to open anything that a sample refers to."""
    raise PermissionError("a sample may not refer to other files")


def _listen(
    container: Container, opened: InputContainer, stream: AudioStream, limits: InspectionLimits
) -> Finding:
    """Counts and measures what is decoded, whatever the headers claim."""
    for other in opened.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    codec = stream.codec_context
    codec.thread_count = 1
    sounding = Sounding(limits.enough)
    samples: Counter[int] = Counter()
    heard = 0.0
    for frame in _frames(opened, stream):
        if fault := _absurdity(frame, codec.name):
            if heard:  # it was none up to here: this piece is damaged
                continue
            raise Unreadable(fault)
        rate = frame.sample_rate
        sounding.hear(frame)
        samples[rate] += frame.samples
        heard += frame.samples / rate
        if heard > limits.most + BEYOND_SECONDS:
            break
    if not heard:
        raise Unreadable(NO_SOUND)

    sounding.finish()
    return Finding(
        format=_format(container.kind, codec.name),
        codec=_name(codec.name),
        pictures=_has_pictures(opened),
        begins=container.begins,
        # Not `heard`, whose rounding errors would make three seconds fall short of three seconds.
        duration_seconds=sum(count / rate for rate, count in samples.items()),
        sounding_seconds=sounding.seconds,
        # It may change on the way: HE-AAC starts at half of it, joined MP3 files at anything.
        sample_rate=max(samples, key=lambda rate: samples[rate] / rate),
    )


def _absurdity(frame: AudioFrame, codec: str) -> str:
    """What cannot be of what was decoded; empty if all may be."""
    if frame.sample_rate not in SAMPLE_RATES:
        return f"has an absurd sample rate: {frame.sample_rate} Hz; send 44100 Hz"
    if frame.layout.nb_channels not in range(1, MAX_CHANNELS + 1):
        return _too_many(_name(codec), frame.layout.nb_channels)
    return ""


def _format(kind: Kind, codec: str) -> Format:
    if kind == "ogg" and codec == "opus":
        return "opus"
    if kind == "mpeg" and codec.startswith("mp2"):
        return "mp2"
    return KINDS[kind][1]


def _frames(opened: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    for packet in _packets(opened, stream):
        try:
            yield from packet.decode()
        except MemoryError:
            raise
        except av.FFmpegError:
            continue


def _packets(opened: InputContainer, stream: AudioStream) -> "Iterator[av.Packet[AudioStream]]":
    for _ in range(DAMAGED_PLACES):
        try:
            yield from opened.demux(stream)
        except av.FFmpegError as failure:
            if isinstance(failure, MemoryError):
                # Raises MemoryError itself if there is none. If there is, a damaged length asked for more.
                bytes(LEAST_ROOM)
            continue
        return


def answer(sample: IO[bytes], limits: InspectionLimits) -> Reply:
    """Finds out what the sample is, or why it is unreadable. Raises nothing but MemoryError."""
    if not os.fstat(sample.fileno()).st_size:
        return Reply(fault="is empty")
    try:
        data = mmap.mmap(sample.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        raise MemoryError from None
    with data:
        return _answer(data, limits)


def _answer(data: Bytes, limits: InspectionLimits) -> Reply:
    try:
        finding = find_out(data, limits)
    except Unreadable as error:
        return Reply(fault=WENT_AS_TEXT if went_as_text(data) else str(error))
    if finding.sounding_seconds and is_ascii(data):  # PCM is decoded, whatever became of its numbers
        return Reply(fault=WENT_AS_TEXT)
    return Reply(finding=finding)


def serve(parent: socket.socket, limits: InspectionLimits, *, cpu_seconds: int) -> None:
    """Answers until the parent is gone, or until memory has run out, as it may never be freed again."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
        if not message:
            return
        _allow_cpu(cpu_seconds)
        with os.fdopen(descriptors[0], "rb", buffering=0) as sample:
            try:
                reply = answer(sample, limits)
            except MemoryError:
                reply = Reply(fault="needs too much memory", worn_out=True)
        parent.sendall(msgspec.json.encode(reply) + b"\n")
        if reply.worn_out:
            return


def _allow_cpu(seconds: int) -> None:
    """Sets the limit at which SIGXCPU ends this process: so many more seconds of processor time."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _bind(memory_mb: int) -> None:
    """Gives up for good every right that decoding does not need."""
    # Ctrl-C and a service manager's SIGTERM reach the whole group. The parent decides, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A core handler that is a pipe ignores RLIMIT_CORE, and a core would hold somebody's voice.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = memory_mb << 20 if hard == resource.RLIM_INFINITY else min(memory_mb << 20, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _tone() -> bytes:
    """A tenth of a second of 16 bit WAV, to warm up with."""
    sound = np.sin(np.arange(4410) / 16)
    frames = (sound * 2**14).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(frames), b"WAVE", b"fmt ", 16, 1, 1, 44100, 88200, 2, 16
    )
    return header + struct.pack("<4sI", b"data", len(frames)) + frames


def main(descriptor: str, most: str, enough: str, cpu_seconds: str, memory_mb: str) -> None:
    """Gets ready, says so, and serves."""
    _bind(int(memory_mb))
    av.logging.set_level(None)
    bytes(LEAST_ROOM)  # MemoryError now, not once for every sample; bytearray would clear it
    with socket.socket(fileno=int(descriptor)) as parent:
        ready = _answer(_tone(), InspectionLimits(most=1.0, enough=1.0))
        # From here on nobody reads the messages of ffmpeg and the C library; before, a traceback is useful.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        parent.sendall(msgspec.json.encode(ready) + b"\n")
        serve(parent, InspectionLimits(most=float(most), enough=float(enough)), cpu_seconds=int(cpu_seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
