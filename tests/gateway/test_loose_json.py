import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from gateway.edge.fault import DeliveryError
from gateway.edge.loose_json import NotJson, NotObject, convert, distilled, text
from gateway.edge.signature import VerifiedBody, Verifier
from gateway.initiation import request as initiation
from gateway.postcall import request as event
from gateway.precall.request import Delivery, MediaType
from gateway.precall.request import read as read_delivery

KEPT = {"a": None, "b": {"c": None, "d": {"e": None}}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}", "{}"),
        ("[1]", "[]"),
        ('{"a":"x","z":1}', '{"a":"x"}'),
        ('{"a":"x","a":"y"}', '{"a":"x","a":"y"}'),
        ('{"\\u0061":"x","b":{"c":"y","z":[{"c":1}],"d":{"e":"z","c":2}},"c":3}', '{"a":"x","b":{"c":"y","d":{"e":"z"}}}'),
        ('\ufeff {"a":"x"}\r\n', '{"a":"x"}'),
        ('{"a":"x\\ud800\\ud83d\\ude00","z":"\\udc00"}', '{"a":"x\ufffd\U0001f600"}'),
        ('{"a":"\x00\n"}', '{"a":"\\u0000\\n"}'),
        ('{"a":"\\q","b":{"c":"\\u12"}}', '{"a":0,"b":{"c":0}}'),
        ('{"a":1e999,"b":{"c":-Infinity,"d":NaN}}', '{"a":0,"b":{"c":0,"d":0}}'),
        ('{"a":{"x":1},"b":["c"]}', '{"a":{},"b":[]}'),
        ('{"a":true,"b":null}', '{"a":true,"b":null}'),
        ('{"a":31612345678,"b":{"c":1234567890123456789}}', '{"a":31612345678,"b":{"c":0}}'),
        ('{"z":' + "[" * 5_000 + "]" * 5_000 + ',"a":"x"}', '{"a":"x"}'),
        ('{"z":' + '{"a":[ ' * 5_000 + "1" + "]} " * 5_000 + ',"a":"x"}', '{"a":"x"}'),
        ('{"z":[[[[]],[[1],[2,[3],4]]],{"q":{"r":[{}]}}],"a":"x"}', '{"a":"x"}'),
    ],
)  # fmt: skip
def test_distilled(content: str, expected: str) -> None:
    """Keeps what counts, in a form that every reader takes."""
    assert expected.encode() == distilled(content.encode(), KEPT)


def test_bytes_that_are_no_text() -> None:
    """Replaces what is not UTF-8 where it counts, and passes over it elsewhere."""
    assert '{"a":"x\ufffd"}'.encode() == distilled(b'{"\xff":"\xff","a":"x\xff","z":["\xfe"]}', KEPT)


@pytest.mark.parametrize(
    "content",
    [
        "", " ", "{", "}", "{]", "[}", "{}}", "{} x", "[1,]", "{,}", '{"a"}', '{"a":}', '{"a":1,}', '{"a" 1}', "{a:1}",
        '{"z":01}', '{"z":1.}', '{"z":.5}', '{"z":+1}', '{"z":nan}', '{"z":truefalse}', '{"z":1 2}', "{'a':1}",
        '{"z":[[1}]}', '{"z":[[[1]]}]}', '{"z":[[1],[1 2]]}', '{"z":[[],,[]]}', '{"z":[[]:1]}', '{"z":{"y":[]"x":1}}',
        '{"z":' + "[" * 5_000 + "]" * 4_999 + "}", '{"z":"x}', '{"z":"\\"}', '{"z":[{"y"}]}', '{"z":{[]}}', '{"z":1]',
        "\x00{}", '{"z":\x00 1}', "\ufeff\ufeff{}", "{/**/}", '{"z":[[1],]}', '{"z":{"y":{},}}',
    ],
)  # fmt: skip
def test_not_json(content: str) -> None:
    """Refuses what is wrong in its grammar, wherever that is."""
    with pytest.raises(NotJson):
        distilled(content.encode(), KEPT)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-32-be"])
def test_other_encodings(encoding: str) -> None:
    """Refuses what is not UTF-8 as a whole."""
    with pytest.raises(NotJson):
        distilled('{"a":"x"}'.encode(encoding), KEPT)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b'"x"', "x"), (rb'"\ud83d\ude00"', "\U0001f600"), (rb'"\ud83d"', "\ufffd"), (b'"\xc3"', "\ufffd"),
        (b'"\t"', "\t"), (rb'"\q"', None), (b"5", None), (b"null", None), (None, None), (b'"x', None),
    ],
)  # fmt: skip
def test_text(token: bytes | None, expected: str | None) -> None:
    """Reads a string however it is written."""
    assert expected == text(token)


class Part(Struct, frozen=True):
    """A part of a document."""

    c: str | None = None
    raw: Raw | UnsetType = UNSET


class Document(Struct, frozen=True):
    """A document whose fields are read each by itself."""

    a: Annotated[str, Meta(description="A text.")] | UnsetType | None
    part: Part | UnsetType | None = msgspec.field(name="b")
    flag: bool | None = True


@pytest.mark.parametrize("junk", ["", ',"z":NaN'])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a":"x","b":{"c":"y"},"flag":false%s}', Document("x", Part("y"), flag=False)),
        ('{"z":1%s}', Document(UNSET, UNSET, flag=True)),
        ('{"a":null,"b":null,"flag":null%s}', Document(UNSET, UNSET, flag=True)),
        ('{"a":5,"b":{"c":"y"},"flag":"no"%s}', Document(None, Part("y"), flag=None)),
        ('{"a":"x","b":[],"flag":[{}]%s}', Document("x", None, flag=None)),
        ('{"a":["x"],"b":{"c":{"c":"y"}}%s}', Document(None, Part(None))),
        ('{"a":"\\ud800","b":{"c":"\\q"}%s}', Document("\ufffd", Part(None))),
        ('{"a":"x","a":"y","b":"c","b":{}%s}', Document("y", Part())),
    ],
)
def test_convert(content: str, expected: Document, junk: str) -> None:
    """Reads each field of a struct by itself: one that cannot be read spoils no other."""
    assert expected == convert((content % junk).encode(), Document)


def test_convert_of_a_part_that_nobody_reads() -> None:
    """Leaves what may be of any type as it is, null included."""
    found = [convert(b'{"b":{"raw":%b}}' % raw, Document).part for raw in (b"null", b"[1]", b"1e999")]

    assert [b"null", b"[1]", b"1e999"] == [bytes(part.raw) for part in found]  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"[1]", NotObject), (b"\xef\xbb\xbf1", NotObject), (b"null", NotObject), (b"", NotJson), (b'{"a":}', NotJson)],
)  # fmt: skip
def test_convert_of_no_object(content: bytes, expected: type[Exception]) -> None:
    """Tells what is no object from what is no JSON."""
    with pytest.raises(NotJson) as refused:
        convert(content, Document)

    assert expected is refused.type


@pytest.mark.parametrize(("size", "expected"), [(9, Document("x", UNSET)), (14, Document("x", Part()))])
def test_convert_of_a_beginning(size: int, expected: Document) -> None:
    """Reads of a document that was cut what stands in front of that."""
    assert expected == convert(b'{"a":"x","b":{"c":"y"}}'[:size], Document, cut=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abcdez") | st.text(), inner),
    max_leaves=30,
)


@given(JSON, st.sampled_from([None, 1]))
def test_as_the_standard_library(document: Any, indent: int | None) -> None:
    """Takes what Python's own reader takes, NaN included, and finds the same."""
    content = json.dumps(document, indent=indent)

    found = json.loads(distilled(content.encode(), KEPT))

    assert expected_of(document, KEPT) == found


def expected_of(value: Any, kept: Any) -> Any:
    """What is kept of a value."""
    if isinstance(value, dict):
        return {name: expected_of(value[name], kept[name]) for name in value if name in kept} if kept else {}
    if isinstance(value, list):
        return []
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if 0 < value < 10**18 else 0
    return re.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else 0


@given(st.text(alphabet='{}[]:,"\\ 01e.-ntNab', max_size=30))
def test_takes_no_more_than_json(content: str) -> None:
    """Refuses what Python's own reader refuses, but for unknown escapes."""
    try:
        distilled(content.encode(), KEPT)
    except NotJson:
        taken = False
    else:
        taken = True
    if "\\" not in content:
        assert reads(content) == taken


def reads(content: str) -> bool:
    """Whether Python reads it."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


@given(JSON, st.data())
def test_cut_anywhere(document: Any, data: st.DataObject) -> None:
    """Makes a document of whatever it is given."""
    content = json.dumps({"a": "x", "b": document}).encode()
    size = data.draw(st.integers(0, len(content)))

    found = msgspec.json.decode(distilled(content[:size], KEPT, cut=True))

    assert (found or {}).get("a") in ("x", None)
    assert size < 9 or "x" == found["a"]


SAMPLE = "UklGRg=="
DELIVERY = {
    "type": "pre_call",
    "conversation_id": "conv_1",
    "agent_id": "agent_1",
    "caller_metadata": {"name": "Zo\u00eb", "date_of_birth": "11.12.2007", "phone_number": "+31612345678"},
    "voice_sample": {"format": "base64", "data": SAMPLE},
}
ENDED = {
    "type": "post_call_transcription",
    "data": {
        "conversation_id": "conv_1",
        "agent_id": "agent_1",
        "conversation_initiation_client_data": {
            "conversation_config_override": {"tts": {"voice_id": "voice_1"}},
            "dynamic_variables": {"precall_call_id": "call_1"},
        },
    },
}
STARTING = {"caller_id": "+31612345678", "called_number": "+3120", "agent_id": "agent_1", "call_sid": "CA1"}

JUNK = [
    rb'"\ud800"', rb'"\udc00\ud800"', b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 400, b"[" * 5_000 + b"]" * 5_000,
    b'{"a":' * 3_000 + b"1" + b"}" * 3_000, b'"\xff\xfe\xc3"', b'"\x00\x1f\n"', rb'"\q\u12"', b'{"\xff":{"\\ud800":[NaN]}}',
    b'{"conversation_id":"other\\ud800","type":NaN,"agent_id":[{}]}',
]  # fmt: skip
NAMES = [b'"junk"', b'"\xff"', rb'"\ud800"', b'"\x00"', rb'"\q"', b'""']


def signed(content: bytes) -> VerifiedBody:
    """The body as a sender has signed it."""
    digest = hmac.new(b"k", b"1." + content, hashlib.sha256).hexdigest()
    verifier = Verifier([f"t=1,v0={digest}"], [b"k"], now=1)
    verifier.feed(content)
    return verifier.finish()


def delivered(content: bytes) -> Delivery:
    """What a delivery says."""
    return read_delivery(signed(content), MediaType(boundary=None), max_sample_bytes=100)


def delivered_as_form(content: bytes) -> Delivery:
    """What it says as the part of a form."""
    part = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    body = (
        part % (b"metadata", b"", content)
        + part % (b"voice_sample", b'; filename="a"', b"RIFF")
        + b"--x--\r\n"
    )
    return read_delivery(signed(body), MediaType(boundary="x"), max_sample_bytes=100)


READERS: list[tuple[dict[str, Any], Callable[[bytes], Any]]] = [
    (DELIVERY, delivered),
    (DELIVERY, delivered_as_form),
    (ENDED, lambda content: event.read(signed(content))),
    (STARTING, lambda content: initiation.read(content, own_numbers=(), region=None)),
]


@given(st.sampled_from(READERS), st.data())
def test_junk_anywhere(reader: tuple[dict[str, Any], Callable[[bytes], Any]], data: st.DataObject) -> None:
    """Reads the same whatever stands beside the fields that count, at every level."""
    document, read = reader
    content = clean = json.dumps(document).encode()
    # In front of any member of any object; from the last to the first, so that places stay where they are.
    places = [found.end() for found in re.finditer(rb'\{(?=")', clean)]
    for place in sorted(data.draw(st.sets(st.sampled_from(places), min_size=1)), reverse=True):
        member = data.draw(st.sampled_from(NAMES)) + b":" + data.draw(st.sampled_from(JUNK)) + b","
        content = content[:place] + member + content[place:]
    if data.draw(st.booleans()):
        content = b"\xef\xbb\xbf" + content

    assert read(clean) == read(content)


@pytest.mark.parametrize(("document", "read"), READERS[:2])
@pytest.mark.parametrize(
    ("spoiled", "field"),
    [
        ((rb'"agent_1"', rb'"agent\ud800"'), "agent_id"),
        ((rb'"conv_1"', rb'"conv\ud800"'), "conversation_id"),
        ((rb'"conv_1"', b'"conv\xff"'), "conversation_id"),
        ((rb'"pre_call"', b"NaN"), "type"),
        ((rb'"11.12.2007"', b"Infinity"), "caller_metadata.date_of_birth"),
        ((rb'"11.12.2007"', b'"11\x0012"'), "caller_metadata.date_of_birth"),
        ((rb'"11.12.2007"', rb'"\q"'), "caller_metadata.date_of_birth"),
    ],
)
def test_unusable(
    document: dict[str, Any], read: Callable[[bytes], Any], spoiled: tuple[bytes, bytes], field: str
) -> None:
    """Names the field that counts and cannot be used."""
    content = json.dumps(document).encode().replace(*spoiled)

    with pytest.raises(DeliveryError) as refused:
        read(content)

    assert "FIELD_INVALID" == refused.value.reason
    assert refused.value.message.startswith(f"{field} ")


def test_name_in_part() -> None:
    """Greets by a name of which a character is lost, rather than not at all."""
    content = json.dumps(DELIVERY).encode().replace(rb"Zo\u00eb", rb"Zo\ud83d")

    assert "Zo\ufffd" == delivered(content).name


def test_missing_where_nothing_is_an_error() -> None:
    """What cannot be used counts as missing where a call must go on."""
    content = json.dumps(STARTING).encode().replace(b'"CA1"', rb'"CA\ud800"').replace(b'"agent_1"', b"NaN")

    found = initiation.read(content, own_numbers=(), region=None)

    assert (None, None, "+31612345678") == (found.agent_id, found.call_sid, found.phone_number)


@pytest.mark.parametrize(
    "content",
    [
        b'{"z":' + b"[" * 2_000_000, b'{"z":' + b"[ " * 2_000_000, b'{"z":"' + rb"\n" * 2_000_000, b'{"z":"' + b"\\" * 2_000_001,
        b'{"z":[' + b"1," * 1_000_000, b'{"z":' + b'"",' * 1_000_000, b'{"z":' + b'{"a":' * 300_000,
    ],
)  # fmt: skip
def test_linear(content: bytes) -> None:
    """Reads megabytes of what never ends in a time that grows with their number alone."""
    with pytest.raises(NotJson):
        distilled(content, KEPT)


@pytest.mark.parametrize("count", [999, 1_000, 1_001, 1_002, 2_001, 5_000])
@pytest.mark.parametrize("item", [b"1", b'"x"', b"[]", b"[1,2]", b'{"b":[{}]}', b"[[1],[]]"])
def test_many_items(item: bytes, count: int) -> None:
    """However many items a container has, and its items have, it ends where it ends."""
    items = b",".join([item] * count)
    names = b",".join([b'"n":' + item] * count)

    for junk in (b"[%b]" % items, b"[ %b ]" % items, b"{%b}" % names, b"[[%b],{%b}]" % (items, names)):
        assert b'{"a":"x"}' == distilled(b'{"z":%b,"a":"x"}' % junk, {"a": None})
        with pytest.raises(NotJson):
            distilled(b'{"z":%b,"a":"x"}' % junk[:-1], {"a": None})
