"""Reads what a verified body says. Knows no web framework.

Every DeliveryError is the sender's fault, and nothing was done yet.
"""

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from callerid import (
    ID,
    LONGEST_ADDRESS,
    MAX_BIRTH,
    MAX_CONSENT,
    MAX_CONVERSATION_ID,
    MAX_ID,
    MAX_NAME,
    conversation,
    fault_of,
    identifier,
    longest,
)
from gateway.edge import form
from gateway.edge.described import described
from gateway.edge.fault import DeliveryError
from gateway.edge.loose_json import NotJson, distilled, fields, kept_by, text
from gateway.edge.signature import VerifiedBody
from gateway.precall.base64_sample import NotBase64, decode

__all__ = [
    "Delivery",
    "MediaType",
    "NotStrict",
    "media_type",
    "read",
]

EVENT = "pre_call"
SAMPLE = "voice_sample.data"
# The place in a message of msgspec: "Expected `str`, got `int` - at `$.caller_metadata.name`", or
# "Object missing required field `data` - at `$.voice_sample`".
PATH = re.compile(r" - at `\$\.([a-z_.]+)`$")
MISSING = re.compile(r"^Object missing required field `([a-z_]+)`")

NULL = Raw(b"null")
HINT = "A hint. What the audio says counts."


class NotStrict(Exception):
    """Only the loose reader can read the body, which may take long."""


class MediaType(Struct, frozen=True, kw_only=True):
    """How a body is read: as a form with this boundary, or as JSON if there is none."""

    boundary: str | None


class Delivery(Struct, frozen=True, kw_only=True):
    """A call that is about to start, who is calling, and how they sound."""

    agent_id: str
    conversation_id: str
    name: str | None
    date_of_birth: str | None
    phone_number: str | None
    consent: str | None
    """Where the caller's consent to the clone is recorded."""

    sample: bytes


class SentCaller(Struct):
    """Who is calling, as far as the sender knows."""

    name: Annotated[str | None, described("The name to greet by.", maxLength=MAX_NAME)] = None
    date_of_birth: Annotated[
        str | None, described("As the sender writes it; it is not parsed.", maxLength=MAX_BIRTH)
    ] = None
    phone_number: Annotated[
        str | None,
        described(
            "Best in E.164 form; also as a tel:, sip: or whatsapp: address.", maxLength=LONGEST_ADDRESS
        ),
    ] = None
    consent: Annotated[
        str | None,
        described(
            "Where the caller's consent to the clone is on record: a reference.", maxLength=MAX_CONSENT
        ),
    ] = None


class SentSample(Struct, kw_only=True):
    """The recording, and the format that the sender takes it for."""

    # Left as it is: decoded from base64 in place, without becoming a `str` first.
    data: Annotated[
        Raw,
        described(
            "The recording in standard base64, or a data: URL of it: WAV, MP3, OGG, FLAC, M4A or WebM.",
            type="string",
            contentEncoding="base64",
        ),
    ]
    format: Annotated[str | None, described("How the data is written.", enum=["base64"])] = None
    # Nobody reads these, so each may hold anything and is left as it is.
    duration_seconds: Annotated[Raw, described(HINT, type="number")] | UnsetType = UNSET
    sample_rate: Annotated[Raw, described(HINT, type="integer")] | UnsetType = UNSET


class SentMetadata(Struct, kw_only=True):
    """The event without its sample: the part `metadata` of a form."""

    # What has no default must be sent.
    type: Annotated[str | None, described("The kind of event.", enum=[EVENT])]
    conversation_id: Annotated[
        str | None,
        described("The conversation that is about to start.", minLength=1, maxLength=MAX_CONVERSATION_ID),
    ]
    agent_id: Annotated[str | None, described("The agent that takes the call.", pattern=f"^{ID.pattern}$")]
    caller_metadata: SentCaller | None = None
    # Left as it is: nobody reads it, so it may hold anything.
    event_timestamp: Annotated[Raw, described("Unix seconds. Not used.", type="integer")] | UnsetType = UNSET


class SentDelivery(SentMetadata, kw_only=True):
    """The event as JSON, sample and all."""

    voice_sample: SentSample | None


M = TypeVar("M", bound=SentMetadata)


def media_type(values: Sequence[str]) -> MediaType:
    """The one that the Content-Type headers name. Raises DeliveryError if it is none that is read here."""
    if len(values) == 1:
        kind, options = form.options(values[0])
        if kind == "application/json":
            return MediaType(boundary=None)
        if kind == "multipart/form-data":
            return MediaType(boundary=options.get("boundary", ""))
    raise DeliveryError(
        "UNSUPPORTED_MEDIA_TYPE", "Send Content-Type application/json or multipart/form-data, once."
    )


def read(body: VerifiedBody, media: MediaType, *, max_sample_bytes: int, loosely: bool = True) -> Delivery:
    """What the body says. Raises DeliveryError, and NotStrict where it would have to be read loosely."""
    if media.boundary is None:
        return _from_json(body.content, max_sample_bytes, loosely=loosely)
    return _from_form(body.content, media.boundary, max_sample_bytes, loosely=loosely)


def _from_json(content: bytes, max_sample_bytes: int, *, loosely: bool) -> Delivery:
    document = _decoded(content, SentDelivery, "The body", loosely=loosely)
    try:
        given = document.voice_sample
        if given is None or given.data == NULL:
            raise _invalid(SAMPLE, "is required")
        if given.format not in (None, "base64"):
            raise _invalid("voice_sample.format", 'must be "base64"')
        return _delivery(document, _from_base64(given.data), SAMPLE, max_sample_bytes)
    except DeliveryError as failure:
        _note_call(failure, document.agent_id, document.conversation_id)
        raise


def _from_form(content: bytes, boundary: str, max_sample_bytes: int, *, loosely: bool) -> Delivery:
    try:
        parts = form.parts(content, boundary, ("metadata", "voice_sample"))
    except form.FormBroken:
        raise DeliveryError(
            "MALFORMED_BODY", "The body is not the multipart form that its Content-Type announces."
        ) from None
    except form.FormTooLarge:
        raise DeliveryError(
            "MALFORMED_BODY",
            f"The multipart form is too large: at most {form.MAX_PARTS} parts are read, each with at most "
            f"{form.MAX_HEADERS} headers of at most {form.MAX_HEADER} bytes.",
        ) from None
    except form.PartRepeated as repeated:
        raise _invalid(repeated.name, "must be sent once") from None
    if "metadata" not in parts:
        raise _invalid("metadata", "is required")
    metadata = _decoded(parts["metadata"], SentMetadata, "The part metadata", loosely=loosely)
    try:
        if "voice_sample" not in parts:
            raise _invalid("voice_sample", "is required")
        return _delivery(metadata, parts["voice_sample"], "voice_sample", max_sample_bytes)
    except DeliveryError as failure:
        _note_call(failure, metadata.agent_id, metadata.conversation_id)
        raise


def _delivery(metadata: SentMetadata, sample: bytes, field: str, max_sample_bytes: int) -> Delivery:
    if metadata.type != EVENT:
        raise _invalid("type", f'must be "{EVENT}"')
    agent_id = metadata.agent_id or ""
    if not agent_id.strip():
        raise _invalid("agent_id", "is required")
    if identifier(agent_id) is None:
        raise _invalid("agent_id", f'must be 1 to {MAX_ID} letters, digits, "_" and "-"')
    if not (metadata.conversation_id or "").strip():
        raise _invalid("conversation_id", "is required")
    conversation_id = conversation(metadata.conversation_id)
    if conversation_id is None:
        raise _invalid("conversation_id", f"must be 1 to {MAX_CONVERSATION_ID} printable characters")
    caller = metadata.caller_metadata or SentCaller()
    if not sample:
        raise _invalid(field, "is empty")
    if len(sample) > max_sample_bytes:
        raise DeliveryError(
            "SAMPLE_TOO_LARGE",
            f"The voice sample has {len(sample)} bytes, at most {max_sample_bytes} are allowed.",
        )
    return Delivery(
        agent_id=agent_id,
        conversation_id=conversation_id,
        name=_fact(caller.name, "name", MAX_NAME),
        date_of_birth=_fact(caller.date_of_birth, "date_of_birth", MAX_BIRTH),
        phone_number=_fact(caller.phone_number, "phone_number", longest((caller.phone_number or "").strip())),
        consent=_fact(caller.consent, "consent", MAX_CONSENT),
        sample=sample,
    )


def _fact(text: str | None, name: str, most: int) -> str | None:
    """A text about the caller, trimmed; None if it is blank."""
    text = (text or "").strip()
    if (fault := fault_of(text, most=most)) is not None:
        raise _invalid(f"caller_metadata.{name}", fault)
    return text or None


def _from_base64(token: Raw) -> bytes:
    try:
        return decode(token)
    except NotBase64 as found:
        raise _invalid(SAMPLE, f"must be the recording in standard base64, a string; it is {found}") from None


def _decoded(content: bytes, kind: type[M], what: str, *, loosely: bool) -> M:
    """Parses a JSON object. Fields that we do not know are ignored, whatever they hold."""
    try:
        return _strictly(content, kind, what)
    except (ValueError, RecursionError):
        pass
    if not loosely:
        raise NotStrict
    try:
        return _strictly(distilled(content, kept_by(kind)), kind, what)
    except (NotJson, ValueError):
        raise DeliveryError("MALFORMED_BODY", f"{what} must be JSON, in UTF-8.") from None


def _strictly(content: bytes, kind: type[M], what: str) -> M:
    """Raises DeliveryError for a field of another type, ValueError and RecursionError for invalid JSON."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as fault:
        failure = _misfit(str(fault))
        if failure is None:
            raise DeliveryError("MALFORMED_BODY", f"{what} must be a JSON object.") from None
        # Reads the body a second time, which only such a fault causes.
        sent = fields(content, "type", "agent_id", "conversation_id")
        if MISSING.search(str(fault)) and text(sent.get("type")) not in (None, EVENT):
            # An event for another address lacks what is needed here, and its type says why.
            failure = _invalid("type", f'must be "{EVENT}"')
        _note_call(failure, text(sent.get("agent_id")), text(sent.get("conversation_id")))
        raise failure from None


def _note_call(failure: DeliveryError, agent_id: str | None, conversation_id: str | None) -> None:
    """Notes which call the failure is about, as far as the delivery says."""
    failure.agent_id, failure.conversation_id = identifier(agent_id), conversation(conversation_id)


def _misfit(fault: str) -> DeliveryError | None:
    """The field that msgspec finds missing or of another type; None for what is no object at all."""
    path, missing = PATH.search(fault), MISSING.search(fault)
    if missing is not None:
        name = f"{path[1]}.{missing[1]}" if path else missing[1]
        return _invalid(SAMPLE if name == "voice_sample" else name, "is required")
    if path is None:
        return None
    return _invalid(path[1], "must be an object" if "Expected `object" in fault else "must be a string")


def _invalid(field: str, fault: str) -> DeliveryError:
    return DeliveryError("FIELD_INVALID", f"{field} {fault}.")
