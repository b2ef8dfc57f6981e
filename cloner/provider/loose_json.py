"""Reads JSON leniently: a broken part that is not needed does not make the rest unreadable."""

import json
import re
from typing import TypeVar

import msgspec

__all__ = ["SURROGATE", "JsonUnreadable", "converted", "decode"]

T = TypeVar("T")

SURROGATE = re.compile("[\ud800-\udfff]")
"""A lone surrogate, which UTF-8 cannot hold."""


class JsonUnreadable(Exception):
    """The text is no JSON, or not of the expected type."""


def decode(text: bytes, kind: type[T]) -> T:
    """The value of that type.

    A BOM, NaN, half a surrogate pair and bytes that are not UTF-8 are accepted; the last two become lone
    surrogates, which UTF-8 cannot hold. Raises JsonUnreadable and nothing else.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as failure:
        raise JsonUnreadable from failure
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # strict, as it is fast: the slow way may still read it
    try:
        read = json.loads(text.decode("utf-8-sig", "surrogateescape"), object_hook=_named)
    except (ValueError, RecursionError) as failure:
        raise JsonUnreadable from failure
    return converted(read, kind)


def converted(value: object, kind: type[T]) -> T:
    """A part of what was read, as that type. Raises JsonUnreadable and nothing else."""
    try:
        return msgspec.convert(value, kind)
    # msgspec (0.22) encodes a text that should be something else, which a lone surrogate makes impossible.
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as failure:
        raise JsonUnreadable from failure


def _named(members: dict[str, object]) -> dict[str, object]:
    """The members, without those whose names hold lone surrogates: no field has such a name."""
    return {name: value for name, value in members.items() if not SURROGATE.search(name)}
