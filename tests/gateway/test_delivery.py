import base64
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.fault import DeliveryError
from gateway.edge.signature import Verifier
from gateway.precall.request import Delivery, media_type, read

LIMIT = 1000
SAMPLE = bytes(range(256))
# base64 < the 256 bytes 0..255, from the coreutils tool; it holds "+" and "/".
ENCODED = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQk"
    "NERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKDhIWG"
    "h4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIyc"
    "rLzM3Oz9DR0tPU1dbX2Nna29zd3t/g4eLj5OXm5+jp6uvs7e7v8PHy8/T19vf4+fr7/P3+/w=="
)
BOUNDARY = "--frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="session")
def verified() -> Callable[[bytes], Any]:
    """Signs a body and has it verified."""
    import hashlib
    import hmac

    def verify(body: bytes) -> Any:
        digest = hmac.new(b"k", b"1." + body, hashlib.sha256).hexdigest()
        verifier = Verifier([f"t=1,v0={digest}"], [b"k"], now=1)
        verifier.feed(body)
        return verifier.finish()

    return verify


@pytest.fixture
def parse(verified: Callable[[bytes], Any]) -> Callable[..., Delivery]:
    """Reads a body."""

    def run(body: bytes | str, content_type: str = "application/json") -> Delivery:
        content = body.encode() if isinstance(body, str) else body
        return read(verified(content), media_type([content_type]), max_sample_bytes=LIMIT)

    return run


@pytest.fixture
def refused(parse: Callable[..., Delivery]) -> Callable[..., DeliveryError]:
    """What a body is refused with."""

    def run(body: bytes | str, content_type: str = "application/json") -> DeliveryError:
        with pytest.raises(DeliveryError) as failure:
            parse(body, content_type)
        return failure.value

    return run


def written(**fields: Any) -> str:
    """A delivery as JSON; "..." takes a field away, a dotted name reaches inside."""
    whole: dict[str, Any] = {
        "type": "pre_call",
        "event_timestamp": 1702425485,
        "conversation_id": "conv_abc123xyz",
        "agent_id": "agent_def456uvw",
        "caller_metadata": {
            "name": "Ivan",
            "date_of_birth": "11.12.2007",
            "phone_number": "+31612345678",
            "consent": "form-17, page 2",
        },
        "voice_sample": {"format": "base64", "data": ENCODED, "duration_seconds": 5.2, "sample_rate": 44100},
    }
    for path, value in fields.items():
        *parents, name = path.split("__")
        holder = whole
        for parent in parents:
            holder = holder[parent]
        if value is ...:
            del holder[name]
        else:
            holder[name] = value
    return json.dumps(whole)


def part(name: str, content: bytes, more: str = "", head: str = "") -> bytes:
    """One part of a form."""
    disposition = f'Content-Disposition: form-data; name="{name}"{more}\r\n{head}\r\n'
    return f"--{BOUNDARY}\r\n{disposition}".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


METADATA = part("metadata", written(voice_sample=...).encode())
FILE = part("voice_sample", SAMPLE, '; filename="a.wav"', "Content-Type: audio/wav\r\n")


def test_json(parse: Callable[..., Delivery]) -> None:
    """Reads a delivery as JSON."""
    actual = parse(written())

    expected = Delivery(
        agent_id="agent_def456uvw",
        conversation_id="conv_abc123xyz",
        name="Ivan",
        date_of_birth="11.12.2007",
        phone_number="+31612345678",
        consent="form-17, page 2",
        sample=SAMPLE,
    )
    assert expected == actual


def test_large_form(parse: Callable[..., Delivery]) -> None:
    """Reads a form that passes on all that a telephone line told its sender."""
    headers = "".join(f"X-Header-{number}: x\r\n" for number in range(30))
    others = [part(f"Parameter{number}", b"x", "", headers) for number in range(126)]

    assert parse(written()) == parse(form(*others, METADATA, FILE), FORM)


@pytest.mark.parametrize(
    "more",
    [
        [part(f"Parameter{number}", b"x") for number in range(127)],
        [part("Parameter", b"x", "", "X: x\r\n" * 33)],
        [part("Parameter", b"x", "", f"X: {'x' * 4_096}\r\n")],
    ],
    ids=["parts", "headers", "header"],
)
def test_too_large_form(refused: Callable[..., DeliveryError], more: list[bytes]) -> None:
    """Says how large a form may be where one is larger."""
    failure = refused(form(*more, METADATA, FILE), FORM)

    expected = (
        "The multipart form is too large: at most 128 parts are read, each with at most 32 headers of at most "
        "4096 bytes."
    )
    assert ("MALFORMED_BODY", expected) == (failure.reason, failure.message)


def test_form(parse: Callable[..., Delivery]) -> None:
    """Reads the same delivery as a form."""
    assert parse(written()) == parse(form(METADATA, FILE), FORM)


@pytest.mark.parametrize(
    "body",
    [
        form(FILE, METADATA),
        form(METADATA, part("voice_sample", SAMPLE)),
        form(METADATA, part("other", b"x" * 100), FILE),
        form(
            part("metadata", written(voice_sample=...).encode(), head="Content-Type: application/json\r\n"),
            FILE,
        ),
        b"\r\n" + form(METADATA, FILE),
        form(METADATA, FILE) + b"epilogue",
    ],
    ids=["other order", "no file name", "unknown part", "typed metadata", "empty line first", "epilogue"],
)
def test_forms_alike(parse: Callable[..., Delivery], body: bytes) -> None:
    """Takes a form in every shape that clients write it in."""
    assert parse(written()) == parse(body, FORM)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=latin-1",
    ],
)
def test_content_types(parse: Callable[..., Delivery], content_type: str) -> None:
    """Takes JSON whatever its charset parameter says."""
    assert "conv_abc123xyz" == parse(written(), content_type).conversation_id


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["text/plain"],
        ["application/x-www-form-urlencoded"],
        ["application/jsonp"],
        ["multipart/mixed; boundary=x"],
        ["application/json", "application/json"],
    ],
)
def test_media_type(lines: list[str]) -> None:
    """Refuses every other kind of content, and none, by its header alone."""
    with pytest.raises(DeliveryError) as failure:
        media_type(lines)

    assert "UNSUPPORTED_MEDIA_TYPE" == failure.value.reason


@pytest.mark.parametrize(
    "data",
    [
        ENCODED.replace("/", "\\/"),
        "\\n".join(ENCODED[at : at + 76] for at in range(0, len(ENCODED), 76)) + "\\n",
        ENCODED.replace("A", "\\u0041", 1),
        ENCODED[:40] + " " + ENCODED[40:],
        " ".join(ENCODED[at : at + 20] for at in range(0, len(ENCODED), 20)),
    ],
    ids=["escaped slashes", "lines", "escaped letter", "space", "lines joined by spaces"],
)
def test_base64_as_written(parse: Callable[..., Delivery], data: str) -> None:
    """Takes base64 with JSON escapes or white space in it."""
    body = written(voice_sample__data="@").replace('"@"', f'"{data}"')

    assert SAMPLE == parse(body).sample


@pytest.mark.parametrize(
    "fields",
    [
        {"voice_sample__duration_seconds": "long", "voice_sample__sample_rate": None, "event_timestamp": []},
        {"extra": {"a": [1, {"b": None}]}, "caller_metadata__extra": 1, "voice_sample__extra": 1},
        {"voice_sample__format": ...},
        {"voice_sample__format": None},
    ],
)
def test_ignored(parse: Callable[..., Delivery], fields: dict[str, Any]) -> None:
    """Hints and unknown fields are not even looked at, and the format may be left out."""
    assert parse(written()) == parse(written(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"caller_metadata": ...},
        {"caller_metadata": None},
        {"caller_metadata": {}},
        {"caller_metadata": {"name": None, "date_of_birth": "", "phone_number": " \t\n ", "consent": " "}},
    ],
)
def test_unknown_caller(parse: Callable[..., Delivery], fields: dict[str, Any]) -> None:
    """A caller of whom nothing is told is taken, too."""
    actual = parse(written(**fields))

    assert (None, None, None, None) == (
        actual.name, actual.date_of_birth, actual.phone_number, actual.consent
    )  # fmt: skip


def test_trimmed(parse: Callable[..., Delivery]) -> None:
    """What is told of the caller is trimmed."""
    actual = parse(written(caller_metadata={"name": "  Zoë van 't Hof\n", "phone_number": " 06-1 "}))

    assert ("Zoë van 't Hof", "06-1") == (actual.name, actual.phone_number)


def test_longest(parse: Callable[..., Delivery]) -> None:
    """Every field may be as long as is said."""
    actual = parse(
        written(
            agent_id="a" * 128,
            conversation_id="é" * 256,
            caller_metadata={
                "name": "é" * 200,
                "date_of_birth": "1" * 64,
                "phone_number": "1" * 64,
                "consent": "é" * 200,
            },
        )
    )

    assert 256 == len(actual.conversation_id)


BLANK = [..., None, "", "  "]


@pytest.mark.parametrize("value", BLANK)
@pytest.mark.parametrize("name", ["agent_id", "conversation_id"])
def test_required(refused: Callable[..., DeliveryError], name: str, value: Any) -> None:
    """Names a required field that is missing, null, empty or blank."""
    failure = refused(written(**{name: value}))

    assert ("FIELD_INVALID", f"{name} is required.") == (failure.reason, failure.message)


@pytest.mark.parametrize(
    "prefix",
    [
        "data:audio/wav;base64,",
        "data:;base64,",
        "DATA:audio/webm; codecs=opus; BASE64,",
        "data:video/webm;codecs=vp8,opus;base64,",
        'data:audio/webm;codecs="opus";base64,',
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_data_url(parse: Callable[..., Delivery], prefix: str, *, escaped: bool) -> None:
    """Takes the sample as a browser reads it from a file, media type and all."""
    body = written(voice_sample__data=prefix + ENCODED)

    assert SAMPLE == parse(body.replace("/", "\\/") if escaped else body).sample


ODD_FILENAMES = [
    b"",
    b'; filename=""',
    b"; filename=",
    b"; filename=a b.wav",
    b'; filename="\xe9t\xe9.wav"',
    b'; filename="\xff\xfe\x00\x80"',
    '; filename="語\u2028.wav"'.encode(),
    b"; filename*=UTF-8''na%C3%AFve.wav",
    b"; filename=\"x\"; filename*=iso-8859-1'en'%A3.wav",
    b"; filename*=nonsense",
    rb'; filename="C:\recordings\a.wav"',
    rb'; filename="C:\recordings\"',
    rb'; filename="say \"hello\".wav"',
    b'; filename="say "hello".wav"',
    b'; filename="a"; name="metadata".wav"',
    b'; filename="; name=metadata"',
    b'; filename="never ends',
    b'; filename="' + b"a" * 3000 + b'"',
    b';\r\n filename="folded.wav"',
]


@pytest.mark.parametrize("more", ODD_FILENAMES, ids=[str(odd[:40]) for odd in ODD_FILENAMES])
def test_filename_does_not_count(parse: Callable[..., Delivery], more: bytes) -> None:
    """Goes by a part's name alone; nobody uses the filename, so nothing in it is a reason to refuse."""
    head = b'Content-Disposition: form-data; name="voice_sample"' + more + b"\r\n\r\n"
    odd = f"--{BOUNDARY}\r\n".encode() + head + SAMPLE + b"\r\n"

    assert SAMPLE == parse(form(METADATA, odd), FORM).sample


def test_filename_in_front(parse: Callable[..., Delivery]) -> None:
    """Finds the name behind a filename that looks like one."""
    head = b'Content-Disposition: form-data; filename="; name=metadata"; name="voice_sample"\r\n\r\n'
    odd = f"--{BOUNDARY}\r\n".encode() + head + SAMPLE + b"\r\n"

    assert SAMPLE == parse(form(METADATA, odd), FORM).sample


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": ...}, "type"),
        ({"type": None}, "type"),
        ({"type": "post_call_audio"}, "type"),
        ({"type": 1}, "type"),
        ({"agent_id": 5}, "agent_id"),
        ({"agent_id": "a" * 129}, "agent_id"),
        ({"agent_id": "a/b"}, "agent_id"),
        ({"agent_id": "agént"}, "agent_id"),
        ({"agent_id": "agent\n"}, "agent_id"),
        ({"conversation_id": ["x"]}, "conversation_id"),
        ({"conversation_id": "a" * 257}, "conversation_id"),
        ({"conversation_id": "a\nb"}, "conversation_id"),
        ({"conversation_id": "a\u202eb"}, "conversation_id"),
        ({"caller_metadata": []}, "caller_metadata"),
        ({"caller_metadata": "Ivan"}, "caller_metadata"),
        ({"caller_metadata__name": 5}, "caller_metadata.name"),
        ({"caller_metadata__name": "é" * 201}, "caller_metadata.name"),
        ({"caller_metadata__name": "a\x00b"}, "caller_metadata.name"),
        ({"caller_metadata__name": "a\x85b"}, "caller_metadata.name"),
        ({"caller_metadata__phone_number": "1" * 65}, "caller_metadata.phone_number"),
        ({"caller_metadata__phone_number": "sip:+31612345678@" + "h" * 240}, "caller_metadata.phone_number"),
        ({"caller_metadata__date_of_birth": 20071211}, "caller_metadata.date_of_birth"),
        ({"caller_metadata__date_of_birth": "1" * 65}, "caller_metadata.date_of_birth"),
        ({"caller_metadata__phone_number": 31612345678}, "caller_metadata.phone_number"),
        ({"caller_metadata__consent": True}, "caller_metadata.consent"),
        ({"caller_metadata__consent": "é" * 201}, "caller_metadata.consent"),
        ({"caller_metadata__consent": "a\nb"}, "caller_metadata.consent"),
        ({"caller_metadata__phone_number": "+316\x7f1"}, "caller_metadata.phone_number"),
        ({"voice_sample": ...}, "voice_sample.data"),
        ({"voice_sample": None}, "voice_sample.data"),
        ({"voice_sample": {}}, "voice_sample.data"),
        ({"voice_sample": ENCODED}, "voice_sample"),
        ({"voice_sample__format": "hex"}, "voice_sample.format"),
        ({"voice_sample__format": 64}, "voice_sample.format"),
        ({"voice_sample__data": None}, "voice_sample.data"),
        ({"voice_sample__data": ""}, "voice_sample.data"),
        ({"voice_sample__data": " \n "}, "voice_sample.data"),
        ({"voice_sample__data": 5}, "voice_sample.data"),
        ({"voice_sample__data": ["UklG"]}, "voice_sample.data"),
        ({"voice_sample__data": "UklG!"}, "voice_sample.data"),
        ({"voice_sample__data": "UklGRg"}, "voice_sample.data"),
        ({"voice_sample__data": "Ukl-Rg__"}, "voice_sample.data"),
        ({"voice_sample__data": "data:audio/wav,RIFF"}, "voice_sample.data"),
        ({"voice_sample__data": "data:audio/wav;base64,"}, "voice_sample.data"),
        ({"voice_sample__data": "data:audio/wav;base64,UklG!"}, "voice_sample.data"),
        ({"voice_sample__data": "ÜklG"}, "voice_sample.data"),
    ],
)
def test_field_invalid(refused: Callable[..., DeliveryError], fields: dict[str, Any], field: str) -> None:
    """Names the one field at fault, and the conversation where that is not the field."""
    failure = refused(written(**fields))

    conversation_id = None if field == "conversation_id" else "conv_abc123xyz"
    assert ("FIELD_INVALID", conversation_id) == (failure.reason, failure.conversation_id)
    assert failure.message.startswith(f"{field} ")


STANDARD = "voice_sample.data must be the recording in standard base64, a string; it is "


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"type": "Buffer", "data": [82, 73]}, "a JSON object"),
        ([82, 73], "a JSON list"),
        (5, "a number"),
        (-0.5, "a number"),
        (True, "true"),
        ("https://example.com/a recording.wav", "a URL: send the recording behind it"),
        ("https://example.com/recording.wav?sig=a%2Bb", "a URL: send the recording behind it"),
        ("s3://bucket/recording.wav", "a URL: send the recording behind it"),
        (" blob:https://example.com/0b1c2d\n", "a URL: send the recording behind it"),
        ("data:audio/wav,RIFF", "a data: URL that is not in base64"),
        ("data:audio/wav;base64,UklG!", "a data: URL whose base64 cannot be read"),
        ("<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML, a web page"),
        ("<Error><Code>AccessDenied</Code></Error>", "XML"),
        ('{"audio": "UklGRg=="}', "JSON text"),
        ("[82, 73, 70, 70]", "JSON text"),
        ("b'UklGRg=='", "bytes as Python prints them"),
        ("'UklGRg=='", "in quotes of its own"),
        ("52494646" * 10, "hexadecimal text"),
        ("52494646" * 10 + "0", "hexadecimal text"),
        ("0x" + "52494646" * 10, "hexadecimal text"),
        ("52 49 46 46 52 49 46 46 52 49 46 46 52 49", "hexadecimal text"),
        ("Ukl%2BRg%3D%3D", "percent-encoded"),
        ("/tmp/recording 1.mp3", "the name of a file: send what the file holds"),
        ("C:\\calls\\Élan.WAV", "the name of a file: send what the file holds"),
        ("Ukl-Rg__" * 1_000, 'URL-safe base64, with "-" and "_"'),
        ("UklGRg", "base64 that is cut short or lacks its padding, of 6 characters"),
        ("UklG\nRg=", "base64 that is cut short or lacks its padding, of 7 characters"),
        (ENCODED[:-3], f"base64 that is cut short or lacks its padding, of {len(ENCODED) - 3} characters"),
        ("ab/d ef ghij kl", 'base64 with spaces where "+" stood, as a form leaves it that is not encoded'),
        ("RIFF\x00\x00WAVE", "text that is not base64"),
        ("ÜklG", "text that is not base64"),
        ("UklG====", "text that is not base64"),
        ("A" * 4_000 + "!" + "A" * 4_000, "text that is not base64"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_no_base64(refused: Callable[..., DeliveryError], data: Any, found: str) -> None:
    """Says what stands where base64 should, and nothing of it."""
    failure = refused(written(voice_sample__data=data))

    assert ("FIELD_INVALID", f"{STANDARD}{found}.") == (failure.reason, failure.message)


def test_half_a_character(refused: Callable[..., DeliveryError]) -> None:
    """What no text can hold is no base64."""
    failure = refused(written(voice_sample__data="@").replace('"@"', '"UklG\\ud800"'))

    assert ("FIELD_INVALID", f"{STANDARD}text that is not base64.") == (failure.reason, failure.message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"5",
        b"not json",
        b"\xff\xfe{\x00}\x00",
        written().encode() + b"}",
        written().encode("utf-16"),
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 99_999 + b"}",
        b"{'type': 'pre_call'}",
        written().encode("utf-32"),
    ],
)
def test_malformed_json(refused: Callable[..., DeliveryError], body: bytes) -> None:
    """Refuses what is not a JSON object."""
    failure = refused(body)

    assert ("MALFORMED_BODY", None) == (failure.reason, failure.conversation_id)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", form(METADATA, FILE)),
        ("multipart/form-data; boundary=", form(METADATA, FILE)),
        ("multipart/form-data; boundary=other", form(METADATA, FILE)),
        (f"multipart/form-data; boundary={'x' * 300}", form(METADATA, FILE)),
        (FORM, b""),
        (FORM, b"garbage"),
        (FORM, METADATA + FILE),
        (FORM, form(METADATA, FILE)[:-10]),
        (FORM, METADATA + FILE[:100]),
        (FORM, form(b"--" + BOUNDARY.encode() + b"\r\nno header\r\n\r\nx\r\n", METADATA, FILE)),
        (FORM, form(part("metadata", b"[]"), FILE)),
        (FORM, form(part("metadata", b""), FILE)),
        (FORM, form(part("metadata", b"\xff\xfe"), FILE)),
    ],
)
def test_malformed_form(refused: Callable[..., DeliveryError], content_type: str, body: bytes) -> None:
    """Refuses a form that is broken, cut short or announced without its boundary."""
    assert "MALFORMED_BODY" == refused(body, content_type).reason


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (form(METADATA), "voice_sample"),
        (form(FILE), "metadata"),
        (form(METADATA, METADATA, FILE), "metadata"),
        (form(METADATA, FILE, FILE), "voice_sample"),
        (form(METADATA, part("voice_sample", b"")), "voice_sample"),
        (form(part("metadata", written(agent_id=...).encode()), FILE), "agent_id"),
        (form(part("metadata", written(caller_metadata__name=5).encode()), FILE), "caller_metadata.name"),
    ],
)
def test_form_field_invalid(refused: Callable[..., DeliveryError], body: bytes, field: str) -> None:
    """Names the part, or the field of the metadata, that is missing, empty, repeated or wrong."""
    failure = refused(body, FORM)

    assert "FIELD_INVALID" == failure.reason
    assert failure.message.startswith(f"{field} ")


def test_sample_of_the_limit(parse: Callable[..., Delivery]) -> None:
    """A sample may be exactly as large as the limit."""
    largest = base64.b64encode(bytes(LIMIT)).decode()

    assert LIMIT == len(parse(written(voice_sample__data=largest)).sample)


@pytest.mark.parametrize("as_form", [False, True])
def test_sample_too_large(refused: Callable[..., DeliveryError], as_form: bool) -> None:
    """A sample of one byte more is refused, and both sizes are told."""
    sample = bytes(LIMIT + 1)
    if as_form:
        failure = refused(form(METADATA, part("voice_sample", sample)), FORM)
    else:
        failure = refused(written(voice_sample__data=base64.b64encode(sample).decode()))

    assert ("SAMPLE_TOO_LARGE", "conv_abc123xyz") == (failure.reason, failure.conversation_id)
    assert "agent_def456uvw" == failure.agent_id
    assert "The voice sample has 1001 bytes, at most 1000 are allowed." == failure.message


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "type",
                            "agent_id",
                            "conversation_id",
                            "caller_metadata",
                            "name",
                            "voice_sample",
                            "data",
                        ]
                    ),
                    inner,
                    max_size=5,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.sampled_from(["application/json", FORM, "multipart/form-data; boundary=\x00"]),
)
def test_nothing_else_escapes(verified: Callable[[bytes], Any], body: bytes, content_type: str) -> None:
    """Whatever a known sender writes is read or ends in DeliveryError."""
    with pytest.raises(DeliveryError):
        read(verified(body), media_type([content_type]), max_sample_bytes=LIMIT)


def test_another_event(refused: Callable[..., DeliveryError]) -> None:
    """Says of an event that belongs to another address that it is not of the kind that is taken here."""
    body = json.dumps({"type": "post_call_transcription", "data": {"conversation_id": "conv_1"}})

    assert 'type must be "pre_call".' == refused(body).message


def test_misfit_among_many_fields(refused: Callable[..., DeliveryError]) -> None:
    """However many fields there are, only those that count are looked at to say which one is at fault."""
    body = json.dumps(
        {"type": 5, "conversation_id": "conv_1", "agent_id": "agent_1"} | {f"k{n}": n for n in range(20_000)}
    )
    tracemalloc.start()
    try:
        failure = refused(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert failure.message.startswith("type ")
    assert ("conv_1", "agent_1") == (failure.conversation_id, failure.agent_id)
    assert most < 3 * len(body)
