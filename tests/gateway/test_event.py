import hashlib
import hmac
import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.body import BodyError
from gateway.edge.fault import DeliveryError
from gateway.edge.signature import VerifiedBody, Verifier
from gateway.postcall.request import HEAD_BYTES, Event, read, trim

MOST = 100_000


def received(body: bytes, *, pieces: int = 1_000) -> VerifiedBody:
    """The body as the route keeps it."""
    digest = hmac.new(b"k", b"1." + body, hashlib.sha256).hexdigest()
    verifier = Verifier([f"t=1,v0={digest}"], [b"k"], now=1)
    for at in range(0, len(body), pieces):
        verifier.feed(body[at : at + pieces])
        trim(verifier, MOST)
        assert verifier.kept <= MOST
    return verifier.finish()


def event(kind: Any = "post_call_transcription", **data: Any) -> bytes:
    """An event with this data, the type first."""
    return json.dumps({"type": kind, "event_timestamp": 1739537297, "data": data}).encode()


FULL = {
    "agent_id": "agent_x",
    "conversation_id": "conv_y",
    "conversation_initiation_client_data": {
        "conversation_config_override": {"agent": {"first_message": None}, "tts": {"voice_id": "voice_1"}},
        "dynamic_variables": {"precall_call_id": "call_1", "visits": 3},
    },
}
KNOWN = Event(
    type="post_call_transcription",
    conversation_id="conv_y",
    call_id="call_1",
    agent_id="agent_x",
    voice_id="voice_1",
)
START = FULL["conversation_initiation_client_data"]
LONG = [{"role": "user", "message": 'conversation_id": "conv_other"}, \\ ' + "x" * 500, "n": None}] * 400


def test_all() -> None:
    """Finds all that names a call."""
    assert KNOWN == read(received(event(**FULL)))


def test_among_many_fields() -> None:
    """However many fields there are, only those that count are looked at."""
    body = event(**FULL)[:-1] + b"".join(b',"k%d":1' % n for n in range(8_000)) + b"}"
    whole = received(body)
    tracemalloc.start()
    try:
        found = read(whole)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert KNOWN == found
    assert most < 3 * len(body)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("indent", [None, 2])
def test_too_large(order: int, indent: int | None) -> None:
    """Finds the same near the beginning of an event that is too large to be held, in whatever order."""
    data = dict([*list(FULL.items())[::order], ("transcript", LONG)])
    body = json.dumps({"type": "post_call_transcription", "data": data}, indent=indent).encode()

    held = received(body)

    assert (False, HEAD_BYTES) == (held.whole, len(held.content))
    assert KNOWN == read(held)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (event("post_call_audio", full_audio="A" * 90_000), HEAD_BYTES),
        (event("unredacted_audio", full_audio="A" * 90_000), HEAD_BYTES),
        (event("post_call_audio\u0000", full_audio="A" * 90_000), 90_000),
        (event("post_call_transcription", x="A" * 90_000), 90_000),
        (event("call_initiation_failure", x="A" * 90_000), 90_000),
        (b'\n{ "type" :\t"post_call_audio" , "data":"' + b"A" * 90_000 + b'"}', HEAD_BYTES),
        (b'{"data":{"full_audio":"' + b"A" * 90_000 + b'"},"type":"post_call_audio"}', 90_000),
        (b'{"type":"post_call\\u005ftranscription","x":"' + b"A" * 90_000 + b'"}', 90_000),
    ],
)
def test_held(body: bytes, kept: int) -> None:
    """Lets go of what says at its beginning that it ends no call, and of nothing else."""
    assert kept <= len(received(body, pieces=7).content) <= kept + 200


@pytest.mark.parametrize("size", [10, 60_000, 99_000, 200_000])
@pytest.mark.parametrize("first", ["type", "data"])
def test_audio(size: int, first: str) -> None:
    """Knows a recording of any size, whether or not its type comes first."""
    data = {"agent_id": "agent_x", "conversation_id": "conv_y", "full_audio": "A" * size}
    whole = {"type": "post_call_audio", "data": data}
    body = json.dumps({first: whole[first], **whole}).encode()

    found = read(received(body))

    assert ("post_call_audio", "conv_y", "agent_x") == (found.type, found.conversation_id, found.agent_id)
    assert not found.ends_call


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("kind", ["voice_removed", "something\nnew", "POST_CALL_TRANSCRIPTION"])
def test_unknown(kind: str, size: int) -> None:
    """Does not repeat the name of an event that is not known, and it ends nothing."""
    found = read(received(event(kind, voices=["A" * size])))

    assert (None, False) == (found.type, found.ends_call)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"conversation_id": "conv_y"}, ("conv_y", None, None, None)),
        (
            {"conversation_id": 5, "agent_id": "agent_x", "conversation_initiation_client_data": START},
            (None, "call_1", "agent_x", "voice_1"),
        ),
        (
            {"conversation_id": "", "agent_id": "agent_x", "conversation_initiation_client_data": START},
            (None, "call_1", "agent_x", "voice_1"),
        ),
        (
            {"conversation_id": "a\nb", "agent_id": "agent_x", "conversation_initiation_client_data": START},
            (None, "call_1", "agent_x", "voice_1"),
        ),
        # No id of ours is as long.
        (
            {
                "conversation_id": "conv_y",
                "agent_id": "agent_x",
                "conversation_initiation_client_data": {"dynamic_variables": {"precall_call_id": "c" * 65}},
            },
            ("conv_y", None, "agent_x", None),
        ),
        # Echoed by a call at an agent that nobody knows: it names no call of ours.
        (
            {"conversation_id": "conv_y", "conversation_initiation_client_data": START},
            ("conv_y", None, None, "voice_1"),
        ),
        (
            {
                "conversation_id": "conv_y",
                "agent_id": "agent.x",
                "conversation_initiation_client_data": START,
            },
            ("conv_y", None, None, "voice_1"),
        ),
        (
            {
                "agent_id": "agent_x",
                "conversation_initiation_client_data": {
                    "conversation_config_override": {"tts": {"voice_id": "voice_1"}},
                    "dynamic_variables": {"precall_call_id": 7},
                },
            },
            (None, None, "agent_x", "voice_1"),
        ),
        (
            {"conversation_id": "conv_y", "agent_id": "agent x", "conversation_initiation_client_data": None},
            ("conv_y", None, None, None),
        ),
        (
            {
                "conversation_id": "conv_y",
                "conversation_initiation_client_data": {
                    "conversation_config_override": {"tts": None},
                    "dynamic_variables": ["precall_call_id"],
                },
            },
            ("conv_y", None, None, None),
        ),
        (
            {
                "conversation_id": "conv_y",
                "conversation_initiation_client_data": {
                    "conversation_config_override": [],
                    "dynamic_variables": None,
                },
            },
            ("conv_y", None, None, None),
        ),
    ],
)
def test_lenient(data: dict[str, Any], expected: tuple[str | None, ...]) -> None:
    """What cannot be an id of ours counts as missing, as long as something names the call."""
    for body in (event(**data), event(**data, transcript=LONG)):
        found = read(received(body))

        assert expected == (found.conversation_id, found.call_id, found.agent_id, found.voice_id)


@pytest.mark.parametrize(
    ("body", "reason", "at_fault"),
    [
        (b"", "MALFORMED_BODY", "The body"),
        (b"secret text", "MALFORMED_BODY", "The body"),
        (b"\xff\xfe", "MALFORMED_BODY", "The body"),
        (
            b'{"type": "post_call_transcription", "data": {"conversation_id": "c"}',
            "MALFORMED_BODY",
            "The body",
        ),
        (b'{"type": "post_call_audio", "data": {"full_audio": "AAAA', "MALFORMED_BODY", "The body"),
        (b"[]", "MALFORMED_BODY", "The body"),
        (b"[" * 90_000, "MALFORMED_BODY", "The body"),
        (b"{}", "FIELD_INVALID", "type"),
        (event(None), "FIELD_INVALID", "type"),
        (event(""), "FIELD_INVALID", "type"),
        (event(5), "FIELD_INVALID", "type"),
        (b'{"type": "post_call_transcription"}', "FIELD_INVALID", "data"),
        (b'{"type": "call_initiation_failure", "data": []}', "FIELD_INVALID", "data"),
        (b'{"type": "post_call_transcription_otel", "data": null}', "FIELD_INVALID", "data"),
        (event(agent_id="agent_x"), "FIELD_INVALID", "data.conversation_id"),
        (event(agent_id="agent_x", conversation_id=" "), "FIELD_INVALID", "data.conversation_id"),
        (event(conversation_id="c" * 257), "FIELD_INVALID", "data.conversation_id"),
        (event(conversation_initiation_client_data=START), "FIELD_INVALID", "data.agent_id"),
    ],
)
def test_refused(body: bytes, reason: str, at_fault: str) -> None:
    """Refuses what will never name a call, by the field's name and without quoting it."""
    with pytest.raises(DeliveryError) as refused:
        read(received(body))

    assert reason == refused.value.reason
    assert refused.value.message.startswith(f"{at_fault} ")
    assert "secret text" not in refused.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (event(None), "type is required."),
        (event(5), "type must be a string."),
        (event(["post_call_transcription"]), "type must be a string."),
        (b'{"type": "post_call_transcription", "data": null}', "data is required."),
        (b'{"type": "post_call_transcription", "data": []}', "data must be an object."),
        (b'{"type": "post_call_transcription", "data": "conv_y", "x": NaN}', "data must be an object."),
        (event(conversation_id=5), "data.conversation_id is required."),
    ],
)
def test_says_what_is_wrong(body: bytes, message: str) -> None:
    """Tells what is missing from what is there and of another type."""
    with pytest.raises(DeliveryError) as refused:
        read(received(body))

    assert message == refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        event(transcript=LONG, conversation_id="conv_y"),
        json.dumps({"data": {"conversation_id": "conv_y", "transcript": LONG}, "type": "x"}).encode(),
        b" " * 200_000,
        bytes(200_000),
        b'"' * 200_000,
        b"[" * 200_000,
        b"}" * 200_000,
        b'{"type":"post_call_transcription","data":' * 10_000,
    ],
)
def test_too_large_to_be_found(body: bytes) -> None:
    """Refuses an event that is too large to be held and does not say early enough what it is."""
    with pytest.raises(BodyError) as refused:
        read(received(body))

    assert "BODY_TOO_LARGE" == refused.value.reason


def test_cut_anywhere() -> None:
    """Wherever an event was cut, what is found is what was said."""
    body = (
        b'{"type":"post_call_transcription","data":{"agent_id":"agent_x","conversation_id":"conv_y","x":"z"}}'
    )
    digest = hmac.new(b"k", b"1." + body, hashlib.sha256).hexdigest()
    for size in range(len(body)):
        verifier = Verifier([f"t=1,v0={digest}"], [b"k"], now=1)
        verifier.keep_first(size)
        verifier.feed(body)
        try:
            found = read(verifier.finish())
        except BodyError:
            continue
        assert ("post_call_transcription", "conv_y") == (found.type, found.conversation_id)
        assert found.agent_id == "agent_x"


@given(st.one_of(st.binary(), st.text(alphabet='{}[]:,"\\ tdae').map(str.encode)), st.booleans())
def test_nothing_else_escapes(body: bytes, cut: bool) -> None:
    """Whatever was signed ends in an event or in one of the two refusals."""
    body += b" " * (MOST if cut else 0)
    with suppress(DeliveryError, BodyError):
        read(received(body, pieces=MOST))
