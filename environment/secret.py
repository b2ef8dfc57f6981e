"""Secrets: which texts are accepted, where they come from, and how they stay hidden.

A secret that arrives damaged (in quotes, with a line end in it, with an invisible character) works nowhere,
and nobody can tell why from a refused request. So it is refused when it is read.
"""

import re
import typing
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

__all__ = [
    "ApiKey",
    "Key",
    "Secret",
    "SecretUrl",
    "Token",
    "check_ends",
    "check_quotes",
    "file_text",
    "secret_text",
    "takes_file",
    "text_of",
]

SHORTEST = 16

BOM = b"\xef\xbb\xbf"
PLAIN_QUOTES = "\"'`"
# In every language another pair of them, and some use one of them twice.
TYPOGRAPHIC_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb"
# Letters, marks and symbols that are drawn as nothing at all.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]")
# What docker-compose.yml holds, and what documents of all kinds say in place of a secret.
PUBLISHED = re.compile(
    r"everybody-knows|change[-_ ]?(me|this)|your[-_ ](secret|token|key)|^<.*>$", re.IGNORECASE
)


class Secret:
    """A text that does not show itself in a log line, a `repr` or a format string."""

    __slots__ = ("_text",)

    shortest: ClassVar[int] = 1
    """How many visible characters it needs at least."""
    largest: ClassVar[int] = 65_536
    """How many bytes its file may have."""
    alphabet: ClassVar[re.Pattern[str] | None] = None
    """The characters that it may consist of; None for all that are visible."""

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads an operator's text. Raises ValueError, which says what is wrong without the text."""
        check_ends(text)
        if cls.alphabet is not None:
            if not cls.alphabet.fullmatch(text):
                raise ValueError(
                    f"must be printable ASCII{'' if cls.alphabet.match(' ') else ' without spaces'}"
                )
        elif not all(_is_seen(character) for character in text):
            raise ValueError("must not hold characters that cannot be seen")
        if sum(_counts(character) for character in text) < cls.shortest:
            raise ValueError(f"must be at least {cls.shortest} characters")
        return cls(text)

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    @property
    def is_published(self) -> bool:
        """Whether it stands in this project's own files, and so is no secret."""
        return self.shortest > 1 and PUBLISHED.search(self._text) is not None

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class ApiKey(Secret):
    """A key that another company made, and that goes into a header."""

    __slots__ = ()
    alphabet = re.compile(r"[!-~]+")


class Token(Secret):
    """A secret of ours that goes into a header, after the word "Bearer"."""

    __slots__ = ()
    shortest = SHORTEST
    alphabet = re.compile(r"[ -~]+")

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads an operator's text. Raises ValueError, also for what a header holds as a whole."""
        token = super().read(text)
        if text.lower().startswith("bearer "):
            raise ValueError("must be the token alone, without Bearer before it")
        return token


class Key(Secret):
    """A secret of ours that signatures or hashes are computed with."""

    __slots__ = ()
    shortest = SHORTEST


class SecretUrl(str):
    """A URL that may hold a password, so that it may come from a file and shows itself in no `repr`."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Takes the URL as it is. Raises ValueError for what editors and shells add to it."""
        check_ends(text.strip())
        return cls(text.strip())

    def __repr__(self) -> str:
        return "SecretUrl(***)"


def takes_file(annotation: object) -> bool:
    """Whether a setting with this annotation may also come from a file that `<NAME>_FILE` names."""
    if isinstance(annotation, type) and issubclass(annotation, (Secret, SecretUrl)):
        return True
    return any(takes_file(part) for part in typing.get_args(annotation))


def secret_text(name: str, environ: Mapping[str, str], *, largest: int = Secret.largest) -> str | None:
    """The text of the variable, or of the file that `<NAME>_FILE` names; None where neither is set.

    Raises ValueError, which names the variable at fault.
    """
    text, path = environ.get(name, "").strip(" \t"), environ.get(f"{name}_FILE", "").strip()
    where = name
    if path:
        if text.strip():
            raise ValueError(f"{name} and {name}_FILE are both set: one of them has to go")
        where = f"{name}_FILE"
        try:
            text = text_of(Path(path), largest=largest)
        except ValueError as fault:
            raise ValueError(f"{where} {fault}") from fault
    if re.match(rf"(export\s+\w+|{name})\s*=", text):
        raise ValueError(f"{where} must be the value alone, without its name")
    return text if text.strip() else None


def text_of(path: Path, *, largest: int) -> str:
    """The content of a small file, as `file_text` has it. Raises ValueError, which says what is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as failure:
        why = failure.strerror if isinstance(failure, OSError) else "no file can have this name"
        raise ValueError(f"cannot be read ({why})") from failure
    if len(content) > largest:
        raise ValueError(f"is larger than {largest} bytes")
    try:
        text = file_text(content)
    except UnicodeDecodeError as failure:
        raise ValueError("must be UTF-8") from failure
    if not text.strip():
        raise ValueError("is empty")
    return text


def check_ends(text: str) -> None:
    """Raises ValueError for what editors and shells add to a secret, or to a list of them."""
    if len(text.splitlines()) > 1 or text.endswith(("\n", "\r")):
        raise ValueError("must be one line")
    check_quotes(text)


def check_quotes(text: str) -> None:
    """Raises ValueError for quotes that a shell would have taken away, or an editor has put around a text."""
    if len(text) < 2:
        return
    first, last = text[0], text[-1]
    if (first in TYPOGRAPHIC_QUOTES and last in TYPOGRAPHIC_QUOTES) or (
        first == last and first in PLAIN_QUOTES
    ):
        raise ValueError("must not stand in quotes: they would be part of it")


def file_text(content: bytes) -> str:
    """The content of a file, without a BOM and without one line end at its end. Raises UnicodeDecodeError."""
    return content.removeprefix(BOM).removesuffix(b"\n").removesuffix(b"\r").decode().strip(" \t")


def _is_seen(character: str) -> bool:
    return character == " " or not (unicodedata.category(character)[0] in "CZ" or BLANK.match(character))


def _counts(character: str) -> bool:
    """Whether the character makes a secret longer: a space or a combining accent does not."""
    return unicodedata.category(character)[0] not in "CZM"
