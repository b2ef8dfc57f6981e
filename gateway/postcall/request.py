"""Reads what a verified event after a call says. Knows no web framework.

Everything is read leniently: ElevenLabs says that fields will be added, and an id that cannot be one counts
as missing. An event that names no call is the sender's fault, and nothing was done yet:

    DeliveryError MALFORMED_BODY   not JSON, or not an object
    DeliveryError FIELD_INVALID    a field is missing without which the event says nothing
    BodyError BODY_TOO_LARGE       the same, of an event that was too large to be held as a whole

A recording comes as an event of tens of megabytes that ends no call, so it need not be held: its type comes
first. Of every event that is too large only the first bytes are read.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from msgspec import Raw, Struct

from gateway.edge.body import BodyError
from gateway.edge.described import described
from gateway.edge.fault import MAX_CONVERSATION_ID, DeliveryError, conversation, identifier
from gateway.edge.loose_json import BOM, Kept, NotJson, distilled, fields, kept_by, text
from gateway.edge.signature import VerifiedBody, Verifier

__all__ = ["Event", "SentEvent", "read", "trim"]

# The events after which a call is over.
ENDING = frozenset({"post_call_transcription", "post_call_transcription_otel", "call_initiation_failure"})
AUDIO = "post_call_audio"

# How much is kept of an event that is not held as a whole.
HEAD_BYTES = 65_536
BEGINNING_BYTES = 512
BEGINNING = re.compile(rb'(?:%b)?\s*\{\s*"type"\s*:\s*"([^"\\]*)"' % BOM)

Path = tuple[str, ...]
TYPE = ("type",)
DATA = ("data",)
RECORDING = ("data", "full_audio")
CONVERSATION = ("data", "conversation_id")
AGENT = ("data", "agent_id")
START = ("data", "conversation_initiation_client_data")
CALL = (*START, "dynamic_variables", "precall_call_id")
VOICE = (*START, "conversation_config_override", "tts", "voice_id")
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
    full_audio: Annotated[str | None, described("The recording of a `post_call_audio`. Not used.")] = None


class SentEvent(Struct):
    """The fields that are read, each of which may hold anything, or be missing."""

    type: Annotated[
        str | None,
        described(
            "`post_call_transcription`, `post_call_transcription_otel` and `call_initiation_failure` "
            "end the call. `post_call_audio` and whatever else there is end nothing."
        ),
    ] = None
    data: SentData | None = None


KEPT = kept_by(SentEvent)


class Event(Struct, frozen=True, kw_only=True):
    """What happened, and what is known of the call that it happened to; None where it is not known."""

    type: str | None
    """None for a type of event that is not known here."""

    conversation_id: str | None
    call_id: str | None
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
    told = _values(body.content) if body.whole else _found(distilled(body.content, KEPT, cut=True), KEPT)
    kind = text(told.get(TYPE))
    if not kind and RECORDING in told:
        kind = AUDIO
    event = Event(
        type=kind if kind in ENDING or kind == AUDIO else None,
        conversation_id=conversation(text(told.get(CONVERSATION))),
        call_id=identifier(text(told.get(CALL))),
        agent_id=identifier(text(told.get(AGENT))),
        voice_id=identifier(text(told.get(VOICE))),
    )
    if kind and (event.names_call or not event.ends_call):
        return event
    if not body.whole:
        raise BodyError("BODY_TOO_LARGE")
    field = "type" if not kind else "data.conversation_id" if DATA in told else "data"
    raise DeliveryError(
        "FIELD_INVALID", f"{field} is required.", field=field, conversation_id=event.conversation_id
    )


def _values(content: bytes) -> Mapping[Path, bytes | Raw]:
    """The values at the paths that we know; other fields may hold anything. Raises DeliveryError."""
    try:
        found = _found(content, KEPT)
    except (ValueError, RecursionError):
        try:
            found = _found(distilled(content, KEPT), KEPT)
        except NotJson:
            raise DeliveryError("MALFORMED_BODY", "The body must be JSON, in UTF-8.") from None
    if not found and not content.lstrip(BOM + b" \t\r\n").startswith(b"{"):
        raise DeliveryError("MALFORMED_BODY", "The body must be a JSON object.")
    return found


def _found(token: bytes | Raw, kept: Kept, path: Path = ()) -> dict[Path, bytes | Raw]:
    """The values at the paths that we know, and each object on the way to them.

    Raises ValueError and RecursionError for what is no JSON.
    """
    found: dict[Path, bytes | Raw] = {path: token} if bytes(memoryview(token)[:1]) == b"{" else {}
    members = fields(token)
    for name, inner in kept.items():
        value = members.get(name)
        if value is not None and inner is None:
            found[*path, name] = value
        elif value is not None and inner is not None:
            found |= _found(value, inner, (*path, name))
    return found
