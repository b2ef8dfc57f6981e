"""Reads a process's settings from its environment, all at once, before anything is opened.

A settings class is a frozen `msgspec.Struct` whose field names are the variables' names in lower
case. A variable that is set to nothing counts as not set. A secret may also come from a file that
`<NAME>_FILE` names.
"""

import typing
from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["EnvironmentInvalid", "Secret", "read"]

NUMBERS = {"Expected int, got str": "Expected a whole number", "Expected float, got str": "Expected a number"}

S = typing.TypeVar("S", bound=msgspec.Struct)


class EnvironmentInvalid(Exception):
    """At least one variable is missing or malformed. The text names every one, and no value."""


class Secret:
    """A text that does not show itself in a log line, a `repr` or a format string."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def read(settings: type[S], environ: Mapping[str, str]) -> S:
    """Builds the settings from `environ`.

    Raises EnvironmentInvalid, which names every variable at fault in one line.
    """
    values: dict[str, object] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(settings):
        name = field.name.upper()
        try:
            text = _text(name, environ, secret=_holds_secret(field.type))
            if text is not None:
                values[field.name] = _value(text, field.type)
            elif field.required:
                faults.append(f"{name} is required")
        except (msgspec.ValidationError, msgspec.DecodeError) as fault:
            faults.append(f"{name}: {_without_path(fault)}")
        except OSError as fault:
            faults.append(f"{name}_FILE cannot be read ({fault.strerror})")
    if not faults:
        try:
            return settings(**values)
        except ValueError as fault:
            faults.append(str(fault))
    raise EnvironmentInvalid("; ".join(faults))


def _text(name: str, environ: Mapping[str, str], *, secret: bool) -> str | None:
    text = environ.get(name, "").strip()
    path = environ.get(f"{name}_FILE", "").strip() if secret else ""
    if path and not text:
        text = Path(path).read_text("utf-8", "replace").strip()
    return text or None


def _value(text: str, kind: object) -> object:
    """Converts one variable's text, checking the limits that its annotation states."""
    raw: object = text
    if typing.get_origin(kind) is tuple:
        raw = [part.strip() for part in text.split(",") if part.strip()]
    elif typing.get_origin(kind) is dict:
        raw = msgspec.json.decode(text)
    return msgspec.convert(raw, kind, strict=False, dec_hook=_secret)


def _secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError("unexpected value")


def _holds_secret(kind: object) -> bool:
    return kind is Secret or Secret in typing.get_args(kind)


def _without_path(fault: Exception) -> str:
    # msgspec ends some messages with " - at `$[...]`", which means nothing to an operator.
    text = str(fault).split(" - at `$", 1)[0].rstrip(".").replace("`", "")
    # It names the types of the program where the operator wrote a text.
    return NUMBERS.get(text, text)
