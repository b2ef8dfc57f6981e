import json
from pathlib import Path

import pytest

from cli.enrolment.listing import read_callers
from cloner.voices.callers import Identities
from gateway.conversation.start_data import Facts
from gateway.initiation.request import read

KEY = b"a key of sixteen and more bytes"


def opened(region: str | None, **fields: str | None) -> str | None:
    """What the initiation webhook tells the cloner of who calls."""
    return read(json.dumps(fields).encode(), own_numbers=(), region=region).phone_number


def identified(text: str | None, region: str | None) -> str | None:
    """The hash by which the cloner finds the number, in a delivery, an RPC or a request to forget."""
    return Identities(KEY, "caller", region=region).number_hash(text or "")


def spoken_of(text: str | None, region: str | None) -> str | None:
    """The number as the gateway tells it to an agent."""
    return Facts(
        name=None,
        date_of_birth=None,
        number=text,
        region=region,
        agent_id=None,
        conversation_id=None,
        call_id="",
    ).phone_number


@pytest.mark.parametrize(
    ("region", "text", "expected"),
    [
        ("US", "whatsapp:6598765432", "+6598765432"),
        ("US", "6598765432@s.whatsapp.net", "+6598765432"),
        ("IT", "<3725123456@c.us>", "+3725123456"),
        ("NL", "whatsapp:5215512345678", "+525512345678"),
        ("NL", "558181234567", "+5581981234567"),
        ("NL", "06 12345678", "+31612345678"),
        ("LU", "sip:2022@pbx.example", None),
        ("NL", "020 1234567; 06 12345678", None),
    ],
)
def test_alike(tmp_path: Path, region: str, text: str, expected: str | None) -> None:
    """The gateway, the cloner and an enrolment list read a number alike."""
    told = opened(region, caller_id=text, call_sid="CA1")
    callers = tmp_path / "callers.csv"
    callers.write_text(f'file,phone_number\na.mp3,"{text}"\n')
    (row,) = read_callers(callers, region)

    assert (expected or text) == spoken_of(told, region) == row.phone_number
    assert (expected is None) == bool(row.fault)
    found = identified(expected, None)
    assert [found] * 3 == [identified(each, region) for each in (text, told, row.phone_number)]
