"""Both processes judge a field alike: each value is sent to the gateway as JSON, and to the cloner over gRPC."""

import hashlib
import hmac
import json

import pytest
from precall.v1 import cloning_pb2 as pb

from callerid import (
    MAX_BIRTH,
    MAX_CALL_ID,
    MAX_CONSENT,
    MAX_CONVERSATION_ID,
    MAX_ID,
    MAX_NAME,
    conversation,
    identifier,
)
from cloner.rpc.fields import Fields
from cloner.rpc.status import FieldInvalid
from cloner.voices.callers import Identities
from gateway.edge.fault import DeliveryError
from gateway.edge.signature import Verifier
from gateway.precall.request import MediaType, read

FAULTY = None

# The field, what is sent, and what both processes read.
CONVERSATIONS = [
    ("conv_1", "conv_1"),
    ("  conv 1 ", "conv 1"),
    ("é" * 256, "é" * 256),
    ("\U0001f468", "\U0001f468"),
    ("c" * 257, FAULTY),
    ("", FAULTY),
    (" ", FAULTY),
    ("\n", FAULTY),
    ("a\nb", FAULTY),
    ("conv_1\n", FAULTY),
    ("\tconv_1", FAULTY),
    ("conv_1\u00a0", FAULTY),
    ("a\u202eb", FAULTY),
    ("conv_\ufffd", FAULTY),
]
IDS = [
    ("agent_1-A", "agent_1-A"),
    ("a" * 128, "a" * 128),
    ("a" * 129, FAULTY),
    ("", FAULTY),
    (" agent_1", FAULTY),
    ("agent_1\n", FAULTY),
    ("../voices", FAULTY),
    ("agént", FAULTY),
    ("٣", FAULTY),
]
ABOUT_CALLERS = [
    ("name", "\tZoë \u202e\u200c\ufffd\r\n", "Zoë \u202e\u200c\ufffd"),
    ("name", "é" * 200, "é" * 200),
    ("name", f" {'é' * 200}\n", "é" * 200),
    ("name", "é" * 201, FAULTY),
    ("name", "a\nb", FAULTY),
    ("name", "a\x85b", FAULTY),
    ("name", " ", ""),
    ("date_of_birth", "11 december 2007 ", "11 december 2007"),
    ("date_of_birth", "1" * 64, "1" * 64),
    ("date_of_birth", "1" * 65, FAULTY),
    ("date_of_birth", "\0", FAULTY),
    ("consent", " record 5 ", "record 5"),
    ("consent", "c" * 200, "c" * 200),
    ("consent", "c" * 201, FAULTY),
    ("consent", "a\nb", FAULTY),
    ("phone_number", " +31612345678 ", "+31612345678"),
    ("phone_number", "anonymous", "anonymous"),
    ("phone_number", "1" * 64, "1" * 64),
    ("phone_number", "1" * 65, FAULTY),
    ("phone_number", "sip:+31612345678@" + "h" * 200, "sip:+31612345678@" + "h" * 200),
    ("phone_number", "sip:+31612345678@" + "h" * 240, FAULTY),
    ("phone_number", "+316\x7f1", FAULTY),
]


FIELDS = [
    *(("conversation_id", *row) for row in CONVERSATIONS),
    *(("agent_id", *row) for row in IDS),
    *ABOUT_CALLERS,
]


def short(value: object) -> str:
    """A value as the id of a test."""
    return ascii(value)[:24]


def of_gateway(field: str, text: str) -> tuple[str | None, str]:
    """What the gateway reads in a field, and what it says of it; None and why, where it is at fault."""
    about_caller = field not in ("agent_id", "conversation_id")
    event = {
        "type": "pre_call", "agent_id": "agent_1", "conversation_id": "conv_1",
        "voice_sample": {"data": "UklGRg=="},
        **({"caller_metadata": {field: text}} if about_caller else {field: text}),
    }  # fmt: skip
    content = json.dumps(event).encode()
    digest = hmac.new(b"k", b"1." + content, hashlib.sha256).hexdigest()
    verifier = Verifier([f"t=1,v0={digest}"], [b"k"], now=1)
    verifier.feed(content)
    try:
        delivery = read(verifier.finish(), MediaType(boundary=None), max_sample_bytes=100)
    except DeliveryError as failure:
        return FAULTY, failure.message.removeprefix("caller_metadata.").removesuffix(".")
    return getattr(delivery, field) or "", ""


def of_cloner(field: str, text: str) -> tuple[str | None, str]:
    """The same of the cloner."""
    fields = Fields(Identities(b"k" * 32, "caller"))
    if field == "agent_id":
        told = fields.id(field, text)
    elif field == "conversation_id":
        told = fields.conversation(field, text, required=True)
    elif field == "consent":
        told = fields.consent(text)
    else:
        told = getattr(fields.caller(pb.Caller(**{field: text})), field)
    try:
        fields.check()
    except FieldInvalid as failure:
        return FAULTY, str(failure).removeprefix("caller.")
    return told, ""


@pytest.mark.parametrize(("field", "text", "read_as"), FIELDS, ids=short)
def test_alike(field: str, text: str, read_as: str | None) -> None:
    """Reads the same text, or finds the same field at fault."""
    told, others = of_gateway(field, text), of_cloner(field, text)

    assert (read_as, read_as) == (told[0], others[0])
    assert told[1].split(" ")[0] == others[1].split(" ")[0]


@pytest.mark.parametrize(
    ("field", "text"),
    [(field, text) for field, text, read_as in ABOUT_CALLERS if read_as is FAULTY],
    ids=short,
)
def test_faults_alike(field: str, text: str) -> None:
    """Says the same of a text about a caller."""
    assert of_gateway(field, text) == of_cloner(field, text)


def test_lengths() -> None:
    """The lengths are those of the contract."""
    assert (128, 64, 256, 200, 64, 200) == (
        MAX_ID,
        MAX_CALL_ID,
        MAX_CONVERSATION_ID,
        MAX_NAME,
        MAX_BIRTH,
        MAX_CONSENT,
    )


def test_nothing_told() -> None:
    """What nobody told is no id."""
    assert (None, None) == (identifier(None), conversation(None))
