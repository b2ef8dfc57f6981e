"""Reads what a verified event after a call says. Knows no web framework.

Everything is read leniently: ElevenLabs says that fields will be added, and a text that cannot be an id
counts as missing. An event that names no call is the sender's fault, and nothing was done yet:

    DeliveryError MALFORMED_BODY   not JSON, or not an object
    DeliveryError FIELD_INVALID    a field is missing without which the event says nothing
    BodyError BODY_TOO_LARGE       the same, of an event that was too large to be held as a whole

A recording comes as an event of tens of megabytes that ends no call, so it need not be held: its type comes
first. Of every event that is too large only the first bytes are read.
"""

import re
from typing import Annotated

from msgspec import UNSET, Raw, Struct, UnsetType

from callerid import MAX_CALL_ID, MAX_CONVERSATION_ID, conversation, identifier
from gateway.edge.body import BodyError
from gateway.edge.described import described
from gateway.edge.fault import DeliveryError
from gateway.edge.loose_json import BOM, NotJson, NotObject, convert, text
from gateway.edge.signature import VerifiedBody, Verifier

__all__ = ["Event", "SentEvent", "read", "trim"]

# The events after which a call is over.
ENDING = frozenset({"post_call_transcription", "post_call_transcription_otel", "call_initiation_failure"})
AUDIO = "post_call_audio"

# How much is kept of an event that is not held as a whole.
HEAD_BYTES = 65_536
UNNAMED = f"The event is too large, and its first {HEAD_BYTES} bytes do not say what it is and of which call."
BEGINNING_BYTES = 512
BEGINNING = re.compile(rb'(?:%b)?\s*\{\s*"type"\s*:\s*"([^"\\]*)"' % BOM)

OURS = described("As our own answer before the call said it.")


class SentVariables(Struct):
    """The dynamic variables of the conversation."""

    precall_call_id: Annotated[str | None, OURS] = None


class SentVoice(Struct):
    """The voice of the conversation."""

    voice_id: Annotated[str | None, OURS] = None


class SentOverride(Struct):
    """What the conversation overrode at its agent."""

    tts: SentVoice | None = None


class SentStart(Struct):
    """What the conversation was started with."""

    dynamic_variables: SentVariables | None = None
    conversation_config_override: SentOverride | None = None


class SentData(Struct):
    """What happened, and in which call."""

    conversation_id: Annotated[
        str | None,
        described("The conversation that is over.", maxLength=MAX_CONVERSATION_ID),
    ] = None
    agent_id: Annotated[str | None, described("The agent that took the call.")] = None
    conversation_initiation_client_data: SentStart | None = None
    # Left as it is: of a recording it is of interest only that there is one.
    full_audio: (
        Annotated[Raw, described("The recording of a `post_call_audio`. Not used.", type="string")]
        | UnsetType
    ) = UNSET

    @property
    def call_id(self) -> str | None:
        """The id that our own answer before the call gave it."""
        start = self.conversation_initiation_client_data or SentStart()
        return (start.dynamic_variables or SentVariables()).precall_call_id

    @property
    def voice_id(self) -> str | None:
        """The voice that our own answer before the call carried."""
        start = self.conversation_initiation_client_data or SentStart()
        override = start.conversation_config_override or SentOverride()
        return (override.tts or SentVoice()).voice_id


class SentEvent(Struct):
    """The fields that are read. Each may hold anything, or be missing."""

    # Without defaults, since an event that ends a call needs both: UNSET where they were not sent.
    type: (
        Annotated[
            str,
            described(
                "`post_call_transcription`, `post_call_transcription_otel` and `call_initiation_failure` "
                "end the call. `post_call_audio` and whatever else there is end nothing."
            ),
        ]
        | UnsetType
        | None
    )
    data: SentData | UnsetType | None


class Event(Struct, frozen=True, kw_only=True):
    """What happened, and what is known of the call that it happened to; None where it is not known."""

    type: str | None
    """None for a type of event that is not known here."""

    conversation_id: str | None
    call_id: str | None
    """None without an agent, too."""

    agent_id: str | None
    voice_id: str | None

    @property
    def ends_call(self) -> bool:
        """Whether the call is over."""
        return self.type in ENDING

    @property
    def names_call(self) -> bool:
        """Whether the call can be found."""
        return bool(self.conversation_id or self.call_id or (self.agent_id and self.voice_id))


def trim(check: Verifier, most: int) -> None:
    """Drops all but the beginning of an event that ends no call, or is larger than may be held."""
    beginning = BEGINNING.match(check.first(BEGINNING_BYTES))
    if check.kept > most or (beginning is not None and text(b'"%b"' % beginning[1]) not in ENDING):
        check.keep_first(min(HEAD_BYTES, most))


def read(body: VerifiedBody) -> Event:
    """What the event says. Raises DeliveryError, and BodyError where too little of it was held."""
    sent = _sent(body)
    kind, data = sent.type or None, sent.data or SentData()
    if not kind and data.full_audio is not UNSET:
        kind = AUDIO
    agent_id = identifier(data.agent_id)
    event = Event(
        type=kind if kind in ENDING or kind == AUDIO else None,
        conversation_id=conversation(data.conversation_id),
        # What is echoed is a stranger's to set, so it names a call only together with the call's agent.
        call_id=None if agent_id is None else identifier(data.call_id, most=MAX_CALL_ID),
        agent_id=agent_id,
        voice_id=identifier(data.voice_id),
    )
    if kind and (event.names_call or not event.ends_call):
        return event
    if not body.whole:
        raise BodyError("BODY_TOO_LARGE", UNNAMED)
    raise _missing(sent, event)


def _sent(body: VerifiedBody) -> SentEvent:
    """The event as it was sent. Raises DeliveryError, and BodyError where too little of it was held."""
    try:
        return convert(body.content, SentEvent, cut=not body.whole)
    except NotJson as failure:
        if not body.whole:
            raise BodyError("BODY_TOO_LARGE", UNNAMED) from None
        what = "a JSON object" if isinstance(failure, NotObject) else "JSON, in UTF-8"
        raise DeliveryError("MALFORMED_BODY", f"The body must be {what}.") from None


def _missing(sent: SentEvent, event: Event) -> DeliveryError:
    """What an event lacks that says nothing without it."""
    if not sent.type:
        field, must = "type", "must be a string" if sent.type is None else "is required"
    elif not sent.data:
        field, must = "data", "must be an object" if sent.data is None else "is required"
    elif sent.data.call_id and not event.agent_id:
        field, must = "data.agent_id", "is required where only precall_call_id names the call"
    else:
        field, must = "data.conversation_id", "is required"
    return DeliveryError(
        "FIELD_INVALID",
        f"{field} {must}.",
        agent_id=event.agent_id,
        conversation_id=event.conversation_id,
    )
