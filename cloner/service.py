"""The gRPC service: a request is checked, handed on, and its outcome answered."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeAlias, cast

import grpc
import msgspec
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import get_current_span
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceServicer

from callerid import holds_control, longest
from cloner.callers import Caller, CallName, Identities
from cloner.elevenlabs import AgentVoice
from cloner.erasure import Erasure
from cloner.failures import VoiceNotFound
from cloner.preparation import Begun, Call, Preparation
from cloner.registry import Store, VoiceRow, by
from cloner.registry import voices as rows
from cloner.status import FieldInvalid, answer_failure, reason_of
from cloner.voice import Voice, voice_of
from cloner.voices import Voices
from telemetry.logs import about

__all__ = ["CloningService"]

log = structlog.get_logger()

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

LONGEST_SECONDS = 60.0
LONGEST_OPENING_SECONDS = 2.0
# What is kept of the time for the way back to the caller, at most half of it.
HEADROOM_SECONDS = 0.15
LONGEST_TRAILING_GREETING = 4_000
PAGE_SIZE = 50
MAX_PAGE_SIZE = 100

ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MATCHES = {
    None: pb.CALLER_MATCH_UNSPECIFIED,
    0: pb.CALLER_MATCH_NONE,
    1: pb.CALLER_MATCH_ONE,
    2: pb.CALLER_MATCH_SEVERAL,
}
NO_NUMBER = (
    "is not a phone number: send it with its country, as +31612345678 (a national one needs DEFAULT_REGION)"
)


class CloningService(CloningServiceServicer):
    """Serves precall.v1.CloningService; the proto says what each call does.

    A call that fails has its status set by `_answered` and returns an empty message, which is never sent.
    """

    def __init__(
        self,
        preparation: Preparation,
        voices: Voices,
        store: Store,
        erasure: Erasure,
        *,
        identities: Identities,
    ) -> None:
        self._identities = identities
        self._preparation = preparation
        self._voices = voices
        self._store = store
        self._erasure = erasure

    async def PrepareCall(self, request: pb.PrepareCallRequest, context: Context) -> pb.PrepareCallResponse:
        async with _answered(context, conversation_id=request.conversation_id) as answering:
            call = Call(
                agent_id=_id("agent_id", request.agent_id),
                conversation_id=_text("conversation_id", request.conversation_id, most=256, required=True),
                caller=_caller(request.caller, request.consent),
            )
            sample = _sample(request.sample)
            get_current_span().set_attributes(
                {
                    "gen_ai.agent.id": call.agent_id,
                    "gen_ai.conversation.id": call.conversation_id,
                    "precall.sample.size": len(sample),
                }
            )
            begun = await self._preparation.begin(call, sample)
            answering.fallback = lambda: _fallback(begun, self._preparation.refused(call.agent_id))
            prepared = await self._preparation.prepare(begun, sample, deadline=answering.deadline)
            get_current_span().set_attributes(
                {
                    "precall.voice.id": prepared.voice.voice_id,
                    "precall.voice.reused": prepared.voice_reused,
                    "precall.agent.updated": prepared.agent_updated,
                }
            )
            return pb.PrepareCallResponse(
                voice=_voice(prepared.voice),
                voice_reused=prepared.voice_reused,
                agent_updated=prepared.agent_updated,
                first_message=prepared.first_message,
                call_id=prepared.call_id,
                refused_leaves=sorted(prepared.refused or ()),
                settings_seen=prepared.refused is not None,
                agent_before=_speech(prepared.agent_before),
            )
        return pb.PrepareCallResponse()

    async def OpenCall(self, request: pb.OpenCallRequest, context: Context) -> pb.OpenCallResponse:
        async with _answered(
            context, conversation_id=request.conversation_id, longest=LONGEST_OPENING_SECONDS
        ) as answering:
            agent_id = _id("agent_id", request.agent_id)
            get_current_span().set_attribute("gen_ai.agent.id", agent_id)
            if request.conversation_id:
                get_current_span().set_attribute("gen_ai.conversation.id", _line(request.conversation_id))
            opened = await self._preparation.open(
                agent_id=agent_id,
                named=_named(request),
                phone_number=_number("phone_number", request.phone_number),
                deadline=answering.deadline,
            )
            if opened.voice is not None:
                get_current_span().set_attribute("precall.voice.id", opened.voice.voice_id)
            return pb.OpenCallResponse(
                call_id=opened.call_id,
                voice=None if opened.voice is None else _voice(opened.voice),
                name=opened.name,
                first_message=opened.first_message,
                agent_before=_speech(opened.agent_before),
                refused_leaves=sorted(opened.refused or ()),
                settings_seen=opened.refused is not None,
                caller_match=MATCHES[opened.persons],
            )
        return pb.OpenCallResponse()

    async def CloneVoice(self, request: pb.CloneVoiceRequest, context: Context) -> pb.CloneVoiceResponse:
        async with _answered(context) as answering:
            caller, sample = _caller(request.caller, request.consent), _sample(request.sample)
            get_current_span().set_attribute("precall.sample.size", len(sample))
            identity = await self._voices.identify(caller, sample)
            voice, reused = await self._voices.ahead(identity, caller, sample, deadline=answering.deadline)
            return pb.CloneVoiceResponse(voice=_voice(voice), voice_reused=reused)
        return pb.CloneVoiceResponse()

    async def GetVoice(self, request: pb.GetVoiceRequest, context: Context) -> pb.GetVoiceResponse:
        async with _answered(context):
            row = await self._store.read(rows.by_voice_id, _id("voice_id", request.voice_id))
            if row is None:
                raise VoiceNotFound
            return pb.GetVoiceResponse(voice=_voice(voice_of(row)))
        return pb.GetVoiceResponse()

    async def ListVoices(self, request: pb.ListVoicesRequest, context: Context) -> pb.ListVoicesResponse:
        async with _answered(context):
            if not 0 <= request.page_size <= MAX_PAGE_SIZE:
                raise FieldInvalid("page_size", f"must be from 0 to {MAX_PAGE_SIZE}")
            size = request.page_size or PAGE_SIZE
            person = number = None
            if request.HasField("caller"):
                person, number = self._erasure.named(self._numbered(_caller(request.caller)))
            page = await self._store.read(
                rows.page, before=_position(request.page_token), size=size, person=person, number=number
            )
            return pb.ListVoicesResponse(
                voices=[_voice(voice_of(row)) for row in page],
                next_page_token=_token(page[-1]) if len(page) == size else "",
            )
        return pb.ListVoicesResponse()

    async def CompleteCall(
        self, request: pb.CompleteCallRequest, context: Context
    ) -> pb.CompleteCallResponse:
        async with _answered(context, conversation_id=request.conversation_id):
            if not request.conversation_id and not request.call_id and not request.voice_id:
                raise FieldInvalid("conversation_id", "is required, unless call_id or voice_id is given")
            found = await self._preparation.complete(
                conversation_id=_text("conversation_id", request.conversation_id, most=256),
                call_id=_text("call_id", request.call_id, most=64),
                agent_id=_text("agent_id", request.agent_id, most=128),
                voice_id=_text("voice_id", request.voice_id, most=128),
            )
            return pb.CompleteCallResponse(found=found)
        return pb.CompleteCallResponse()

    async def ReplaceVoice(
        self, request: pb.ReplaceVoiceRequest, context: Context
    ) -> pb.ReplaceVoiceResponse:
        async with _answered(context) as answering:
            caller = self._numbered(_caller(request.caller, request.consent))
            sample = _sample(request.sample)
            identity = await self._voices.identify(caller, sample)
            voice = await self._voices.replace(identity, caller, sample, deadline=answering.deadline)
            return pb.ReplaceVoiceResponse(voice=_voice(voice))
        return pb.ReplaceVoiceResponse()

    async def ForgetCaller(
        self, request: pb.ForgetCallerRequest, context: Context
    ) -> pb.ForgetCallerResponse:
        async with _answered(context) as answering:
            caller = _caller(request.caller)
            if bool(caller.phone_number) == bool(request.voice_id):
                raise FieldInvalid("caller.phone_number", "or voice_id is required, and not both")
            voice_id = _id("voice_id", request.voice_id) if request.voice_id else ""
            caller = caller if voice_id else self._numbered(caller)
            deleted, pending = await self._erasure.forget(caller, voice_id, deadline=answering.deadline)
            return pb.ForgetCallerResponse(voices_deleted=deleted, voices_pending=pending)
        return pb.ForgetCallerResponse()

    def _numbered(self, caller: Caller) -> Caller:
        """The caller, where the number is one. Everybody without a number is nobody that could be meant."""
        if not caller.phone_number:
            raise FieldInvalid("caller.phone_number", "is required")
        if self._identities.number(caller.phone_number) is None:
            raise FieldInvalid("caller.phone_number", NO_NUMBER)
        return caller


class _Answering(msgspec.Struct):
    """A call that is being answered: when its work must end, and what a failure is told beside why."""

    deadline: float
    """On the event loop's clock."""

    fallback: Callable[[], pb.FallbackInfo] | None = None


@asynccontextmanager
async def _answered(
    context: Context, *, conversation_id: str = "", longest: float = LONGEST_SECONDS
) -> AsyncIterator[_Answering]:
    """Answers a failure as a status, in time, and tells span and log how the call ended."""
    began = time.monotonic()
    left = context.time_remaining()
    seconds = longest if left is None else max(0.0, min(left, longest))
    headroom = min(HEADROOM_SECONDS, seconds / 2)
    answering = _Answering(asyncio.get_running_loop().time() + seconds - headroom)
    outcome = "cancelled"
    with about(**({"conversation_id": _line(conversation_id)} if conversation_id else {})):
        try:
            # What asks ElevenLabs ends at the deadline by itself; the rest waits for the registry.
            async with by(answering.deadline + headroom / 2):
                yield answering
            outcome = "success"
        except Exception as failure:  # noqa: BLE001 - the boundary: whatever it is, it ends here
            outcome = reason_of(failure)
            more = [] if answering.fallback is None else [answering.fallback()]
            answer_failure(context, failure, *more)
        finally:
            get_current_span().set_attribute("precall.outcome", outcome)
            duration_ms = round((time.monotonic() - began) * 1000)
            log.info("request answered", outcome=outcome, duration_ms=duration_ms)


def _caller(caller: pb.Caller, consent: str = "") -> Caller:
    return Caller(
        consent=_said("consent", consent, most=200),
        name=_said("caller.name", caller.name, most=200),
        date_of_birth=_said("caller.date_of_birth", caller.date_of_birth, most=64),
        phone_number=_number("caller.phone_number", caller.phone_number),
    )


def _sample(sample: bytes) -> bytes:
    if not sample:
        raise FieldInvalid("sample", "is required")
    return sample


def _id(field: str, text: str) -> str:
    if not text:
        raise FieldInvalid(field, "is required")
    if not ID.fullmatch(text):
        raise FieldInvalid(field, 'may hold letters, digits, "_" and "-", and at most 128 of them')
    return text


def _number(field: str, text: str) -> str:
    return _said(field, text, most=longest(text.strip()))


def _said(field: str, text: str, *, most: int) -> str:
    """What is said of a person, under the rule that the gateway has too."""
    text = _short(field, text, most)
    if holds_control(text):
        raise FieldInvalid(field, "may not hold control characters")
    return text


def _short(field: str, text: str, most: int) -> str:
    text = text.strip()
    if len(text) > most:
        raise FieldInvalid(field, f"may hold at most {most} characters")
    return text


def _text(field: str, text: str, *, most: int, required: bool = False) -> str:
    text = _short(field, text, most)
    if required and not text:
        raise FieldInvalid(field, "is required")
    if not text.isprintable():
        raise FieldInvalid(field, "may hold printable characters only")
    return text


def _named(request: pb.OpenCallRequest) -> tuple[CallName, str]:
    """What names the call best: its conversation, else the telephone line, else the SIP trunk."""
    names = {
        "conversation_id": request.conversation_id,
        "call_sid": request.call_sid,
        "sip_call_id": request.sip_call_id,
    }
    given = {kind: text for kind, name in names.items() if (text := _text(kind, name, most=256))}
    for kind, text in given.items():
        return cast("CallName", kind), text
    raise FieldInvalid("conversation_id", "is required, unless call_sid or sip_call_id is given")


def _line(text: str) -> str:
    """What may stand in a log line before it has been checked."""
    return text[:256] if text.isprintable() else ""


def _position(token: str) -> tuple[float, str] | None:
    """Where a page begins: below this creation time and marker."""
    if not token:
        return None
    at, _, marker = token.partition("_")
    try:
        return float.fromhex(at), marker
    except (ValueError, OverflowError):
        raise FieldInvalid("page_token", "is not one that ListVoices returned") from None


def _token(row: VoiceRow) -> str:
    return f"{row.created_at.hex()}_{row.marker}"


def _voice(voice: Voice) -> pb.Voice:
    return pb.Voice(
        voice_id=voice.voice_id,
        name=voice.name,
        create_time=_timestamp(voice.created),
        consent=voice.consent,
        consent_time=None if voice.consented is None else _timestamp(voice.consented),
    )


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _fallback(begun: Begun, refused: frozenset[str] | None) -> pb.FallbackInfo:
    """What goes out with a failure, in the metadata of the call, which are bounded."""
    speech = _speech(begun.agent_before)
    if speech is not None and len(speech.first_message.encode()) > LONGEST_TRAILING_GREETING:
        speech.first_message = ""
    return pb.FallbackInfo(
        agent_before=speech,
        refused_leaves=sorted(refused or ()),
        settings_seen=refused is not None,
        call_id=begun.noted.call.id,
    )


def _speech(speech: AgentVoice | None) -> pb.Speech | None:
    if speech is None:
        return None
    return pb.Speech(voice_id=speech.voice_id or "", first_message=speech.first_message or "")
