"""Reads a recording that is base64 in JSON, or says what else is there."""

import re

import msgspec
import pybase64
from msgspec import Raw

__all__ = ["NotBase64", "decode"]

# What a browser's readAsDataURL puts in front of the base64: "data:video/webm;codecs=vp8,opus;base64,".
DATA_URL = re.compile(rb"\s*data:[ -~]*?;\s*base64\s*,", re.IGNORECASE)
MAX_PREFIX = 300
LOOKED_AT = 4_096
TEXT = "text that is not base64"

# With a digit near the start, because silence in base64 is only letters: "AAAA".
HEXADECIMAL = re.compile(rb"(?=[a-zA-Z]{,60}[0-9])(0x)?([0-9a-f]{24,}|[0-9A-F]{24,})")
LETTERS = r"A-Za-z0-9"
SUFFIXES = "wav|mp3|ogg|oga|opus|flac|m4a|mp4|webm|aac|amr|aiff?|raw|pcm"

# What the text begins with or consists of, and what it is.
TEXTS = tuple(
    (re.compile(mark, re.IGNORECASE | re.DOTALL), name)
    for mark, name in (
        (r"(?:https?|ftp|s3|gs|blob|file):[^\0-\x1f]+$", "a URL: send the recording behind it"),
        (r"data:[^,]{0,300};\s*base64\s*,", "a data: URL whose base64 cannot be read"),
        (r"data:", "a data: URL that is not in base64"),
        (r"<!doctype html|<(?:html|head|body)\b|.{,1000}<html\b", "HTML, a web page"),
        (r"<", "XML"),
        (r"[{\[]", "JSON text"),
        (r"b'|b\"", "bytes as Python prints them"),
        (r"[\"']", "in quotes of its own"),
        (r"(?:0x)?(?:[0-9a-f]{2}[\s:]?){12,}$", "hexadecimal text"),
        (rf"(?=.*%)(?:[{LETTERS}+/=]|%(?:2b|2f|3d))+$", "percent-encoded"),
        (rf"[^\0-\x1f]{{1,300}}\.(?:{SUFFIXES})$", "the name of a file: send what the file holds"),
        (rf"[{LETTERS}_-]+={{,2}}$", 'URL-safe base64, with "-" and "_"'),
    )
)
# How values begin that are not strings.
VALUES = {
    "{": "a JSON object",
    "[": "a JSON list",
    "t": "true",
    "f": "false",
    "n": "null",
}


class NotBase64(Exception):
    """The value is something else. The text says what, to follow the word "is", and quotes nothing of it."""


def decode(token: Raw) -> bytes:
    """The bytes behind a JSON string, from its raw token. Raises NotBase64."""
    text = memoryview(token)
    if bytes(text[:1]) != b'"':
        raise NotBase64(VALUES.get(bytes(text[:1]).decode(), "a number"))
    try:
        _refuse_hexadecimal(text[1:-1])
        return pybase64.b64decode(text[1 + _prefix_length(bytes(text[1:MAX_PREFIX])) : -1], validate=True)
    except ValueError:
        pass
    # Some senders write "\/" for "/", or break the text into lines.
    try:
        read = msgspec.json.decode(token, type=str)
    except ValueError:
        raise NotBase64(TEXT) from None
    if _has_lost_signs(read):
        raise NotBase64('base64 with spaces where "+" stood, as a form leaves it that is not encoded')
    try:
        written = "".join(read.split()).encode("ascii")
        _refuse_hexadecimal(written)
        return pybase64.b64decode(written[_prefix_length(written[:MAX_PREFIX]) :], validate=True)
    except ValueError:
        raise NotBase64(_describe(read.strip())) from None


def _has_lost_signs(text: str) -> bool:
    """Whether each "+" has become a space, which a reader of base64 would skip and then find other bytes.

    If a shell has joined lines by spaces, all lines but the last have the same length.
    """
    if "+" in text or "/" not in text or " " not in text.strip():
        return False
    pieces = text.split()
    even = len({*map(len, pieces[:-1])}) < 2
    return not even and re.fullmatch(rf"[{LETTERS}/]+={{,2}}", "".join(pieces)) is not None


def _refuse_hexadecimal(written: bytes | memoryview) -> None:
    """Raises NotBase64 for hexadecimal digits, which can be read as base64 of something else."""
    if HEXADECIMAL.fullmatch(written):
        raise NotBase64("hexadecimal text")


def _prefix_length(head: bytes) -> int:
    """The length of the prefix "data:audio/wav;base64," that browsers write; 0 where there is none."""
    prefix = DATA_URL.match(head)
    return prefix.end() if prefix else 0


def _describe(text: str) -> str:
    """What a text is that is not base64."""
    written = "".join(text.split())
    if re.fullmatch(rf"[{LETTERS}+/]+={{,2}}", written):
        return f"base64 that is cut short or lacks its padding, of {len(written)} characters"
    return next((name for mark, name in TEXTS if mark.match(text[:LOOKED_AT])), TEXT)
