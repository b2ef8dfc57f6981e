"""Takes named parts out of a multipart/form-data body."""

import re
from collections.abc import Collection

import multipart

__all__ = [
    "MAX_HEADER",
    "MAX_HEADERS",
    "MAX_PARTS",
    "FormBroken",
    "FormTooLarge",
    "PartRepeated",
    "options",
    "parts",
]

# More than anybody sends: a sender may pass on everything that a telephone line told it of a call.
MAX_PARTS = 128
MAX_HEADERS = 32
MAX_HEADER = 4096
MAX_BOUNDARY = 200  # RFC 2046 allows 70.
# The name, if it comes first, as nearly everybody sends it: then nothing in the filename can be mistaken for
# it.
NAME_FIRST = re.compile(r'form-data *; *name *= *(?:"([^"\\]*)"|([^\s;"]+)) *(?:;|$)', re.IGNORECASE)


class FormBroken(Exception):
    """The body is not the form that its header announces, or it is cut short."""


class FormTooLarge(Exception):
    """The form has more parts or headers than are read, or a header is too long."""


class PartRepeated(Exception):
    """A part came twice that may come once."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def options(header: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case, and its options: `text/x; a=b` is ("text/x", {"a": "b"})."""
    value, given = multipart.parse_options_header(header)
    return value, dict(given)


def parts(body: bytes, boundary: str, names: Collection[str]) -> dict[str, bytes]:
    """The content of each named part that the form holds; other parts are skipped.

    Only the name in a part's headers counts: the filename may be missing, or be anything. Raises FormBroken,
    FormTooLarge and PartRepeated.
    """
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise FormBroken
    found: dict[str, bytes] = {}
    name = ""
    try:
        with multipart.PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER,
            max_header_count=MAX_HEADERS,
            max_segment_count=MAX_PARTS,
            # Filenames come in any charset, and in Latin-1 every byte is a character.
            header_charset="latin-1",
        ) as parser:
            # Parsed in one piece, so that a part is copied out of the body once and never joined.
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    name = written if (written := _name(event)) in names else ""
                    if name in found:
                        raise PartRepeated(name)
                    if name:
                        found[name] = b""
                elif name and event:
                    found[name] += event
    except multipart.ParserLimitReached:
        raise FormTooLarge from None
    except multipart.MultipartError:
        raise FormBroken from None
    return found


def _name(part: multipart.MultipartSegment) -> str:
    first = NAME_FIRST.match(part.header("Content-Disposition", ""))
    return first[1] or first[2] or "" if first else part.name or ""
