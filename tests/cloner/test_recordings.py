"""Which recordings are taken as a voice, what they are sent on as, and what is said of the others."""

import asyncio
import base64
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache

import numpy as np
import pytest
import pytest_asyncio

from cloner.audio.inspector import Inspector, SampleUnreadable
from cloner.audio.reply import Finding
from cloner.voices.samples import (
    SampleLimits,
    SampleRateTooLow,
    SampleRefused,
    SampleSilent,
    SampleTooLong,
    SampleTooShort,
    judge,
)
from tests.cloner.recordings import SAMPLES, SPEECH, encoded, patched, recording, repacked

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Each process that runs tests reads all tables, and makes few of the recordings in them.
Making = Callable[[], bytes]
Plain = Callable[[str], Awaitable[Finding]]

LIMITS = SampleLimits(
    max_bytes=10 << 20, min_seconds=3.0, max_seconds=600.0, min_sound_seconds=1.0, min_rate=16_000
)
GSTREAMER = (SAMPLES / "gstreamer.webm").read_bytes()
LAYER2 = (SAMPLES / "layer2.mp2").read_bytes()
SPEEX = (SAMPLES / "speex.ogg").read_bytes()
SEGMENT = b"\x18\x53\x80\x67"
FORMATS = ["wav", "mp3", "ogg", "opus", "flac", "m4a", "webm"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inspector() -> AsyncIterator[Inspector]:
    """A worker that the tests of this module share; none of them may harm it."""
    async with Inspector(workers=1, max_seconds=600.0) as shared:
        before = shared.pids
        yield shared
        assert before == shared.pids


async def verdict(inspector: Inspector, sample: bytes) -> Finding:
    """What the sample is, if it will do as a voice."""
    audio = await inspector.inspect(sample)
    judge(audio, LIMITS)
    return audio


async def upload(inspector: Inspector, sample: bytes) -> tuple[str, str, str]:
    """What a sample that will do is sent on as."""
    audio = await verdict(inspector, sample)
    return audio.codec, audio.media_type, audio.extension


async def refusal(inspector: Inspector, sample: bytes) -> tuple[str, str]:
    """How and why a sample is refused."""
    with pytest.raises((SampleRefused, SampleUnreadable)) as caught:
        await verdict(inspector, sample)
    return type(caught.value).__name__, str(caught.value)


# --- tags and what else stands in front and behind


def id3(size: int = 300, *, version: int = 3, footer: bool = False) -> bytes:
    """An ID3v2 tag with a title and padding."""
    title = b"TIT2" + struct.pack(">IH", 6, 0) + b"\x00Voice"
    coded = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    end = b"3DI" + bytes([4, 0, 0x10]) + coded if footer else b""
    return b"ID3" + bytes([version, 0, 0x10 if footer else 0]) + coded + title.ljust(size, b"\x00") + end


def ape(*, header: bool) -> bytes:
    """An APE tag, whose footer says whether it has a header."""
    item = struct.pack("<II", 5, 0) + b"Title\x00Voice"
    count = struct.pack("<III", 2000, len(item) + 32, 1)
    flags = 0x80000000 if header else 0
    front = b"APETAGEX" + count + struct.pack("<I", flags | 0x20000000) + bytes(8) if header else b""
    return front + item + b"APETAGEX" + count + struct.pack("<I", flags) + bytes(8)


PICTURE = id3(1_500_000)
IN_FRONT = {
    "a tag": id3(),
    "two tags": id3() + id3(version=4),
    "a tag with a footer": id3(version=4, footer=True),
    "a tag with a picture": PICTURE,
    "a tag and zeros": id3() + bytes(100),
    "a tag, zeros, a tag and a line end": id3() + bytes(100) + id3() + b"\r\n",
    "an APE tag": ape(header=True),
    "zeros": bytes(300),
    "a line end": b"\r\n",
    "a byte order mark": b"\xef\xbb\xbf",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain_of(inspector: Inspector) -> Callable[[str], Awaitable[Finding]]:
    """What the recording of a format is by itself, which is heard once."""
    heard: dict[str, Finding] = {}

    async def plain(name: str) -> Finding:
        if name not in heard:
            heard[name] = await verdict(inspector, SPEECH[name])
        return heard[name]

    return plain


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("front", IN_FRONT.values(), ids=IN_FRONT)
async def test_something_in_front(inspector: Inspector, plain_of: Plain, front: bytes, name: str) -> None:
    """Hears the same recording, whatever stands in front of it."""
    plain = await plain_of(name)
    found = await verdict(inspector, front + SPEECH[name])

    assert (plain.format, plain.extension, plain.sample_rate) == (
        found.format,
        found.extension,
        found.sample_rate,
    )
    assert pytest.approx(plain.duration_seconds, abs=0.05) == found.duration_seconds


@pytest.mark.parametrize(
    ("name", "front", "begins"),
    [
        ("wav", id3(300), 310),
        ("webm", id3(300, version=4, footer=True), 320),
        ("m4a", bytes(7), 7),
        ("ogg", b"\r\n", 2),
        ("mp3", id3(300), 310),
        ("mp3", id3(300).replace(b"\x00\x02\x2c", b"\x7f\x02\x2c", 1), 310),  # it claims more than it has
        ("mp3", bytes(300), 300),
        ("flac", id3(300), 310),
        ("flac", id3(300) + bytes(100), 410),
        ("flac", id3(300) + ape(header=True), 393),
        ("wav", b"", 0),
    ],
)
async def test_where_it_begins(inspector: Inspector, name: str, front: bytes, begins: int) -> None:
    """Says what to leave out when it is sent on, tags among it: some decoders know none, or only a first one."""
    assert begins == (await inspector.inspect(front + SPEECH[name])).begins


@pytest.mark.parametrize("name", FORMATS)
async def test_something_behind(inspector: Inspector, plain_of: Plain, name: str) -> None:
    """Hears the same recording, with tags at its end or without."""
    plain = await plain_of(name)
    old = b"TAG" + b"Voice".ljust(125, b"\x00")
    found = [
        await verdict(inspector, SPEECH[name] + behind)
        for behind in (old, ape(header=False), ape(header=True) + old)
    ]

    assert [pytest.approx(plain.duration_seconds, abs=0.03)] * 3 == [each.duration_seconds for each in found]


@pytest.mark.parametrize("at", [1, 50, 208, 417, 1000, 2999])
@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (SPEECH["mp3"], ("MP3", "audio/mpeg", "mp3")),
        (LAYER2, ("MPEG Layer II", "audio/mpeg", "mp2")),
        (SPEECH["flac"], ("FLAC", "audio/flac", "flac")),
    ],
    ids=["mp3", "layer II", "flac"],
)
async def test_cut_into(inspector: Inspector, sample: bytes, expected: tuple[str, str, str], at: int) -> None:
    """Begins with the first whole frame of a stream that was cut into anywhere."""
    assert expected == await upload(inspector, sample[200 + at :])


async def test_ogg_cut_into(inspector: Inspector) -> None:
    """Of joined OGG files the first of which was cut into, hears the second; of one alone it says so."""
    cut = SPEECH["ogg"][9_000:]
    page = cut[cut.index(b"OggS") :]

    for piece in (cut, page):
        assert ("Opus", "audio/ogg", "ogg") == await upload(inspector, piece + SPEECH["opus"])
        assert "a piece of an OGG stream without its beginning" in (await refusal(inspector, piece))[1]


@pytest.mark.parametrize("at", [1, 333, 60_000, None])
async def test_flac_in_ogg_cut_into(inspector: Inspector, at: int | None) -> None:
    """Hears FLAC in OGG from the first whole frame on, wherever it was cut into, the start of a page included."""
    sample = repacked(SPEECH["flac"], "ogg")

    assert ("FLAC", "audio/flac", "flac") == await upload(
        inspector, sample[at or sample.index(b"OggS", 60_000) :]
    )


@pytest.mark.parametrize("name", ["ogg", "flac"])
async def test_joined(inspector: Inspector, name: str) -> None:
    """Joined files of one kind are one recording."""
    found = await verdict(inspector, SPEECH[name] * 2)

    assert pytest.approx(2 * 6.0866, abs=0.05) == found.duration_seconds


def flac(rate: int = 44_100, layout: str = "mono") -> bytes:
    """Noise."""
    return encoded("flac", "flac", rate=rate, layout=layout)


DIFFERING = {
    "channels": (
        lambda: SPEECH["opus"] + encoded("ogg", "libopus", rate=48_000, layout="stereo"),
        "first Opus (mono), then Opus (stereo)",
    ),
    "rate, at last": (
        lambda: SPEECH["ogg"] * 2 + patched(SPEECH["ogg"], b"\x01vorbis", 5, struct.pack("<I", 22_050)),
        "first Vorbis (44100 Hz, mono), then Vorbis (22050 Hz, mono)",
    ),
    "codec": (lambda: SPEECH["ogg"] + SPEECH["opus"], "first Vorbis (44100 Hz, mono), then Opus (mono)"),
    "foreign codec": (lambda: SPEECH["opus"] + SPEEX, "first Opus (mono), then Speex"),
    "FLAC": (
        lambda: repacked(SPEECH["flac"], "ogg") + repacked(flac(), "ogg"),
        "first FLAC (44100 Hz, mono, 16 bit, blocks of 4096), then FLAC (44100 Hz, mono, 16 bit, blocks of 4608)",
    ),
    "bare FLAC": (
        lambda: flac() + id3() + flac(48_000, "stereo"),
        "first FLAC (44100 Hz, mono, 16 bit, blocks of 4608), then FLAC (48000 Hz, stereo, 16 bit, blocks of 4608)",
    ),
}


async def test_attached(inspector: Inspector) -> None:
    """A FLAC file that is attached to another is no part of the recording."""
    attached = b"ATCH" + flac(48_000, "stereo")
    head, tail = SPEECH["flac"][:42], SPEECH["flac"][42:]  # it begins with its mark and its STREAMINFO

    found = await verdict(inspector, head + b"\x02" + len(attached).to_bytes(3, "big") + attached + tail)

    assert pytest.approx(6.0866, abs=0.05) == found.duration_seconds


@pytest.mark.parametrize(("sample", "told"), DIFFERING.values(), ids=DIFFERING)
async def test_joined_that_differ(inspector: Inspector, sample: Making, told: str) -> None:
    """Joined files of which some decoders hear the first alone are refused, not measured wrongly."""
    kind, message = await refusal(inspector, sample())

    assert "SampleUnreadable" == kind
    assert f"it is joined recordings that differ, {told}: many decoders hear only the first" in message
    assert message.endswith("; send a single recording")


async def test_layer_two(inspector: Inspector) -> None:
    """Decodes MPEG Layer II, and names it so."""
    found = await verdict(inspector, LAYER2)

    assert ("mp2", "audio/mpeg", "mp2") == (found.format, found.media_type, found.extension)
    assert pytest.approx(3.5, abs=0.05) == found.duration_seconds


# --- WebM and Matroska


def element(name: str, content: bytes, width: int = 1) -> bytes:
    """An element of EBML whose length takes so many bytes."""
    return bytes.fromhex(name) + (len(content) | 1 << 7 * width).to_bytes(width, "big") + content


def headed(*elements: bytes, width: int = 1, unknown: bool = False) -> bytes:
    """Speech as WebM, with another EBML header."""
    content = b"".join(elements)
    length = (1 << 7 * width + 1) - 1 if unknown else len(content) | 1 << 7 * width
    sound = SPEECH["webm"][SPEECH["webm"].index(SEGMENT) :]
    return b"\x1a\x45\xdf\xa3" + length.to_bytes(width, "big") + content + sound


VERSIONS = (
    element("4286", b"\x01") + element("42f7", b"\x01") + element("4287", b"\x04") + element("4285", b"\x02")
)
WEBM = element("4282", b"webm")
HEADERS = {
    **{f"a doctype with a length of {width} bytes": headed(VERSIONS, element("4282", b"webm", width)) for width in range(1, 9)},
    **{f"a header with a length of {width} bytes": headed(VERSIONS, WEBM, width=width) for width in range(1, 9)},
    "a doctype that ends with a zero": headed(VERSIONS, element("4282", b"webm\x00")),
    "a doctype that ends with zeros": headed(element("4282", b"webm\x00\x00\x00\x00", 8), VERSIONS),
    "a void in front": headed(element("ec", bytes(40)), VERSIONS, WEBM),
    "a wide void in front": headed(element("ec", bytes(300), 8), VERSIONS, WEBM, width=8),
    "a checksum in front": headed(element("bf", b"abcd"), VERSIONS, WEBM),
    "nothing but a doctype": headed(WEBM),
    "a header of unknown length": headed(VERSIONS, WEBM, unknown=True),
    "a header of unknown length in 8 bytes": headed(VERSIONS, WEBM, width=8, unknown=True),
    "a segment of unknown length": patched(SPEECH["webm"], SEGMENT, 0, b"\x01" + b"\xff" * 7),
    "GStreamer's": GSTREAMER,
}  # fmt: skip


@pytest.mark.parametrize("sample", HEADERS.values(), ids=HEADERS)
async def test_webm(inspector: Inspector, sample: bytes) -> None:
    """Takes WebM with its header in any legal spelling."""
    assert ("Opus", "audio/webm", "webm") == await upload(inspector, sample)


@pytest.mark.parametrize(
    ("codec", "rate", "name"),
    [
        ("libopus", 48000, "Opus"),
        ("aac", 44100, "AAC"),
        ("libmp3lame", 44100, "MP3"),
        ("pcm_f32le", 44100, "PCM"),
        ("pcm_s16be", 44100, "PCM"),
    ],
)
async def test_matroska(inspector: Inspector, codec: str, rate: int, name: str) -> None:
    """Takes Matroska, whatever of the voice is in it, and calls it so."""
    sample = encoded("matroska", codec, seconds=4, rate=rate)

    assert (name, "audio/x-matroska", "mka") == await upload(inspector, sample)


# --- MP4, QuickTime, WAV


def without_ftyp(sample: bytes) -> bytes:
    """The file without its first box, which nothing behind it may point past."""
    size = int.from_bytes(sample[:4], "big")
    # "free" in its place moves nothing.
    return sample[:4] + b"free" + sample[8:size] + sample[size:]


@cache
def quicktime() -> bytes:
    """A QuickTime file."""
    return encoded("mov", "pcm_s16be", seconds=4)


BOXES = {
    "ftyp": quicktime,
    "free": lambda: without_ftyp(quicktime()),
    "wide": lambda: struct.pack(">I4sI4s", 8, b"wide", 12, b"free") + without_ftyp(quicktime())[16:],
    "skip": lambda: patched(without_ftyp(quicktime()), b"", 4, b"skip"),
    "mdat": lambda: quicktime()[int.from_bytes(quicktime()[:4], "big") :],
}


@pytest.mark.parametrize("sample", BOXES.values(), ids=BOXES)
async def test_quicktime(inspector: Inspector, sample: Making) -> None:
    """Takes QuickTime with whatever box it begins."""
    assert ("PCM", "video/quicktime", "mov") == await upload(inspector, sample())


@pytest.mark.parametrize(
    ("container", "codec", "rate", "expected"),
    [
        ("ipod", "aac", 44100, ("AAC", "audio/mp4", "m4a")),
        ("ipod", "alac", 44100, ("ALAC", "audio/mp4", "m4a")),
        ("mp4", "libopus", 48000, ("Opus", "audio/mp4", "m4a")),
        ("mp4", "libmp3lame", 44100, ("MP3", "audio/mp4", "m4a")),
        ("mov", "adpcm_ima_qt", 44100, ("IMA ADPCM", "video/quicktime", "mov")),
        ("ogg", "libopus", 16000, ("Opus", "audio/ogg", "ogg")),
        ("wav", "pcm_s24le", 192000, ("PCM", "audio/wav", "wav")),
        ("wav", "pcm_f64le", 48000, ("PCM", "audio/wav", "wav")),
        ("wav", "pcm_f32le", 16000, ("PCM", "audio/wav", "wav")),
        ("wav", "pcm_alaw", 16000, ("A-law", "audio/wav", "wav")),
        ("wav", "pcm_mulaw", 16000, ("mu-law", "audio/wav", "wav")),
        ("wav", "adpcm_ms", 44100, ("Microsoft ADPCM", "audio/wav", "wav")),
        ("wav", "libmp3lame", 44100, ("MP3", "audio/wav", "wav")),
        ("mp2", "mp2", 48000, ("MPEG Layer II", "audio/mpeg", "mp2")),
    ],
)
async def test_sent_on_as(
    inspector: Inspector, container: str, codec: str, rate: int, expected: tuple[str, str, str]
) -> None:
    """Names a file by its content."""
    assert expected == await upload(inspector, encoded(container, codec, seconds=4, rate=rate))


@pytest.mark.parametrize(
    ("name", "container", "expected"),
    [
        ("flac", "ogg", ("FLAC", "audio/ogg", "ogg")),
        ("flac", "matroska", ("FLAC", "audio/x-matroska", "mka")),
        ("flac", "mp4", ("FLAC", "audio/mp4", "m4a")),
        ("ogg", "webm", ("Vorbis", "audio/webm", "webm")),
        ("opus", "mp4", ("Opus", "audio/mp4", "m4a")),
        ("mp3", "mov", ("MP3", "video/quicktime", "mov")),
    ],
)
async def test_repacked(
    inspector: Inspector, name: str, container: str, expected: tuple[str, str, str]
) -> None:
    """Hears a codec in each of the containers that it comes in."""
    assert expected == await upload(inspector, repacked(SPEECH[name], container))


@pytest.mark.parametrize(
    ("container", "codec", "expected"),
    [
        ("mp4", "aac", ("AAC", "video/mp4", "mp4")),
        ("mov", "aac", ("AAC", "video/quicktime", "mov")),
        ("matroska", "aac", ("AAC", "video/x-matroska", "mkv")),
    ],
)
async def test_video(
    inspector: Inspector, container: str, codec: str, expected: tuple[str, str, str]
) -> None:
    """A video with sound is sent on as a video."""
    assert expected == await upload(inspector, encoded(container, codec, seconds=4, video=True))


@cache
def fragmented() -> bytes:
    """MP4 as Safari records it: piece by piece, with no length in front."""
    return encoded(
        "mp4", "aac", seconds=4, options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"}
    )


async def test_fragmented(inspector: Inspector) -> None:
    """Hears all pieces of an MP4 that was written while it was recorded."""
    found = await verdict(inspector, fragmented())

    assert ("m4a", "audio/mp4") == (found.format, found.media_type)
    assert pytest.approx(4.0, abs=0.1) == found.duration_seconds


async def test_index_at_the_end(inspector: Inspector) -> None:
    """An MP4 that was not made for streaming is one all the same."""
    sample = encoded("mp4", "aac", seconds=4)

    assert sample.index(b"mdat") < sample.index(b"moov")
    assert ("AAC", "audio/mp4", "m4a") == await upload(inspector, sample)


def wav64(sound: bytes, mark: bytes) -> bytes:
    """A WAV file whose lengths stand in 64 bits."""
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 72 + len(sound), len(sound), len(sound) // 2, 0)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 44100, 88200, 2, 16)
    return mark + b"\xff" * 4 + b"WAVE" + sizes + form + b"data" + b"\xff" * 4 + sound


def extensible(sound: bytes, bits: int = 16, width: int = 16) -> bytes:
    """A WAV file that tells its format by a GUID: so many bits of each sample, padded to a width."""
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    form = (
        struct.pack("<HHIIHHHHI", 0xFFFE, 1, 44100, 44100 * width // 8, width // 8, width, 22, bits, 4) + guid
    )
    chunks = b"fmt " + struct.pack("<I", 40) + form + b"data" + struct.pack("<I", len(sound)) + sound
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("mark", [b"RF64", b"BW64", b"RIFF"])
async def test_wav(inspector: Inspector, mark: bytes) -> None:
    """Takes WAV in its larger and its extended form."""
    sound = SPEECH["wav"][44:]
    sample = extensible(sound) if mark == b"RIFF" else wav64(sound, mark)

    assert ("PCM", "audio/wav", "wav") == await upload(inspector, sample)


# --- several tracks


@pytest.mark.parametrize("container", ["matroska", "mp4"])
async def test_second_track(inspector: Inspector, container: str) -> None:
    """Hears the second track where the first cannot be decoded here; that the first is meant would be a guess."""
    sample = encoded(container, "ac3", seconds=8, streams=2, second="aac")

    found = await verdict(inspector, sample)

    assert "AAC" == found.codec
    assert pytest.approx(4.0, abs=0.1) == found.duration_seconds


async def test_broken_first_track(inspector: Inspector) -> None:
    """Hears the second track where nothing of the first can be decoded."""
    sample = encoded("mp4", "aac", seconds=8, streams=2)
    broken = patched(sample, b"stsz", 8, struct.pack(">I", 0))  # no packet in the first track

    assert pytest.approx(4.0, abs=0.1) == (await verdict(inspector, broken)).duration_seconds


# --- what is no voice


def tone(seconds: float, dbfs: float = -12.0, *, rate: int = 44_100, hertz: float = 440.0) -> np.ndarray:
    """A sine whose level over time is so many decibels below full scale."""
    peak = 10 ** (dbfs / 20) * 2**0.5
    return peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def pcm(sound: np.ndarray, *, rate: int = 44_100, channels: int = 1) -> bytes:
    """A 16 bit WAV file."""
    return recording(np.round(sound * 32_767).astype("<i2"), rate=rate, channels=channels)


def nothing(seconds: float) -> np.ndarray:
    """Silence."""
    return np.zeros(int(seconds * 44_100))


def click(seconds: float) -> np.ndarray:
    """Silence with one click in it."""
    sound = nothing(seconds)
    sound[20_000:20_050] = 0.9
    return sound


def drift(seconds: float, hertz: float) -> np.ndarray:
    """An offset that wanders over most of full scale."""
    return 0.9 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 44_100)) / 44_100)


SILENT = {
    "nothing": (lambda: pcm(nothing(5)), "0.0 s of its 5.0 s"),
    "a click": (lambda: pcm(click(5)), "0.0 s of its 5.0 s"),
    "an offset": (lambda: pcm(nothing(5) + 0.5), "0.0 s of its 5.0 s"),
    "the largest offset": (lambda: pcm(nothing(5) - 1.0), "0.0 s of its 5.0 s"),
    "an offset of 8 bits": (lambda: recording(np.full(5 * 44_100, 127, "u1"), width=1), "0.0 s of its 5.0 s"),
    "an offset that jumps": (lambda: pcm(np.concatenate([nothing(2), nothing(3) + 0.3])), "0.0 s of its 5.0 s"),
    "an offset that drifts": (lambda: pcm(drift(5, 0.2)), "0.0 s of its 5.0 s"),
    "an offset that drifts faster": (lambda: pcm(drift(5, 1.0)), "0.0 s of its 5.0 s"),
    "an offset on one side": (
        lambda: pcm(np.stack([nothing(5) + 0.5, nothing(5)], 1).ravel(), channels=2), "0.0 s of its 5.0 s",
    ),
    "a float offset": (lambda: recording(np.full(5 * 44_100, 0.7, "<f4"), width=4, code=3), "0.0 s of its 5.0 s"),
    "no numbers": (lambda: recording(np.full(5 * 44_100, np.nan, "<f4"), width=4, code=3), "0.0 s of its 5.0 s"),
    "infinities": (lambda: recording(np.tile([np.inf, -np.inf], 110_250).astype("<f4"), width=4, code=3), "0.0 s of its 5.0 s"),
    "a beep": (lambda: pcm(np.concatenate([nothing(2), tone(0.2), nothing(3)])), "0.2 s of its 5.2 s"),
    "a word in a minute": (lambda: pcm(np.concatenate([nothing(30), tone(0.5), nothing(30)])), "0.5 s of its 60.5 s"),
    "too quiet": (lambda: pcm(tone(5, -50.5)), "0.0 s of its 5.0 s"),
    "nearly enough": (lambda: pcm(np.concatenate([tone(0.96), nothing(4.5)])), "0.9 s of its 5.5 s"),
    "silent Opus": (lambda: encoded("webm", "libopus", seconds=5, rate=48000, loud=False), "0.0 s of its 5.0 s"),
}  # fmt: skip


@pytest.mark.parametrize(("sample", "told"), SILENT.values(), ids=SILENT)
async def test_silent(inspector: Inspector, sample: Making, told: str) -> None:
    """Refuses what hardly sounds, and says how much of it does and how much is needed."""
    kind, message = await refusal(inspector, sample())

    assert (
        "SampleSilent",
        f"Voice sample is silent: {told} are louder than -50 dBFS, at least 1.0 s needed",
    ) == (
        kind,
        message,
    )


SOUNDING = {
    "quiet speech": lambda: pcm(np.frombuffer(SPEECH["wav"][44:], "<i2") / 32_768 * 0.05),
    "barely loud enough": lambda: pcm(tone(5, -49.5)),
    "a low voice": lambda: pcm(tone(5, -45, hertz=85)),
    "just enough": lambda: pcm(np.concatenate([nothing(3), tone(1.04)])),
    "in pieces": lambda: pcm(np.tile(np.concatenate([tone(0.1), nothing(0.3)]), 12)),
    "on an offset": lambda: pcm(tone(5, -40) + 0.8),
    "on a drifting offset": lambda: pcm(tone(5, -40) + drift(5, 0.2)),
    "on the right alone": lambda: pcm(np.stack([nothing(5), tone(5, -30)], 1).ravel(), channels=2),
    "on both sides, one turned round": lambda: pcm(np.stack([tone(5, -30), -tone(5, -30)], 1).ravel(), channels=2),
    "8 bits": lambda: recording(np.round(128 + 100 * tone(5, -20)).astype("u1"), width=1),
    "32 bits": lambda: recording((tone(5, -40) * 2**31).astype("<i4"), width=4),
    "64 bits": lambda: recording((tone(5, -40) * 2**62).astype("<i8"), width=8),
    "floats beyond full scale": lambda: recording((1000 * tone(5)).astype("<f4"), width=4, code=3),
    "doubles": lambda: recording(tone(5, -40).astype("<f8"), width=8, code=3),
    "numbers and none": lambda: recording(np.where(np.arange(220_500) % 7, tone(5), np.nan).astype("<f4"), width=4, code=3),
}  # fmt: skip


@pytest.mark.parametrize("sample", SOUNDING.values(), ids=SOUNDING)
async def test_sounding(inspector: Inspector, sample: Making) -> None:
    """Takes what sounds for long enough, however quiet it is and whatever it rides on."""
    await verdict(inspector, sample())


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.5])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6), (192_000, 1)])
async def test_how_much_sounds(inspector: Inspector, seconds: float, rate: int, channels: int) -> None:
    """Counts the windows that sound, at any rate and in any number of channels."""
    sound = np.zeros((4 * rate, channels))
    beep = tone(seconds, rate=rate)
    sound[1234 : 1234 + len(beep), -1] = beep

    found = await inspector.inspect(pcm(sound.ravel(), rate=rate, channels=channels))

    assert pytest.approx(seconds, abs=0.04) == found.sounding_seconds


# --- what is said of what cannot be taken

WAV_OF = {
    "G.722": recording(np.zeros(60_000, "u1"), rate=16_000, width=1, code=0x028F),
    "GSM": recording(np.zeros(60_000, "u1"), rate=8_000, width=1, code=0x1234),
}
TAKEN = (
    "send WAV (16, 24 or 32 bit PCM), MP3, OGG (Vorbis, Opus or FLAC), FLAC, M4A or MP4 (AAC, ALAC or Opus),"
    " or WebM"
)
FOREIGN = {
    "AMR": (lambda: b"#!AMR\n" + bytes(2_000), f"is AMR; {TAKEN}"),
    "AMR-WB": (lambda: b"#!AMR-WB\n" + bytes(2_000), f"is AMR-WB; {TAKEN}"),
    "AMR in 3GP": (lambda: encoded("3gp", "libopencore_amrnb", rate=8_000), f"holds AMR, which is not taken here; {TAKEN}"),
    "Speex": (lambda: SPEEX, f"holds Speex, which is not taken here; {TAKEN}"),
    "G.722": (lambda: WAV_OF["G.722"], f"holds G.722, which is not taken here; {TAKEN}"),
    "raw G.722": (lambda: encoded("g722", "g722", rate=16_000), "samples without a header, such as G.711, G.722 or PCM"),
    "AC-3": (lambda: encoded("ac3", "ac3"), f"is AC-3; {TAKEN}"),
    "E-AC-3": (lambda: encoded("eac3", "eac3"), f"is E-AC-3; {TAKEN}"),
    "AC-3 in WAV": (lambda: encoded("wav", "ac3"), f"holds AC-3, which is not taken here; {TAKEN}"),
    "AC-3 in WAV that says PCM": (lambda: recording(np.frombuffer(encoded("ac3", "ac3"), "<i2"), channels=2), f"holds AC-3, which is not taken here; {TAKEN}"),
    "AC-3 in MP4": (lambda: encoded("mp4", "ac3"), f"holds AC-3, which is not taken here; {TAKEN}"),
    "WMA": (lambda: encoded("asf", "libmp3lame"), f"is WMA or WMV (ASF); {TAKEN}"),
    "AIFF": (lambda: encoded("aiff", "pcm_s16be"), f"is AIFF; {TAKEN}"),
    "tagged AIFF": (lambda: id3() + encoded("aiff", "pcm_s16be"), f"is AIFF; {TAKEN}"),
    "CAF": (lambda: encoded("caf", "pcm_s16be"), f"is a Core Audio file (CAF); {TAKEN}"),
    "AU": (lambda: encoded("au", "pcm_s16be"), f"is AU; {TAKEN}"),
    "Wave64": (lambda: encoded("w64", "pcm_s16le"), f"is Wave64; {TAKEN}"),
    "AVI": (lambda: encoded("avi", "libmp3lame"), f"is AVI; {TAKEN}"),
    "FLV": (lambda: encoded("flv", "libmp3lame"), f"is Flash Video (FLV); {TAKEN}"),
    "MPEG-TS": (lambda: encoded("mpegts", "aac"), f"is an MPEG transport stream; {TAKEN}"),
    "bare AAC": (lambda: encoded("adts", "aac"), f"is a bare AAC stream (ADTS) in no container; {TAKEN}"),
    "bare AAC in LATM": (lambda: encoded("latm", "aac"), f"is a bare AAC stream (LATM) in no container; {TAKEN}"),
    "tagged bare AAC": (lambda: id3() + encoded("adts", "aac"), f"is a bare AAC stream (ADTS) in no container; {TAKEN}"),
    "MIDI": (lambda: b"MThd\x00\x00\x00\x06\x00\x01\x00\x02\x01\xe0MTrk" + bytes(50), "is MIDI, which is notes and no sound"),
    "video without sound": (lambda: encoded("mp4", "aac", streams=0, video=True), f"is a video without sound; {TAKEN}"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html><body>502</body></html>", f"is HTML, a web page; {TAKEN}"),
    "HTML behind a comment": (lambda: b"<!-- x -->\n<html lang=en>", f"is HTML, a web page; {TAKEN}"),
    "JSON": (lambda: b'{"error": "not found"}', f"is JSON text; {TAKEN}"),
    "XML": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', f"is XML; {TAKEN}"),
    "text": (lambda: b"Recording not available", f"is text; {TAKEN}"),
    "Latin-1 text": (lambda: "Enregistrement indisponible, désolé".encode("latin-1"), f"is text; {TAKEN}"),
    "UTF-16 text": (lambda: "Recording not available".encode("utf-16"), f"is text; {TAKEN}"),
    "base64": (lambda: base64.b64encode(SPEECH["mp3"]), "is base64 text: send the bytes it stands for"),
    "base64 in lines": (lambda: base64.encodebytes(SPEECH["mp3"]), "is base64 text: send the bytes it stands for"),
    "base64 for URLs": (lambda: base64.urlsafe_b64encode(SPEECH["wav"]), "is base64 text: send the bytes it stands for"),
    "a data URL": (
        lambda: b"data:audio/webm;codecs=opus;base64," + base64.b64encode(SPEECH["webm"]),
        "is text, a data: URL: send the bytes it stands for",
    ),
    "hexadecimal": (lambda: SPEECH["opus"].hex().encode(), "is hexadecimal text: send the bytes it stands for"),
    "a URL": (lambda: b"https://example.com/voice.mp3\n", "is text, a URL: send the bytes behind it"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:9,\nvoice.mp3\n", "is a playlist, which names recordings and holds none"),
    "a ZIP archive": (lambda: b"PK\x03\x04" + bytes(100), f"is a ZIP archive; {TAKEN}"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), f"is a picture; {TAKEN}"),
    "encrypted": (lambda: b"Salted__" + random.Random(1).randbytes(5_000), f"is encrypted; {TAKEN}"),
    "noise": (lambda: random.Random(1).randbytes(50_000), "is of no known format (perhaps it is encrypted,"),
    "an encrypted MP4": (
        lambda: patched(SPEECH["m4a"], b"mp4a", -4, b"enca"), f"is encrypted; {TAKEN}, without copy protection",
    ),
    "an MP4 that is cut short": (lambda: encoded("mp4", "aac", seconds=5)[:20_000], "is an MP4 without its index (moov)"),
    **{
        f"{name} {how}": (lambda name=name, made=made: made(SPEECH[name]).encode(), "was taken for text on its way")
        for name in ("wav", "mp3", "ogg", "opus", "flac", "m4a", "webm")
        for how, made in (
            ("read as UTF-8", lambda sample: sample.decode(errors="replace")),
            ("read as Latin-1", lambda sample: sample.decode("latin-1")),
            ("written as ASCII", lambda sample: sample.decode("latin-1").encode("ascii", "replace").decode()),
        )
    },
    "a piece of WebM": (lambda: SPEECH["webm"][SPEECH["webm"].index(b"\x1f\x43\xb6\x75") :], "is a piece of a WebM recording"),
    "WebM that was cut into": (lambda: SPEECH["webm"][5_000:], "is a piece of a WebM recording without its beginning"),
    "Opus that was cut into": (lambda: SPEECH["opus"][5_000:], "is a piece of an OGG stream without its beginning"),
    "a piece of MP4": (
        lambda: fragmented()[fragmented().index(b"moof") - 4 :],
        "is a piece of an MP4 recording without its beginning; send all of its pieces, joined",
    ),
    "WebM that is cut short": (lambda: SPEECH["webm"][:300], "cannot be decoded: it is damaged or cut short"),
    "an unknown codec": (lambda: WAV_OF["GSM"], f"holds an unknown codec, which is not taken here; {TAKEN}"),
    "PCM of another kind": (
        lambda: recording(np.zeros(60_000, "<i4"), width=4).replace(b"\x20\x00data", b"\x18\x00data", 1),
        f"holds PCM of the kind pcm_f24le, which is not taken here; {TAKEN}",
    ),
    **{
        f"{bits} of {width} bits": (
            lambda bits=bits, width=width: extensible(SPEECH["wav"][44:], bits, width),
            f"holds {bits} bit PCM padded to {width} bits, which many decoders misread; {TAKEN}",
        )
        for bits, width in ((24, 32), (20, 32), (16, 32), (16, 24))
    },
    "nine channels": (
        lambda: recording(np.zeros(90_000, "<i2"), channels=9),
        "holds PCM in 9 channels, more than 8; send mono or stereo",
    ),
    "nothing": (lambda: b"", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("sample", "told"), FOREIGN.values(), ids=FOREIGN)
async def test_told(inspector: Inspector, sample: Making, told: str) -> None:
    """Says what came, and what to send instead."""
    kind, message = await refusal(inspector, sample())

    assert "SampleUnreadable" == kind
    assert message.startswith("Voice sample unreadable: it ")
    assert told in message


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [("pcm_mulaw", "wav", "mu-law"), ("pcm_alaw", "wav", "A-law"), ("pcm_s16le", "wav", "PCM")],
)
async def test_telephone(inspector: Inspector, codec: str, container: str, name: str) -> None:
    """Names the rate, the codec and the setting that would let a telephone's recording in."""
    kind, message = await refusal(inspector, encoded(container, codec, seconds=4, rate=8_000))

    assert ("SampleRateTooLow", True) == (
        kind,
        f"8000 Hz, at least 16000 Hz needed; this is 4.0 s of {name}" in message,
    )
    assert "VOICE_CLONE_MIN_SAMPLE_RATE" in message


async def test_opus_reads_as_48_khz(inspector: Inspector) -> None:
    """What an Opus encoder was fed with does not show."""
    assert 48_000 == (await verdict(inspector, encoded("ogg", "libopus", seconds=4, rate=8_000))).sample_rate


@pytest.mark.parametrize(
    ("sample", "kind", "told"),
    [
        (lambda: pcm(tone(2.1)), SampleTooShort, "Voice sample too short: 2.1 s, at least 3.0 s needed"),
        (
            lambda: encoded("flac", "flac", seconds=602, rate=8_000, loud=False),
            SampleTooLong,
            "more than the 600.0 s allowed",
        ),
        (lambda: pcm(tone(4, rate=8_000), rate=8_000), SampleRateTooLow, "8000 Hz, at least 16000 Hz needed"),
        (lambda: pcm(nothing(4)), SampleSilent, "0.0 s of its 4.0 s"),
    ],
    ids=["short", "long", "rate", "silent"],
)
async def test_limits(inspector: Inspector, sample: Making, kind: type[SampleRefused], told: str) -> None:
    """Each limit is told with what was found and what is needed."""
    name, message = await refusal(inspector, sample())

    assert (kind.__name__, True) == (name, told in message)


# --- what hostile bytes can do


@cache
def foreign() -> list[bytes]:
    """All that is not taken, made once in a process."""
    return [make() for make, _ in FOREIGN.values()]


@pytest.mark.parametrize("seed", range(4))
async def test_mutated(seed: int) -> None:
    """Whatever is changed, cut out, joined or repeated in a recording of any kind: an answer or a refusal."""
    chance = random.Random(seed)
    seeds = [*SPEECH.values(), GSTREAMER, LAYER2, SPEEX, quicktime(), id3() + SPEECH["webm"]]
    seeds += [sample for sample in foreign() if 100 < len(sample) < 500_000]
    outcomes = set[type]()
    async with Inspector(workers=1, max_seconds=60.0) as inspector:

        async def look(sample: bytes) -> None:
            try:
                outcomes.add(type(await inspector.inspect(sample)))
            except SampleUnreadable as refused:
                outcomes.add(type(refused))

        for _ in range(20):
            await asyncio.gather(*(look(_mutated(chance, seeds)) for _ in range(4)))
        again = await inspector.inspect(SPEECH["wav"])

    assert outcomes <= {Finding, SampleUnreadable}
    assert "wav" == again.format


def _mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    sample = bytearray(chance.choice(seeds))
    reach = chance.choice([32, 200, 2_000, len(sample)])
    for _ in range(chance.choice([0, 1, 4, 40])):
        sample[chance.randrange(min(reach, len(sample)))] = chance.choice(
            [0, 0x7F, 0x80, 0xFF, chance.randrange(256)]
        )
    if chance.random() < 0.3:
        at = chance.randrange(len(sample))
        del sample[at : at + chance.choice([1, 8, 999, len(sample)])]
    if chance.random() < 0.3:
        other = chance.choice(seeds)
        at = chance.randrange(len(sample) + 1)
        sample[at:at] = other[: chance.choice([4, 64, 4_000])]
    if chance.random() < 0.1:
        sample *= 3
    return bytes(sample)
