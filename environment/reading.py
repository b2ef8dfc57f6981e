"""Builds a settings class from an environment, and finds everything that is wrong with it."""

import math
import re
import types
import typing
from collections.abc import Iterable, Mapping

import msgspec

from environment.address import BaseUrl, Host, Target
from environment.document import NO_PATH, Document
from environment.network import Networks, entries
from environment.rate import Rate
from environment.remarks import is_injected
from environment.secret import Secret, SecretUrl, check_ends, secret_text, takes_file

__all__ = ["EnvironmentInvalid", "read"]

S = typing.TypeVar("S", bound=msgspec.Struct)

# Types that parse their own text.
OWN = (Secret, SecretUrl, Host, Target, BaseUrl, Networks, Rate)

BOUND = re.compile(r"Expected `(?:int|float)` (<=|>=|<|>) (\S+)")
BOUNDS = {"<=": "at most", ">=": "at least", "<": "below", ">": "above"}
NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class EnvironmentInvalid(Exception):
    """At least one variable is missing or malformed. The text names every one, and no value."""


def read(settings: type[S], environ: Mapping[str, str]) -> S:
    """Builds the settings from `environ`.

    Raises EnvironmentInvalid, which names every variable at fault in one line.
    """
    values: dict[str, object] = {}
    faults: dict[str, str] = {}
    from_files: list[str] = []
    for field in msgspec.structs.fields(settings):
        name = field.name.upper()
        kind = _bare(field.type)
        try:
            text = _text(name, environ, kind)
        except ValueError as fault:
            faults[name] = str(fault)
            continue
        try:
            if text is not None:
                if takes_file(kind) and not environ.get(name, "").strip():
                    from_files.append(name)
                value = _value(text, kind, field.type)
                if isinstance(value, Document):
                    value = value.kept_in(environ.get(f"{name}_FILE", "").strip())
                values[field.name] = value
            elif field.required:
                faults[name] = f"{name} is required"
        except ValueError as fault:
            faults[name] = f"{name} {fault}"
    told = list(faults.values())
    try:
        # A faulty variable is left at its default, to find faults between the others.
        made = settings(**_nothing(settings, set(values)), **values)
    except ValueError as fault:
        between = [one for part in fault.args for one in str(part).split("; ")]
        told += [one for one in between if not any(re.search(rf"\b{name}\b", one) for name in faults)]
    if told:
        raise EnvironmentInvalid("; ".join(_of_files(fault, from_files) for fault in told))
    return made


def _of_files(fault: str, names: Iterable[str]) -> str:
    """The fault, by the variables that name the files where the texts came from."""
    for name in names:
        fault, times = re.subn(rf"\b{name}\b", f"{name}_FILE", fault)
        fault = fault.removesuffix(NO_PATH) if times else fault
    return fault


def _text(name: str, environ: Mapping[str, str], kind: typing.Any) -> str | None:
    if takes_file(kind):
        largest = kind.largest if _is_document(kind) else Secret.largest
        text = secret_text(name, environ, largest=largest)
    else:
        text = environ.get(name, "").strip() or None
        if text is not None and is_injected(name, text):
            return None
    if text is not None and not _is_utf8(text):
        raise ValueError(f"{name} must be UTF-8")
    return text


def _value(text: str, kind: typing.Any, annotated: object) -> object:
    """Converts one variable's text, checking the limits that its annotation states. Raises ValueError."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _listed(text, typing.get_args(kind)[0])
    if origin is typing.Literal:
        return _chosen(text, typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, OWN):
        return kind.read(text)
    raw = _object(text) if origin is dict else text
    if kind is bool and text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError("must be true or false")
    if kind is int and not WHOLE.fullmatch(text):
        raise ValueError("must be a whole number")
    if kind is float and not (NUMBER.fullmatch(text) and math.isfinite(float(text))):
        raise ValueError("must be a finite number")
    try:
        return msgspec.convert(raw, annotated, strict=False)
    except msgspec.ValidationError as fault:
        raise ValueError(_in_words(fault, annotated)) from fault


def _listed(text: str, member: typing.Any) -> tuple[object, ...]:
    if takes_file(member):
        check_ends(text)
    return tuple(_value(part, _bare(member), member) for part in entries(text))


def _chosen(text: str, allowed: tuple[str, ...]) -> str:
    for one in allowed:
        if one.lower() == text.lower():
            return one
    raise ValueError(f"must be one of: {', '.join(allowed)}")


def _object(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise ValueError("must be a JSON object") from fault


def _in_words(fault: msgspec.ValidationError, annotated: object) -> str:
    """The message of msgspec without types and paths of the program, which mean nothing to an operator."""
    if described := _description(annotated):
        return f"must be {described}"
    text = str(fault).split(" - at `$", 1)[0].rstrip(".")
    if found := BOUND.fullmatch(text):
        return f"must be {BOUNDS[found[1]]} {found[2].removesuffix('.0')}"
    return f"is not as expected: {text.replace('`', '')}"


def _description(annotated: object) -> str | None:
    for one in (annotated, *typing.get_args(annotated)):
        for meta in getattr(one, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return None


def _bare(kind: typing.Any) -> typing.Any:
    """The kind without `| None` and without what is annotated."""
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _is_document(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Document)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nothing(settings: type[msgspec.Struct], has: set[str]) -> dict[str, object]:
    """Placeholders for required settings that are missing, so that the others can be checked."""
    return {
        field.name: () if typing.get_origin(_bare(field.type)) is tuple else None
        for field in msgspec.structs.fields(settings)
        if field.required and field.name not in has
    }
