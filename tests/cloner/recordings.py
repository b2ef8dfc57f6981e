"""Recordings that the tests of this folder share: real ones, and some that are made up byte by byte."""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np

SAMPLES = Path(__file__).parents[1] / "samples"
SPEECH = {path.suffix[1:]: path.read_bytes() for path in SAMPLES.glob("speech.*")}


def recording(
    sound: np.ndarray, *, rate: int = 44100, width: int = 2, channels: int = 1, code: int = 1
) -> bytes:
    """A WAV file around the bytes of the array."""
    data = sound.tobytes()
    form = struct.pack("<HHIIHH", code, channels, rate, rate * width * channels, width * channels, 8 * width)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def encoded(
    container: str,
    codec: str,
    *,
    seconds: float = 2.0,
    rate: int = 44100,
    layout: str = "mono",
    streams: int = 1,
    second: str = "",
    video: bool = False,
    loud: bool = True,
    options: dict[str, str] | None = None,
) -> bytes:
    """Noise, or silence, encoded by PyAV; further streams are half as long each, a video stands in front."""
    file = io.BytesIO()
    noise = np.random.default_rng(1)
    with av.open(file, "w", format=container, options=options) as out:
        if video:
            picture = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        codecs = [codec, *[second or codec] * (streams - 1)][:streams]
        sounds: list[Any] = [out.add_stream(each, rate=rate, layout=layout) for each in codecs]
        if video:
            for _ in range(int(25 * seconds)):
                grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, "u1"), format="rgb24")
                out.mux(picture.encode(grey))
            out.mux(picture.encode())
        for number, stream in enumerate(sounds):
            channels = stream.codec_context.channels
            left = int(seconds * rate / 2**number)
            while left > 0:
                count = min(left, 1 << 16)
                sound = noise.integers(-8000, 8000, (1, count * channels)).astype("i2")
                frame = av.AudioFrame.from_ndarray(sound if loud else sound * 0, "s16", layout)
                frame.sample_rate = rate
                out.mux(stream.encode(frame))
                left -= count
            out.mux(stream.encode())
    return file.getvalue()


def repacked(sample: bytes, container: str) -> bytes:
    """The same sound, encoded as it is, in another container."""
    file = io.BytesIO()
    with av.open(io.BytesIO(sample)) as given, av.open(file, "w", format=container) as out:
        stream = out.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(given.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return file.getvalue()


def patched(sample: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """The sample with other bytes so far behind the end of the mark."""
    at = sample.index(mark) + len(mark) + offset
    return sample[:at] + value + sample[at + len(value) :]
