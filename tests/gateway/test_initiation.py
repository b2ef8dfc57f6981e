import json
from typing import Any

import pytest

from gateway.initiation.request import Initiation, read

TWILIO = {
    "caller_id": "+31612345678",
    "called_number": "+31201234567",
    "agent_id": "agent_1",
    "call_sid": "CA0123456789abcdef0123456789abcdef",
    "conversation_id": "conv_1",
}
OWN = frozenset({"+31201234567", "+318001234"})


def opened(**changes: Any) -> Initiation:
    """What is made of a request with these changes; None takes a field away."""
    whole = {name: value for name, value in (TWILIO | changes).items() if value is not None}
    return read(json.dumps(whole).encode(), own_numbers=OWN, region="NL")


def test_everything() -> None:
    """Takes in what names the agent, the call and the person."""
    assert opened(unknown={"a": [1]}) == Initiation(
        agent_id="agent_1",
        conversation_id="conv_1",
        call_sid="CA0123456789abcdef0123456789abcdef",
        sip_call_id=None,
        phone_number="+31612345678",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "+31612345678"),
        ({"caller_id": "+31201234567", "called_number": "+31612345678"}, "+31612345678"),
        ({"caller_id": "08001234", "called_number": "+31612345678"}, "+31612345678"),
        ({"caller_id": "31201234567", "called_number": "+31612345678"}, "+31612345678"),
        ({"caller_id": "0031 (0)20 1234567", "called_number": "+31612345678"}, "+31612345678"),
        ({"caller_id": "sip:020-1234567@10.0.0.1;user=phone", "called_number": "06 12345678"}, "06 12345678"),
        (
            {"caller_id": "tel:+31-20-1234567", "called_number": "sip:+31612345678@host"},
            "sip:+31612345678@host",
        ),
        ({"caller_id": "anonymous", "called_number": "anonymous"}, "anonymous"),
        ({"caller_id": "+31201234567", "called_number": None}, None),
        ({"caller_id": "+31201234568", "called_number": "+31612345678"}, "+31201234568"),
        ({"caller_id": "anonymous", "called_number": "+31201234567"}, "anonymous"),
        ({"caller_id": '"Ivan" <sip:+31612345678@10.0.0.1>'}, '"Ivan" <sip:+31612345678@10.0.0.1>'),
        ({"caller_id": "\u202a+31\u00a0612345678\u202c"}, "\u202a+31 612345678\u202c"),
        ({"caller_id": " +31\t612345678\n"}, "+31 612345678"),
        ({"caller_id": "sip:+31612345678@" + "h" * 240}, None),
        ({"caller_id": ""}, None),
        ({"caller_id": 31612345678}, "31612345678"),
        ({"caller_id": 31201234567, "called_number": 31612345678}, "31612345678"),
        ({"caller_id": 0}, None),
        ({"caller_id": -31612345678}, None),
        ({"caller_id": 31612345678.5}, None),
        ({"caller_id": 10**64}, None),
        ({"caller_id": True}, None),
        ({"caller_id": ["+31612345678"]}, None),
        ({"caller_id": "+316\x0012345678"}, None),
        ({"caller_id": "1" * 65}, None),
        ({"caller_id": None}, None),
    ],
)
def test_person(changes: dict[str, Any], expected: str | None) -> None:
    """Takes the number of the person, whoever calls whom and however it is written."""
    assert expected == opened(**changes).phone_number


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # WhatsApp calls a person by the digits of an international number, and what is called by an id.
        ({}, "+6598765432"),
        ({"caller_id": 6598765432}, "+6598765432"),
        ({"caller_id": "31612345678"}, "+31612345678"),
        ({"caller_id": "2025550123"}, None),
        ({"caller_id": "US.13491208655302741918"}, "US.13491208655302741918"),
        # Where a number is called it should not be WhatsApp: what may be two people's is nobody's.
        ({"called_number": "+12025550100"}, None),
        ({"called_number": None}, None),
        ({"called_number": "+12025550100", "caller_id": "31612345678"}, "31612345678"),
        ({"called_number": "+12025550100", "caller_id": "2025550123"}, "2025550123"),
        ({"called_number": "sip:desk@10.0.0.1", "caller_id": "2025550123"}, "2025550123"),
        # An SMS has no line either, and the number's plus.
        ({"called_number": "+12025550100", "caller_id": "+16598765432"}, "+16598765432"),
        # On an outbound call the two are the other way round.
        ({"caller_id": "+31201234567", "called_number": "6598765432"}, None),
        ({"caller_id": "+31201234567", "called_number": "31612345678"}, "31612345678"),
        ({"caller_id": "+31201234567", "called_number": "+16598765432"}, "+16598765432"),
        # A line of its own: a telephone call, whose number is read as they are written where we are.
        ({"call_sid": "CA1"}, "6598765432"),
        ({"call_sid": None}, "6598765432"),
        ({"call_id": "sip-1"}, "6598765432"),
    ],
)
def test_whatsapp(changes: dict[str, Any], expected: str | None) -> None:
    """The digits that WhatsApp sends are no national number, which would be somebody else's."""
    sent = {"caller_id": "6598765432", "called_number": "106540352242922", "call_sid": ""} | changes
    content = json.dumps({name: value for name, value in sent.items() if value is not None}).encode()

    assert expected == read(content, own_numbers=OWN, region="US").phone_number


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("conv_1", "CA0123456789abcdef0123456789abcdef", None)),
        ({"conversation_id": None}, (None, "CA0123456789abcdef0123456789abcdef", None)),
        ({"conversation_id": "", "call_sid": "", "call_id": "sip-1"}, (None, None, "sip-1")),
        ({"call_id": "sip-1"}, ("conv_1", "CA0123456789abcdef0123456789abcdef", "sip-1")),
        ({"conversation_id": None, "call_sid": ""}, (None, None, None)),
        ({"conversation_id": "a\nb", "call_sid": 5, "call_id": ["x"]}, (None, None, None)),
        ({"conversation_id": "c" * 257, "call_sid": None}, (None, None, None)),
    ],
)
def test_call(changes: dict[str, Any], expected: tuple[str | None, ...]) -> None:
    """Takes what names the call, in each shape of the request."""
    actual = opened(**changes)

    assert expected == (actual.conversation_id, actual.call_sid, actual.sip_call_id)
    assert [name for name in expected if name][:1] == list(actual.name.values())


@pytest.mark.parametrize("agent_id", [None, "", "a b", "a" * 129, 7, {"id": "agent_1"}, "../agents"])
def test_no_agent(agent_id: Any) -> None:
    """What cannot be an agent is none."""
    assert opened(agent_id=agent_id).agent_id is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"agent_id": "\\ud800"}',
        b'{"caller_id":',
    ],
)
def test_not_readable(content: bytes) -> None:
    """What is no JSON object says nothing, and is no failure."""
    expected = Initiation(
        agent_id=None, conversation_id=None, call_sid=None, sip_call_id=None, phone_number=None
    )

    assert expected == read(content, own_numbers=OWN, region="NL")


def test_number_beside_junk() -> None:
    """A number that was sent as digits is found whatever the other fields hold."""
    found = read(b'{"caller_id": 31612345678, "junk": NaN}', own_numbers=OWN, region="NL")

    assert "31612345678" == found.phone_number
