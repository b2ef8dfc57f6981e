"""One conversation of an agent with a person who calls or is called."""

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Json = dict[str, Any]
Kind = Literal["twilio", "sip", "whatsapp"]
Direction = Literal["inbound", "outbound"]
Status = Literal["in-progress", "failed", "done"]

SIP_HEADER = ("X-Desk", "front")
"""A header of the INVITE beside those that the provider itself reads."""
SIP_VARIABLE = "sip_desk"
"""The dynamic variable that the provider makes of it."""


class Conversation(msgspec.Struct, kw_only=True):
    """What the provider knows of a conversation."""

    conversation_id: str
    agent_id: str
    kind: Kind
    direction: Direction
    external_number: str
    """The person's."""
    agent_number: str
    call_sid: str
    """Empty if the call did not come through Twilio."""
    call_id: str
    """Empty if the call did not come through a SIP trunk."""
    started_at: float
    status: Status = "in-progress"
    faults: list[str] = []
    """Why the provider fails the conversation, a sentence each; empty when it does not."""
    voice_id: str | None = None
    """The voice that the caller hears; None while the call is being prepared, or if it failed."""
    first_message: str | None = None
    """What the agent says first, its variables filled in; None as for `voice_id`."""
    dynamic_variables: Json = {}
    """The variables of the client, without the provider's own."""
    client_data: Json | None = None
    """The initiation data that was accepted, from either side; None where there is none."""
    webhook_status: int | None = None
    webhook_ms: float | None = None
    """How long the initiation webhook took, answered or not; None where it was not called."""
    webhook_body: str | None = None

    @property
    def caller_id(self) -> str:
        """Who called whom: on an outbound call this is the agent's side."""
        return self._line if self.direction == "outbound" else self._person

    @property
    def called_number(self) -> str:
        """Who was called: on an outbound call this is the person."""
        return self._person if self.direction == "outbound" else self._line

    @property
    def whatsapp_user_id(self) -> str:
        """An id for the person in which the number cannot be seen; what is no number is the id itself."""
        return _whatsapp_id(self.external_number)

    @property
    def whatsapp_phone_number_id(self) -> str:
        """The same for the agent's number."""
        return _whatsapp_id(self.agent_number)

    def request(self, *, tell_conversation_id: bool) -> Json:
        """The body of the initiation webhook; the older shape does not tell the conversation's id."""
        body: Json = {
            "caller_id": self.caller_id,
            "called_number": self.called_number,
            "agent_id": self.agent_id,
            "call_sid": self.call_sid,
        }
        if tell_conversation_id:
            body["conversation_id"] = self.conversation_id
        if self.kind == "sip":
            body["call_id"] = self.call_id
            body["sip_headers"] = {
                "X-CALL-ID": self.call_id,
                "X-CALLER-ID": self.caller_id,
                SIP_HEADER[0]: SIP_HEADER[1],
            }
        # The provider says that fields will be added, so a client must accept unknown ones.
        return body | {"emulator_extra": {"kind": self.kind, "added_in": None}}

    @property
    def sip_variables(self) -> dict[str, str]:
        """The dynamic variables that a SIP call brings along."""
        return {SIP_VARIABLE: SIP_HEADER[1]} if self.kind == "sip" else {}

    @property
    def provided_variables(self) -> dict[str, str]:
        """The dynamic variables that no client needs to give."""
        return {
            **self.sip_variables,
            "system__agent_id": self.agent_id,
            "system__caller_id": self.caller_id,
            "system__called_number": self.called_number,
            "system__call_sid": self.call_sid,
            "system__conversation_id": self.conversation_id,
            "system__time_utc": datetime.fromtimestamp(self.started_at, UTC).isoformat(),
        }

    @property
    def _person(self) -> str:
        return self.whatsapp_user_id if self.kind == "whatsapp" else self.external_number

    @property
    def _line(self) -> str:
        return self.whatsapp_phone_number_id if self.kind == "whatsapp" else self.agent_number


def _whatsapp_id(number: str) -> str:
    if not number.startswith("+"):
        return number
    return str(10**14 + int(hashlib.sha256(number.encode()).hexdigest(), 16) % (9 * 10**14))
