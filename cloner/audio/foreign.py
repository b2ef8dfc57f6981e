"""Names the format of a sample that we do not accept, so that its sender learns what went wrong."""

import base64
import binascii
import codecs
import re
from mmap import mmap

__all__ = ["CODECS", "foreign_kind", "foreign_stream", "is_ascii", "went_as_text"]

# First bytes of files, and the formats they mean. The first match counts.
MARKS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(mark, re.DOTALL), name)
    for mark, name in (
        (rb"FORM....AIF[FC]", "AIFF"),
        (rb"FORM....8SVX", "8SVX"),
        (rb"caff", "a Core Audio file (CAF)"),
        (rb"#!AMR-WB", "AMR-WB"),
        (rb"#!AMR", "AMR"),
        (rb"#!EVC|#!SILK|\x02#!SILK", "SILK or EVS, a telephone codec"),
        (rb"MThd|RIFF....RMID", "MIDI, which is notes and no sound"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or WMV (ASF)"),
        (rb"\.snd|dns\.", "AU"),
        (rb"riff\x2e\x91\xcf\x11", "Wave64"),
        (rb"RIFX|FFIR", "WAV with its bytes the other way round (RIFX)"),
        (rb"RIFF....AVI ", "AVI"),
        (rb"RIFF....WEBP", "a picture (WebP)"),
        (rb"wvpk", "WavPack"),
        (rb"TTA[12]", "True Audio (TTA)"),
        (rb"MAC ", "Monkey's Audio"),
        (rb"MPCK|MP\+", "Musepack"),
        (rb"DSD |FRM8", "DSD"),
        (rb"Creative Voice File", "VOC"),
        (rb"NIST_1A", "NIST SPHERE"),
        (rb"\.ra\xfd|\.RMF", "RealAudio"),
        (rb"ADIF", "a bare AAC stream (ADIF) in no container"),
        (rb"\x56[\xe0-\xff].\x20\x00", "a bare AAC stream (LATM) in no container"),
        (rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8", "DTS"),
        (rb"FLV\x01", "Flash Video (FLV)"),
        (rb"\x47.{187}\x47.{187}\x47", "an MPEG transport stream"),
        (rb"\x00\x00\x01[\xba\xb3]", "an MPEG program stream"),
        (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive"),
        (rb"\x1f\x8b\x08", "compressed with gzip"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!|BZh[1-9]1AY|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive"),
        (rb"%PDF-", "a PDF"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|BM....\x00\x00\x00\x00|II\x2a\x00|MM\x00\x2a", "a picture"),
        (rb"Salted__|age-encryption\.org|-----BEGIN PGP", "encrypted"),
        (rb"\x7fELF|MZ.{58}\x00\x00", "a program"),
        (rb"SQLite format 3", "a database"),
    )
)

# These marks are so short that other streams begin with them too, so they are tried last.
SHORT_MARKS = (
    (re.compile(rb"\x0b\x77...[\x58-\xff]", re.DOTALL), "E-AC-3"),
    (re.compile(rb"\x0b\x77"), "AC-3"),
)

# Everyday names of codecs that ffmpeg calls otherwise.
CODECS = {
    "aac": "AAC",
    "ac3": "AC-3",
    "ac4": "AC-4",
    "adpcm_ima_qt": "IMA ADPCM",
    "adpcm_ima_wav": "IMA ADPCM",
    "adpcm_ms": "Microsoft ADPCM",
    "alac": "ALAC",
    "amr_nb": "AMR",
    "amr_wb": "AMR-WB",
    "amrnb": "AMR",
    "amrwb": "AMR-WB",
    "dca": "DTS",
    "dts": "DTS",
    "eac3": "E-AC-3",
    "evrc": "EVRC",
    "flac": "FLAC",
    "g722": "G.722",
    "g723_1": "G.723.1",
    "g726": "G.726",
    "g726le": "G.726",
    "g728": "G.728",
    "g729": "G.729",
    "gsm": "GSM",
    "gsm_ms": "GSM",
    "ilbc": "iLBC",
    "libopencore_amrnb": "AMR",
    "libopencore_amrwb": "AMR-WB",
    "mp2": "MPEG Layer II",
    "mp2float": "MPEG Layer II",
    "mp3": "MP3",
    "mp3float": "MP3",
    "opus": "Opus",
    "pcm_alaw": "A-law",
    "pcm_mulaw": "mu-law",
    "qcelp": "QCELP",
    "speex": "Speex",
    "truehd": "TrueHD",
    "vorbis": "Vorbis",
    "wavpack": "WavPack",
    "wmalossless": "WMA",
    "wmapro": "WMA",
    "wmav1": "WMA",
    "wmav2": "WMA",
    "wmavoice": "WMA",
}

LOOKED_AT = 4_096
BEYOND_PADDING = 65_536
LEAST_CHARACTERS = 16
LEAST_BASE64 = 24
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")

# What a text begins with or consists of, and its name.
TEXTS = tuple(
    (re.compile(mark, re.IGNORECASE | re.DOTALL), name)
    for mark, name in (
        (r"data:[ -~]{0,200}?;\s*base64\s*,", "text, a data: URL: send the bytes it stands for"),
        (r"https?://\S+$", "text, a URL: send the bytes behind it"),
        (r"<!doctype html|<(html|head|body)\b|.{,1000}<html\b", "HTML, a web page"),
        (r"<", "XML"),
        (r"#extm3u|ffconcat|\[playlist\]", "a playlist, which names recordings and holds none"),
        (r"[{\[]", "JSON text"),
        (r"(?:0x)?[0-9a-f\s]{24,}$", "hexadecimal text: send the bytes it stands for"),
    )
)


def foreign_kind(data: mmap | bytes, at: int) -> str | None:
    """The name of what begins here, to follow the word "is"; None if it is not recognised."""
    head = data[at : at + LOOKED_AT]
    for mark, name in MARKS:
        if mark.match(head):
            return name
    return _text_kind(head, whole=len(data) - at <= LOOKED_AT)


def foreign_stream(data: mmap | bytes, at: int) -> str | None:
    """The name of a stream that may begin here, if it is certainly none of our formats."""
    head = data[at : at + LOOKED_AT]
    return next((name for mark, name in SHORT_MARKS if mark.match(head)), None)


def went_as_text(data: mmap | bytes) -> bool:
    """Whether binary data was converted to UTF-8 or ASCII as if it were text, which damages it."""
    head = data[:BEYOND_PADDING]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, len(head) == len(data))
    except UnicodeDecodeError:
        return False
    # Zeros and quiet samples without a header may be valid UTF-8 too, but hold fewer characters beyond ASCII.
    # In ASCII a question mark stands for each of them.
    beyond = len(text) - sum(map(str.isascii, text)) or text.count("?")
    return CONTROLS.search(text) is not None and beyond >= max(LEAST_CHARACTERS, len(text) // 20)


def is_ascii(data: mmap | bytes) -> bool:
    """Whether no byte has its highest bit set, as in no sound unless something took these bytes away."""
    return all(data[at : at + BEYOND_PADDING].isascii() for at in range(0, len(data), BEYOND_PADDING))


def _text_kind(head: bytes, *, whole: bool) -> str | None:
    for encoding in ("utf-16",) if head.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8", "latin-1"):
        try:
            # Unless the text is whole, its last character may be cut in two.
            text = codecs.getincrementaldecoder(encoding)().decode(head, whole).strip()
        except UnicodeDecodeError:
            continue
        if text and not CONTROLS.search(text) and (encoding != "latin-1" or _is_latin(text)):
            return _text_sort(text)
    return None


def _is_latin(text: str) -> bool:
    """Whether most of it is plain letters, as in every language that is written so."""
    return 2 * sum(map(str.isascii, text)) > len(text)


def _text_sort(text: str) -> str:
    if _is_base64(text):
        return "base64 text: send the bytes it stands for"
    return next((name for mark, name in TEXTS if mark.match(text)), "text")


def _is_base64(text: str) -> bool:
    written = "".join(text.split()).strip("\"'").replace("-", "+").replace("_", "/").rstrip("=")
    if len(written) < LEAST_BASE64 or " " in text.strip():
        return False
    try:
        base64.b64decode(written[: len(written) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        return False
    # A long word is base64 as well, and so are hexadecimal figures.
    return (
        re.search(r"[0-9+/]|[a-z][A-Z]", written) is not None and re.search(r"[g-zG-Z]", written) is not None
    )
