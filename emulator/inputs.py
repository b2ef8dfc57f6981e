"""JSON and query strings from outside, checked, with FastAPI's 422 for what is wrong with them."""

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from emulator.errors import Refused, entry, unprocessable

T = TypeVar("T")

EXPECTED = {
    "str": ("string_type", "Input should be a valid string"),
    "int": ("int_type", "Input should be a valid integer"),
    "float": ("float_type", "Input should be a valid number"),
    "bool": ("bool_type", "Input should be a valid boolean"),
    "array": ("list_type", "Input should be a valid list"),
    "object": ("dict_type", "Input should be a valid dictionary"),
}
BOUNDS = {
    "<=": ("less_than_equal", "less than or equal to", "le"),
    ">=": ("greater_than_equal", "greater than or equal to", "ge"),
}


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object a body holds; raises `Refused` where it holds anything else."""
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's own, text that is not UTF-8, too deep
        raise unprocessable(
            {**entry("json_invalid", ["body", 0], "JSON decode error"), "ctx": {"error": str(error)}}
        ) from error
    return checked(found, dict[str, Any], "body")


def checked(found: Any, kind: type[T], place: str, *, strict: bool = True) -> T:
    """The same thing as that type; raises `Refused`, naming the place, where it is not of that type.

    Not strict means that text may stand for a number or a boolean, as in a query string.
    """
    try:
        return msgspec.convert(found, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), place) from error


def query(found: Mapping[str, list[str]], kind: type[T], *, lists: Collection[str] = ()) -> T:
    """A query string as that type: what is not among the lists counts as given once, the last time."""
    given = {name: values if name in lists else values[-1] for name, values in found.items()}
    return checked(given, kind, "query", strict=False)


def _refusal(message: str, place: str) -> Refused:
    """Translates "Expected `str`, got `int` - at `$.a.b[0]`"."""
    what, _, where = message.partition(" - at `$")
    loc: list[str | int] = [place]
    loc += [int(index) if index else name for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", where)]
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return unprocessable(entry("missing", [*loc, missing[1]], "Field required"))
    if bound := re.fullmatch(r"Expected `(?:int|float)` ([<>]=) (\S+)", what):
        kind, words, name = BOUNDS[bound[1]]
        told = entry(kind, loc, f"Input should be {words} {bound[2]}")
        return unprocessable({**told, "ctx": {name: msgspec.json.decode(bound[2])}})
    expected = re.match(r"Expected `(\w+)", what)
    kind, msg = EXPECTED.get(expected[1] if expected else "", ("value_error", what.replace("`", "'")))
    return unprocessable(entry(kind, loc, msg))
