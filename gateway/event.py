"""Reads what a verified event after a call says. Knows no web framework.

Everything is read leniently: ElevenLabs says that fields will be added, and an id that cannot be
one of ours counts as missing. An event that says nothing that could name a call is the sender's
fault, and nothing was done yet:

    DeliveryError MALFORMED_BODY   not JSON, or not an object
    DeliveryError FIELD_INVALID    a field is missing without which the event says nothing
    BodyError BODY_TOO_LARGE       the same, of an event that was too large to be held as a whole

A recording comes as an event of tens of megabytes that ends nothing, so it need not be held: the
type comes first there. Of every event that is too large, the first bytes have to do.
"""

import re
from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from gateway.body import BodyError
from gateway.delivery import DeliveryError, conversation
from gateway.lenient import NULL, fields, identifier, text
from gateway.signature import VerifiedBody, Verifier

__all__ = ["Event", "read", "trim"]

# The events after which a call is over.
ENDING = frozenset({"post_call_transcription", "post_call_transcription_otel", "call_initiation_failure"})
AUDIO = "post_call_audio"

# What is kept of an event that is not held.
HEAD_BYTES = 65_536
OPENING_BYTES = 512
OPENING = re.compile(rb'\s*\{\s*"type"\s*:\s*"([^"\\]*)"')
# A string, a sign or a bare word; possessive, so that no text makes it try twice.
TOKEN = re.compile(rb'\s*+("(?:[^"\\]++|\\.)*+"|[{}\[\]:,]|[^\s"{}\[\]:,]++)', re.DOTALL)

Path = tuple[str, ...]
TYPE = ("type",)
DATA = ("data",)
RECORDING = ("data", "full_audio")
CONVERSATION = ("data", "conversation_id")
AGENT = ("data", "agent_id")
START = ("data", "conversation_initiation_client_data")
CALL = (*START, "dynamic_variables", "precall_call_id")
VOICE = (*START, "conversation_config_override", "tts", "voice_id")
PATHS = frozenset({TYPE, DATA, RECORDING, CONVERSATION, AGENT, CALL, VOICE})
DEEPER = len(VOICE) + 1


class Event(Struct, frozen=True, kw_only=True):
    """What happened, and what is known of the call it happened to; None where it is not."""

    type: str | None
    """None for a kind of event that we know nothing of."""

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
        """Whether a call can be found by what is known of it."""
        return bool(self.conversation_id or self.call_id or (self.agent_id and self.voice_id))


def trim(check: Verifier, most: int) -> None:
    """Lets go of an event, but for its beginning, that ends no call or is larger than may be held."""
    opening = OPENING.match(check.first(OPENING_BYTES))
    if check.kept > most or (opening is not None and text(b'"%b"' % opening[1]) not in ENDING):
        check.keep_first(min(HEAD_BYTES, most))


def read(body: VerifiedBody) -> Event:
    """What the event says. Raises DeliveryError, and BodyError where too little of it was held."""
    found = _in_whole(body.content) if body.whole else _in_part(body.content)
    kind = text(found.get(TYPE))
    if not kind and RECORDING in found:
        kind = AUDIO
    event = Event(
        type=kind if kind in ENDING or kind == AUDIO else None,
        conversation_id=conversation(text(found.get(CONVERSATION))),
        call_id=identifier(found.get(CALL)),
        agent_id=identifier(found.get(AGENT)),
        voice_id=identifier(found.get(VOICE)),
    )
    if kind and (event.names_call or not event.ends_call):
        return event
    if not body.whole:
        raise BodyError("BODY_TOO_LARGE")
    field = "type" if not kind else "data.conversation_id" if DATA in found else "data"
    raise DeliveryError(
        "FIELD_INVALID", f"{field} is required.", field=field, conversation_id=event.conversation_id
    )


def _in_whole(content: bytes) -> Mapping[Path, bytes | Raw]:
    """What stands at the paths that we know."""
    try:
        event = msgspec.json.decode(content, type=dict[str, Raw])
    except msgspec.ValidationError:
        raise DeliveryError("MALFORMED_BODY", "The body must be a JSON object.") from None
    except (ValueError, RecursionError):
        raise DeliveryError("MALFORMED_BODY", "The body must be JSON, in UTF-8.") from None
    data = fields(event.get("data"))
    start = fields(data.get(START[-1]))
    override = fields(start.get("conversation_config_override"))
    found = {
        TYPE: event.get("type"),
        DATA: event.get("data") if data else None,
        RECORDING: data.get("full_audio"),
        CONVERSATION: data.get("conversation_id"),
        AGENT: data.get("agent_id"),
        CALL: fields(start.get("dynamic_variables")).get("precall_call_id"),
        VOICE: fields(override.get("tts")).get("voice_id"),
    }
    return {path: token for path, token in found.items() if token is not None}


def _in_part(head: bytes) -> Mapping[Path, bytes]:
    """What stands at the paths that we know, as far as the beginning of an event goes."""
    found: dict[Path, bytes] = {}
    path: list[str] = []
    is_value = False
    at = 0
    while token_at := TOKEN.match(head, at):
        token, at = token_at[1], token_at.end()
        place = tuple(path[:DEEPER])
        if token in b"{[":
            path.append("")
        elif token in b"}]":
            del path[-1:]
        elif token == b":" and place in PATHS:
            found.setdefault(place, NULL)
        elif token.startswith(b'"') and is_value and place in PATHS:
            found[place] = token
        elif token.startswith(b'"') and not is_value and path:
            path[-1] = text(token) or ""
        is_value = token == b":"
    return found
