"""Reads what ElevenLabs' initiation webhook says of a call that is about to start. Knows no web framework.

    {"caller_id", "called_number", "agent_id", "call_sid", "conversation_id", "call_id", ...}

Nothing here is an error: a call that nobody can be found for starts all the same. On an outbound call
`caller_id` is a number of our own and `called_number` the person's.
"""

import re
from collections.abc import Collection
from typing import Annotated

from msgspec import Struct

from callerid import conversation, e164, holds_control, identifier, longest
from gateway.edge.described import described
from gateway.edge.loose_json import NotJson, convert

__all__ = ["NOTHING", "Initiation", "SentInitiation", "read"]


# How WhatsApp writes a number: with its country, and without a plus.
USER_ID = re.compile("[1-9][0-9]*")


class SentInitiation(Struct):
    """The fields that are read. Each may hold anything, or be missing."""

    # A number whose sender wrote its digits without quotes is one all the same.
    caller_id: Annotated[
        str | int | None,
        described("The number that calls: the person's, or on an outbound call one of our own."),
    ] = None
    called_number: Annotated[str | int | None, described("The number that is called.")] = None
    agent_id: Annotated[str | None, described("The agent that takes the call.")] = None
    call_sid: Annotated[
        str | None,
        described("The id that the telephone line gives the call. Empty for WhatsApp and SMS."),
    ] = None
    conversation_id: Annotated[str | None, described("The conversation that is about to start.")] = None
    call_id: Annotated[str | None, described("As `call_sid`, of a SIP call.")] = None


class Initiation(Struct, frozen=True, kw_only=True):
    """A call that is about to start; None for what is not known of it."""

    agent_id: str | None
    conversation_id: str | None
    call_sid: str | None
    """The id that the telephone line gives it."""

    sip_call_id: str | None
    """The id that a SIP trunk gives it."""

    phone_number: str | None
    """The number of the person, whichever side called, as it was written. The cloner reads it."""

    @property
    def name(self) -> dict[str, str]:
        """The id that names the call best, as a field of OpenCallRequest; empty where there is none."""
        for field in ("conversation_id", "call_sid", "sip_call_id"):
            if name := getattr(self, field):
                return {field: name}
        return {}


NOTHING = Initiation(agent_id=None, conversation_id=None, call_sid=None, sip_call_id=None, phone_number=None)


def read(content: bytes, *, own_numbers: Collection[str], region: str | None) -> Initiation:
    """What the body says.

    `own_numbers` are those that our agents call from, in E.164 form, and `region` is the country in which
    national forms are read.
    """
    try:
        sent = convert(content, SentInitiation)
    except NotJson:
        return NOTHING
    caller, called = _number(sent.caller_id), _number(sent.called_number)
    outbound = bool(own_numbers) and caller is not None and e164(caller, region) in own_numbers
    person, other = (called, caller) if outbound else (caller, called)
    if sent.call_sid == "" and not sent.call_id and person is not None and USER_ID.fullmatch(person):
        person = _messenger(person, other, region)
    return Initiation(
        agent_id=identifier(sent.agent_id),
        conversation_id=conversation(sent.conversation_id),
        call_sid=conversation(sent.call_sid),
        sip_call_id=conversation(sent.call_id),
        phone_number=person,
    )


def _messenger(digits: str, other: str | None, region: str | None) -> str | None:
    """The number of somebody whom no telephone line brings; None where it may be one of two people's.

    On WhatsApp an id that is a number is one with its country, never a national one.
    """
    international = e164(digits, None)
    if other is not None and USER_ID.fullmatch(other) and e164(other, region) is None:
        # On WhatsApp the other side is an id of digits. On any other line it is a number.
        return international
    return None if international not in (None, e164(digits, region)) else digits


def _number(written: str | int | None) -> str | None:
    if isinstance(written, int):
        written = str(written) if written > 0 else None
    # Tabs and line ends count as blanks here, because there is nobody to report them to.
    number = " ".join((written or "").split())
    return number if number and not holds_control(number) and len(number) <= longest(number) else None
