"""The process that decodes samples: `python -m cloner.inspection`, started by `cloner.audio` alone.

It is handed one sample after the other as an open file and answers each with one line of JSON.
Whatever a sample does to it, it does to this process alone, which holds no socket but the one to
its parent, no secret, and only as much time and memory as it was given.
"""

import ctypes
import math
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NoReturn

import av
import msgspec
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from cloner.finding import SILENCE_DBFS, Finding, Format, Reply

# The demuxer is named, never guessed: a playlist, a concat script or an image sequence cannot be opened.
DEMUXERS = {"wav": "wav", "mp3": "mp3", "ogg": "ogg", "flac": "flac", "m4a": "mov", "webm": "matroska"}

# What a voice comes as. Everything else, all of video included, is never even opened by ffmpeg.
DECODERS = (
    "aac,adpcm_ima_wav,adpcm_ms,alac,flac,gsm_ms,mp2float,mp3float,opus,vorbis,pcm_alaw,pcm_mulaw,"
    "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_s64le,pcm_f32le,pcm_f64le"
)

# With the first, WAV opens in 1.2 ms instead of 9; what it is too little for gets the default.
PROBE_SIZES = ("32768", "5000000")

# From a sample's bytes to a number: what numpy calls it, and where full scale lies.
SCALES = {
    "u8": ("u1", 2.0**7),
    "s16": ("i2", 2.0**15),
    "s32": ("i4", 2.0**31),
    "s64": ("i8", 2.0**63),
    "flt": ("f4", 1.0),
    "dbl": ("f8", 1.0),
}

LEAST_ROOM = 64 << 20  # bytes that must be left for a sample; the imports alone take about 200 MB
SAMPLE_RATES = range(1_000, 768_001)
MAX_CHANNELS = 8
MOST_TAGS = 4  # in front of one recording
DAMAGED_PLACES = 1_000  # stepped over while reading; a file with more of them is read no further
BEYOND_SECONDS = 1.0  # decoded beyond the limit, so that nobody mistakes the limit for the duration
GATHERED = 1 << 16  # numbers gathered before numpy looks at them: once per frame cost 20 % more

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


class Unreadable(Exception):
    """The sample is not a recording that can be decoded; says why, as the end of a sentence to be shown."""


def find_out(sample: IO[bytes], max_seconds: float) -> Finding:
    """Decodes a sample and says what it is, or raises Unreadable; stops soon after `max_seconds` of sound."""
    container = _container(sample)
    if container is None:
        raise Unreadable("is not WAV, MP3, OGG, Opus, FLAC, M4A or WebM")
    for probe_size in PROBE_SIZES:
        try:
            sample.seek(0)
            return _decode(container, sample, probe_size, max_seconds)
        except MemoryError:
            raise
        except Unreadable as error:
            fault = str(error)
        except Exception:  # noqa: BLE001 - what hostile bytes make PyAV raise is listed nowhere
            fault = "cannot be decoded"
    raise Unreadable(fault)


def _container(sample: IO[bytes]) -> Format | None:
    """Which of our formats the first bytes announce, if any."""
    start = _behind_tags(sample)
    sample.seek(start)
    head = sample.read(64)
    found: Format | None = None
    if head.startswith(b"fLaC"):
        found = "flac"
    elif start:
        found = None if _is_adts(head) else "mp3"
    elif head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        found = "wav"
    elif head.startswith(b"OggS"):
        found = "ogg"
    elif head[4:8] == b"ftyp":
        found = "m4a"
    elif head.startswith(b"\x1a\x45\xdf\xa3") and b"\x42\x82\x84webm" in head:
        found = "webm"
    elif _is_mpeg_audio(head):
        found = "mp3"
    return found


def _behind_tags(sample: IO[bytes]) -> int:
    """Where the ID3 tags in front end; 0 if there are none."""
    start = 0
    for _ in range(MOST_TAGS):
        sample.seek(start)
        tag = sample.read(10)
        if len(tag) < 10 or not tag.startswith(b"ID3"):
            break
        size = tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]
        start += 10 + size + (10 if tag[5] & 0x10 else 0)
    return start


def _is_adts(head: bytes) -> bool:
    """Whether a bare AAC stream begins here: the sync of an MPEG frame, with the layer that is none."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _is_mpeg_audio(head: bytes) -> bool:
    """Whether the header of an MPEG audio frame of layer II or III stands here."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    # Layer I would let in every UTF-16 text, whose mark is FF FE.
    return version != 1 and layer in (1, 2) and bitrate != 15 and rate != 3


def _decode(container: Format, sample: IO[bytes], probe_size: str, max_seconds: float) -> Finding:
    options = {"probesize": probe_size, "threads": "1", "codec_whitelist": DECODERS}
    # The plain descriptor: mmap, BytesIO and /proc/self/fd/N were no faster, for 10 MB of MP3 or of WAV.
    with av.open(
        sample, "r", DEMUXERS[container], options=options, metadata_errors="replace", io_open=_refuse
    ) as opened:
        if not opened.streams.audio:
            raise Unreadable("holds no sound")
        stream = opened.streams.audio[0]
        codec = stream.codec_context
        if codec is None or codec.name not in DECODERS.split(","):
            raise Unreadable("holds sound of a kind that is not decoded here")
        if codec.channels > MAX_CHANNELS:
            raise Unreadable("declares too many channels")
        for other in opened.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        codec.thread_count = 1
        form: Format = "opus" if (container, codec.name) == ("ogg", "opus") else container
        return _listen(form, _frames(opened, stream), max_seconds)


def _refuse(*_: Any) -> NoReturn:
    """Opens nothing that a sample refers to."""
    raise PermissionError("a sample may not refer to other files")


def _listen(form: Format, frames: Iterator[AudioFrame], max_seconds: float) -> Finding:
    """Counts and measures what is really there; what the headers claim is not asked."""
    loudest = _Loudest()
    samples: Counter[int] = Counter()
    heard = 0.0
    for frame in frames:
        rate = frame.sample_rate
        if rate not in SAMPLE_RATES:
            raise Unreadable("has an absurd sample rate")
        if frame.layout.nb_channels not in range(1, MAX_CHANNELS + 1):
            raise Unreadable("has an absurd number of channels")
        loudest.hear(frame)
        samples[rate] += frame.samples
        heard += frame.samples / rate
        if heard > max_seconds + BEYOND_SECONDS:
            break
    if not heard:
        raise Unreadable("holds no sound that can be decoded")

    peak = loudest.peak()
    return Finding(
        format=form,
        # Not `heard`, whose rounding errors would make three seconds fall short of three seconds.
        duration_seconds=sum(count / rate for rate, count in samples.items()),
        # It may change on the way: HE-AAC starts at half of it, joined OGG files at anything.
        sample_rate=max(samples, key=lambda rate: samples[rate] / rate),
        peak_dbfs=max(SILENCE_DBFS, 20 * math.log10(peak)) if peak else SILENCE_DBFS,
    )


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
        except MemoryError:
            raise
        except av.FFmpegError:
            continue
        return


class _Loudest:
    """The largest number among all channels so far, where full scale is 1."""

    def __init__(self) -> None:
        self._peak = 0.0
        self._format = ""
        self._gathered = np.empty(0, "u1")
        self._count = 0

    def hear(self, frame: AudioFrame) -> None:
        channels = frame.layout.nb_channels
        planar = frame.format.is_planar
        if frame.format.name != self._format:
            self._look()
            self._format = frame.format.name
            self._gathered = np.empty(GATHERED, SCALES[self._format.removesuffix("p")][0])
        size = frame.samples if planar else frame.samples * channels
        if size > len(self._gathered):
            self._look()
            self._gathered = np.empty(size, self._gathered.dtype)
        # PyAV 18 lists a plane too many, which points nowhere, where all eight are used.
        for plane in frame.planes[: channels if planar else 1]:
            if self._count + size > len(self._gathered):
                self._look()
            heard = np.frombuffer(memoryview(plane), self._gathered.dtype, size)
            self._gathered[self._count : self._count + size] = heard
            self._count += size

    def peak(self) -> float:
        self._look()
        return self._peak

    def _look(self) -> None:
        heard, self._count = self._gathered[: self._count], 0
        if not heard.size:
            return
        high, low = float(heard.max()), float(heard.min())
        if not (math.isfinite(high) and math.isfinite(low)):
            # A float WAV can hold anything, and a damaged packet may decode to it.
            finite = heard[np.isfinite(heard)]
            high, low = (float(finite.max()), float(finite.min())) if finite.size else (0.0, 0.0)
        name = self._format.removesuffix("p")
        middle = 128.0 if name == "u8" else 0.0
        self._peak = max(self._peak, (high - middle) / SCALES[name][1], (middle - low) / SCALES[name][1])


def answer(sample: IO[bytes], max_seconds: float) -> Reply:
    """Says what the sample is or why that cannot be said; only running out of memory is raised."""
    try:
        return Reply(finding=find_out(sample, max_seconds))
    except Unreadable as error:
        return Reply(fault=str(error))


def serve(parent: socket.socket, *, max_seconds: float, cpu_seconds: int) -> None:
    """Answers until the parent is gone, or until memory ran out once, since nobody knows who holds it."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
        if not message:
            return
        _allow_cpu(cpu_seconds)
        with os.fdopen(descriptors[0], "rb", buffering=0) as sample:
            try:
                reply, worn_out = answer(sample, max_seconds), False
            except MemoryError:
                reply, worn_out = Reply(fault="needs too much memory"), True
        parent.sendall(msgspec.json.encode(reply) + b"\n")
        if worn_out:
            return


def _allow_cpu(seconds: int) -> None:
    """Ends this process with SIGXCPU once it has used so much more processor time."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _bind(memory_mb: int) -> None:
    """Gives up what decoding does not need; nothing of this can be taken back."""
    # Ctrl-C and a service manager's SIGTERM reach the whole group. The parent decides, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # A core handler that is a pipe does not ask for RLIMIT_CORE, and the sample is somebody's voice.
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _tone() -> bytes:
    """A tenth of a second of 16 bit WAV, to warm up with."""
    sound = np.sin(np.arange(4410) / 16)
    frames = (sound * 2**14).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(frames), b"WAVE", b"fmt ", 16, 1, 1, 44100, 88200, 2, 16
    )
    return header + struct.pack("<4sI", b"data", len(frames)) + frames


def main(descriptor: str, max_seconds: str, cpu_seconds: str, memory_mb: str) -> None:
    """Gets ready, says so, and serves."""
    _bind(int(memory_mb))
    av.logging.set_level(None)
    bytearray(LEAST_ROOM)  # raises MemoryError now, not once for every sample
    with socket.socket(fileno=int(descriptor)) as parent:
        ready = answer(BytesIO(_tone()), 1.0)
        # From here on ffmpeg and the C library have nobody to talk to; until here a traceback is welcome.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        parent.sendall(msgspec.json.encode(ready) + b"\n")
        serve(parent, max_seconds=float(max_seconds), cpu_seconds=int(cpu_seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
