"""Finds the fields that count in JSON whose other fields may be invalid JSON.

    convert()     the struct behind a document, each of whose fields is read by itself
    distilled()   the same document with nothing but the fields that count, for a strict reader
    fields()      some fields of an object; none for anything else
    text()        the text behind a JSON string; None for anything else

This accepts what makes a strict reader refuse the whole document: a byte order mark, bytes that are not
UTF-8, lone surrogates, unknown escapes, control characters in strings, NaN, Infinity, numbers of any size,
nesting of any depth. The rest of the grammar holds.

    NotJson     the sender's fault: the document is not JSON, however loosely it is read
    NotObject   one of these: it is JSON, but no object

If an object has a name twice, both are kept, and the last one counts, as for the strict reader.

The document is read once from left to right, without recursion, most of it within regular expressions
that never try twice. That costs about ten times what a strict reader costs, so it is for documents that a
strict reader has refused.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import islice
from typing import Any, TypeVar, Union, get_args

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = ["BOM", "Kept", "NotJson", "NotObject", "convert", "distilled", "fields", "kept_by", "text"]

BOM = b"\xef\xbb\xbf"
NULL = b"null"
NULL_TOKEN = Raw(NULL)

# The names that count in an object: each with those that count in its value, or None for all of a value.
Kept = Mapping[str, Union["Kept", None]]

# Every repetition is possessive or atomic, so that no text makes it backtrack. If its group holds a choice,
# or may end within a token, it is atomic: until Python 3.11.5 the possessive form matches too little or too
# much (https://github.com/python/cpython/issues/106052). An atomic repetition takes memory for each round, so
# it is limited to so many rounds, and is then begun anew.
MOST = b"{0,1000}"
W = rb"[ \t\r\n]*+"
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?>(?:\.[0-9]++)?)(?>(?:[eE][+-]?+[0-9]++)?)"
SCALAR = rb"(?:%b|(?:%b|true|false|null|NaN|-?+Infinity)(?=[ \t\r\n,}\]]|\Z))" % (STRING, NUMBER)
NAMED = STRING + W + rb":" + W
# A container that holds no other container, as most do, and not too many items.
FLAT = rb"(?:\[%b(?>(?:%b%b(?>(?:,%b%b%b)%b))?)\]|\{%b(?>(?:%b%b%b(?>(?:,%b%b%b%b)%b))?)\})" % (
    *(W, SCALAR, W, W, SCALAR, W, MOST),
    *(W, NAMED, SCALAR, W, W, NAMED, SCALAR, W, MOST),
)  # fmt: skip
ITEM = rb"(?:%b|%b)" % (SCALAR, FLAT)
BRACKETS = rb"(\[(?:%b\[)*+|\{)" % W

VALUE = re.compile(W + rb"(?:(%b)|([{\[]))" % SCALAR, re.DOTALL)
NAME = re.compile(W + rb"(%b)%b:" % (STRING, W), re.DOTALL)
EMPTY = re.compile(W + rb"[}\]]")
NEXT = re.compile(W + rb"([,}\]])")
# Items with a comma after them; then the last item, or the bracket of an item that is looked into.
SOME_OF_ARRAY = re.compile(rb"(?>(?:%b%b%b,)%b)" % (W, ITEM, W, MOST), re.DOTALL)
SOME_OF_OBJECT = re.compile(rb"(?>(?:%b%b%b%b,)%b)" % (W, NAMED, ITEM, W, MOST), re.DOTALL)
IN_ARRAY = re.compile(rb"%b(?:%b(?=%b\])|%b)" % (W, ITEM, W, BRACKETS), re.DOTALL)
IN_OBJECT = re.compile(rb"%b%b(?:%b(?=%b\})|%b)" % (W, NAMED, ITEM, W, BRACKETS), re.DOTALL)
CLOSING = re.compile(rb"(?:%b[}\]])++" % W)
BRACKET = re.compile(rb"[}\]]")
CLOSES = bytes.maketrans(b"[{", b"]}")
BLANKS = b" \t\r\n"

# A number that every reader takes, as a telephone number may be written.
WHOLE = re.compile(rb"[1-9][0-9]{0,17}")
SURROGATE = re.compile("[\ud800-\udfff]")


class NotJson(Exception):
    """The document is not JSON, however loosely it is read."""


class NotObject(NotJson):
    """The document is JSON, but no object."""


class _Field(Struct, frozen=True):
    """How a field of a struct is read."""

    name: str
    kind: Any
    decoder: msgspec.json.Decoder[Any]
    part: type[Struct] | None
    """The struct that it may hold."""

    nullable: bool
    required: bool


S = TypeVar("S", bound=Struct)


def convert(content: bytes, kind: type[S], *, cut: bool = False) -> S:
    """The struct behind a document, each of whose fields is read by itself. Raises NotJson.

    A field that is not there, or is null, has its default; one without a default is UNSET. A field that
    holds something of another type is None, and so spoils no other; so each must be one that may be None.
    Where a string holds what is no character, it has U+FFFD.

    Of a document that was `cut`, only what stands in front of the cut is read.
    """
    if not cut:
        try:
            return _converted(content, kind)
        except (ValueError, RecursionError):
            pass
    return _converted(distilled(content, kept_by(kind), cut=cut), kind)


def distilled(content: bytes, kept: Kept, *, cut: bool = False) -> bytes:
    """The document with nothing but the fields that count. Raises NotJson.

    Kept strings are valid JSON strings. A whole number of up to 18 digits stays as it is; any other number
    becomes 0, and so does a string that cannot be read; an array becomes empty; objects hold the fields that
    count. With `cut`, everything from the first unreadable part on is left out, and a truncated value becomes
    null.
    """
    found: list[bytes] = []
    end = 0
    try:
        end = _keep(content, len(BOM) if content.startswith(BOM) else 0, kept, found)
    except NotJson:
        if not cut:
            raise
    if not cut and content[end:].strip(BLANKS):
        raise NotJson
    return b"".join(found) or NULL


def kept_by(kind: type[Struct]) -> Kept:
    """The fields that are read from a structure."""
    return {
        name: None if field.part is None else kept_by(field.part) for name, field in _fields(kind).items()
    }


def fields(content: bytes, *names: str) -> dict[str, Raw]:
    """The fields of an object that have these names; none for anything else.

    Raises ValueError and RecursionError for what only `distilled` can read.
    """
    try:
        return _members(content, names)
    except msgspec.ValidationError:
        return {}


def text(token: bytes | Raw | None) -> str | None:
    """The text of a JSON string, with U+FFFD for what is no character; None for anything else."""
    written = bytes(token or NULL)
    try:
        return msgspec.json.decode(written, type=str)
    except ValueError:
        if not written.startswith(b'"'):
            return None
    try:
        read = json.loads(written.decode(errors="replace"), strict=False)
    except ValueError:
        return None
    return SURROGATE.sub("\ufffd", read)


@cache
def _fields(kind: type[Struct]) -> dict[str, _Field]:
    """The fields of a struct, by their names in JSON."""
    found = {}
    for field in msgspec.structs.fields(kind):
        kinds = _alternatives(field.type)
        found[field.encode_name] = _Field(
            name=field.name,
            kind=field.type,
            # Made once, since that takes longer than to read a value.
            decoder=msgspec.json.Decoder(field.type),
            part=next((one for one in kinds if issubclass(one, Struct)), None),
            nullable=type(None) in kinds,
            required=field.required,
        )
    return found


@cache
def _picker(names: tuple[str, ...]) -> msgspec.json.Decoder[Struct]:
    """A decoder that takes the fields of these names from an object and leaves them as they are.

    It passes over all others, of which a document may have a million.
    """
    fields = [(name, Raw | UnsetType, UNSET) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Picked", fields))


def _members(token: bytes | Raw, names: tuple[str, ...]) -> dict[str, Raw]:
    """The fields of these names. Raises ValidationError for what is no object, and as fields() does."""
    picked = _picker(names).decode(token)
    return {name: value for name in names if (value := getattr(picked, name)) is not UNSET}


def _alternatives(kind: Any) -> list[type]:
    """The types of which a field may be, without what is said of them."""
    if isinstance(kind, type):
        return [kind]
    return [one for part in get_args(kind) for one in _alternatives(part)]


def _converted(token: bytes | Raw, kind: type[S]) -> S:
    """What convert() returns. Raises NotObject, and ValueError and RecursionError as fields() does."""
    try:
        members = _members(token, tuple(_fields(kind)))
    except msgspec.ValidationError:
        raise NotObject from None
    values: dict[str, Any] = {}
    for name, field in _fields(kind).items():
        value = members.get(name)
        if value is not None and not (field.nullable and value == NULL_TOKEN):
            values[field.name] = _value(value, field)
        elif field.required:
            values[field.name] = UNSET
    return kind(**values)


def _value(token: Raw, field: _Field) -> Any:
    """What a field holds, or None if that is of another type."""
    if field.part is not None:
        return _converted(token, field.part) if bytes(memoryview(token)[:1]) == b"{" else None
    try:
        return field.decoder.decode(token)
    except ValueError:
        pass
    try:
        # None where it is no string, or one that cannot be read.
        return msgspec.convert(text(token), field.kind)
    except msgspec.ValidationError:
        return None


def _keep(content: bytes, at: int, kept: Kept | None, found: list[bytes]) -> int:
    """Writes the fields that count of the value that begins here; returns where the value ends.

    It looks no deeper than `kept` does.
    """
    value = VALUE.match(content, at)
    if value is None:
        raise NotJson
    scalar, bracket = value.groups()
    if bracket == b"{" and kept is not None:
        found.append(b"{")
        try:
            return _keep_members(content, value.end(), kept, found)
        finally:
            found.append(b"}")
    if bracket is None:
        found.append(_simple(scalar))
        return value.end()
    end = _passed(content, value.end(), bracket)
    found.append(b"{}" if bracket == b"{" else b"[]")
    return end


def _keep_members(content: bytes, at: int, kept: Kept, found: list[bytes]) -> int:
    """Writes the members that count of an object whose bracket was read; returns where it ends."""
    comma = b""
    following = EMPTY.match(content, at)
    while following is None or following[0][-1:] == b",":
        name = NAME.match(content, at)
        if name is None:
            raise NotJson
        key = text(name[1])
        if key is None or key not in kept:
            value = VALUE.match(content, name.end())
            if value is None:
                raise NotJson
            at = value.end() if value[2] is None else _passed(content, value.end(), value[2])
        else:
            found += comma, msgspec.json.encode(key), b":"
            comma, size = b",", len(found)
            try:
                at = _keep(content, name.end(), kept[key], found)
            finally:
                if len(found) == size:
                    found.append(NULL)
        following = NEXT.match(content, at)
        if following is None:
            raise NotJson
        at = following.end()
    if not following[0].endswith(b"}"):
        raise NotJson
    return following.end()


def _simple(token: bytes) -> bytes:
    """The value in a form that every reader accepts."""
    if not token.startswith(b'"'):
        return token if token in (NULL, b"true", b"false") or WHOLE.fullmatch(token) else b"0"
    try:
        msgspec.json.decode(token, type=str)
    except ValueError:
        read = text(token)
        return b"0" if read is None else msgspec.json.encode(read)
    return token


def _passed(content: bytes, at: int, bracket: bytes) -> int:
    """Where the container ends whose opening bracket was read."""
    stack = bytearray(bracket)
    while True:
        if not EMPTY.match(content, at):
            at, deeper = _pass_items(content, at, stack)
            if deeper:
                continue
        # The innermost container of the stack has no items left.
        while closing := CLOSING.match(content, at):
            brackets = closing[0].translate(None, BLANKS)
            size = min(len(brackets), len(stack))
            if stack[: -size - 1 : -1].translate(CLOSES) != brackets[:size]:
                raise NotJson
            del stack[-size:]
            if not stack:
                # The brackets that follow belong to the container around this one.
                return next(islice(BRACKET.finditer(content, at), size - 1, None)).end()
            at, deeper = _pass_items(content, _comma(content, closing.end()), stack)
            if deeper:
                break
        else:
            raise NotJson


def _pass_items(content: bytes, at: int, stack: bytearray) -> tuple[int, bool]:
    """Skips items up to the end of the container, or to a container within it, which goes on the stack."""
    array = stack.endswith(b"[")
    some = SOME_OF_ARRAY if array else SOME_OF_OBJECT
    while (passed := some.match(content, at)) is not None and passed.end() > at:
        at = passed.end()
    last = (IN_ARRAY if array else IN_OBJECT).match(content, at)
    if last is None:
        raise NotJson
    opened = (last[1] or b"").translate(None, BLANKS)
    stack += opened
    return last.end(), bool(opened)


def _comma(content: bytes, at: int) -> int:
    following = NEXT.match(content, at)
    if following is None or following[1] != b",":
        raise NotJson
    return following.end()
