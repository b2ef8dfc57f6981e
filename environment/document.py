"""Texts of several lines, PEM and TOML, from a variable or from a file that may change.

They are treated as secrets, because a private key is one: none is shown in a log line or a `repr`.
"""

from pathlib import Path
from typing import ClassVar, Self

from environment.secret import Secret, check_quotes

__all__ = ["NO_PATH", "Document", "Pem", "Toml"]

NO_PATH = ", while a file is named by the variable with _FILE at its end"
"""How the fault of a variable ends that may hold the name of a file in place of the text."""


class Document(Secret):
    """A text of any number of lines. `path` is the file that it came from, if any."""

    __slots__ = ("path",)
    largest: ClassVar[int] = 1_048_576

    def __init__(self, text: str, path: Path | None = None) -> None:
        super().__init__(text)
        self.path = path

    @classmethod
    def read(cls, text: str) -> Self:
        check_quotes(text)
        return cls(text)

    def kept_in(self, path: str) -> Self:
        """The same text, with the file that it came from. An empty path is none."""
        return type(self)(self.reveal(), Path(path) if path else None)


class Pem(Document):
    """Certificates, or a private key."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        if "-----BEGIN " not in text:
            raise ValueError(f"must be PEM (-----BEGIN ...){NO_PATH}")
        return super().read(text)


class Toml(Document):
    """A table of settings."""

    __slots__ = ()
