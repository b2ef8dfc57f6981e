"""Reads JSON leniently: a broken part that is not needed does not make the rest unreadable."""

import json
from typing import TypeVar

import msgspec

__all__ = ["JsonUnreadable", "decode"]

T = TypeVar("T")


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
        return msgspec.convert(json.loads(text.decode("utf-8-sig", "surrogateescape")), kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise JsonUnreadable from failure
