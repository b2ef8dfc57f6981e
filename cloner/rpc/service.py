"""The gRPC service: a request is checked, handed on, and its outcome answered."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
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

from cloner.calls import Begun, Call, Calls
from cloner.provider.elevenlabs import AgentVoice
from cloner.provider.failures import FAIR_SECONDS, DeadlineTooShort, VoiceNotFound
from cloner.provider.turns import Urgency, as_urgent_as
from cloner.refusals import Overloaded
from cloner.registry import NamedRequest, Store, VoiceRow
from cloner.registry import voices as rows
from cloner.rpc.fields import Fields
from cloner.rpc.status import answer_failure, reason_of
from cloner.voices.callers import Caller, CallName, Identities
from cloner.voices.erasure import Erasure
from cloner.voices.finding import Voices
from cloner.voices.voice import Voice, voice_of
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
MATCHES = {
    None: pb.CALLER_MATCH_UNSPECIFIED,
    0: pb.CALLER_MATCH_NONE,
    1: pb.CALLER_MATCH_ONE,
    2: pb.CALLER_MATCH_SEVERAL,
}


class _Answering(msgspec.Struct):
    """A call that is being answered: when its work must end, and what a failure is told beside why."""

    deadline: float
    """On the event loop's clock."""

    begun: Begun | None = None


class CloningService(CloningServiceServicer):
    """Serves precall.v1.CloningService; the proto says what each call does.

    A call that fails has its status set by `_answered` and returns an empty message, which is never sent.
    """

    def __init__(
        self,
        calls: Calls,
        voices: Voices,
        store: Store,
        erasure: Erasure,
        *,
        identities: Identities,
    ) -> None:
        self._identities = identities
        self._calls = calls
        self._voices = voices
        self._store = store
        self._erasure = erasure

    async def PrepareCall(self, request: pb.PrepareCallRequest, context: Context) -> pb.PrepareCallResponse:
        async with self._answered(context, conversation_id=request.conversation_id) as answering:
            fields = Fields(self._identities)
            call = Call(
                agent_id=fields.id("agent_id", request.agent_id),
                conversation_id=fields.text(
                    "conversation_id", request.conversation_id, most=256, required=True
                ),
                caller=fields.caller(request.caller, request.consent),
            )
            sample = fields.sample(request.sample)
            fields.check()
            del request  # as large as the sample, which is all that is needed of it now
            get_current_span().set_attributes(
                {
                    "gen_ai.agent.id": call.agent_id,
                    "gen_ai.conversation.id": call.conversation_id,
                    "precall.sample.size": len(sample),
                }
            )
            answering.begun = begun = await self._calls.begin(call, sample)
            prepared = await self._calls.prepare(begun, sample, deadline=answering.deadline)
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
        async with self._answered(
            context, conversation_id=request.conversation_id, longest=LONGEST_OPENING_SECONDS
        ) as answering:
            fields = Fields(self._identities)
            agent_id = fields.id("agent_id", request.agent_id)
            named = _named(request, fields)
            phone_number = fields.number("phone_number", request.phone_number)
            fields.check()
            get_current_span().set_attribute("gen_ai.agent.id", agent_id)
            if named[0] == "conversation_id":
                get_current_span().set_attribute("gen_ai.conversation.id", named[1])
            opened = await self._calls.open(
                agent_id=agent_id, named=named, phone_number=phone_number, deadline=answering.deadline
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
        async with self._answered(context, waits=True) as answering:
            fields = Fields(self._identities)
            caller = fields.caller(request.caller, request.consent)
            sample = fields.sample(request.sample)
            request_id = fields.id("request_id", request.request_id, required=False)
            fields.check()
            del request  # as large as the sample, which is all that is needed of it now
            get_current_span().set_attribute("precall.sample.size", len(sample))
            identity = await self._voices.identify(caller, sample)
            named = await self._request("CloneVoice", request_id, caller, sample)
            voice, reused = await self._voices.ahead(
                identity, caller, sample, deadline=answering.deadline, request=named
            )
            return pb.CloneVoiceResponse(voice=_voice(voice), voice_reused=reused)
        return pb.CloneVoiceResponse()

    async def GetVoice(self, request: pb.GetVoiceRequest, context: Context) -> pb.GetVoiceResponse:
        async with self._answered(context):
            fields = Fields(self._identities)
            voice_id = fields.id("voice_id", request.voice_id)
            fields.check()
            row = await self._store.read(rows.by_voice_id, voice_id)
            if row is None:
                raise VoiceNotFound
            return pb.GetVoiceResponse(voice=_voice(voice_of(row)))
        return pb.GetVoiceResponse()

    async def ListVoices(self, request: pb.ListVoicesRequest, context: Context) -> pb.ListVoicesResponse:
        async with self._answered(context):
            fields = Fields(self._identities)
            if not 0 <= request.page_size <= MAX_PAGE_SIZE:
                fields.wrong("page_size", f"must be from 0 to {MAX_PAGE_SIZE}")
            size = request.page_size or PAGE_SIZE
            whom = fields.caller(request.caller, numbered=True) if request.HasField("caller") else None
            before = fields.position(request.page_token)
            fields.check()
            person, number = (None, None) if whom is None else self._erasure.named(whom)
            page = await self._store.read(rows.page, before=before, size=size, person=person, number=number)
            return pb.ListVoicesResponse(
                voices=[_voice(voice_of(row)) for row in page],
                next_page_token=_token(page[-1]) if len(page) == size else "",
            )
        return pb.ListVoicesResponse()

    async def CompleteCall(
        self, request: pb.CompleteCallRequest, context: Context
    ) -> pb.CompleteCallResponse:
        async with self._answered(context, conversation_id=request.conversation_id):
            fields = Fields(self._identities)
            if not request.conversation_id and not request.call_id and not request.voice_id:
                fields.wrong("conversation_id", "is required, unless call_id or voice_id is given")
            conversation_id = fields.text("conversation_id", request.conversation_id, most=256)
            call_id = fields.text("call_id", request.call_id, most=64)
            agent_id = fields.text("agent_id", request.agent_id, most=128)
            voice_id = fields.text("voice_id", request.voice_id, most=128)
            fields.check()
            found = await self._calls.complete(
                conversation_id=conversation_id, call_id=call_id, agent_id=agent_id, voice_id=voice_id
            )
            return pb.CompleteCallResponse(found=found)
        return pb.CompleteCallResponse()

    async def ReplaceVoice(
        self, request: pb.ReplaceVoiceRequest, context: Context
    ) -> pb.ReplaceVoiceResponse:
        async with self._answered(context, waits=True) as answering:
            fields = Fields(self._identities)
            caller = fields.caller(request.caller, request.consent, numbered=True)
            sample = fields.sample(request.sample)
            request_id = fields.id("request_id", request.request_id, required=False)
            fields.check()
            del request  # as large as the sample, which is all that is needed of it now
            identity = await self._voices.identify(caller, sample)
            named = await self._request("ReplaceVoice", request_id, caller, sample)
            voice = await self._voices.replace(
                identity, caller, sample, deadline=answering.deadline, request=named
            )
            return pb.ReplaceVoiceResponse(voice=_voice(voice))
        return pb.ReplaceVoiceResponse()

    async def ForgetCaller(
        self, request: pb.ForgetCallerRequest, context: Context
    ) -> pb.ForgetCallerResponse:
        async with self._answered(context, waits=True) as answering:
            fields = Fields(self._identities)
            caller = fields.caller(request.caller)
            if bool(caller.phone_number) == bool(request.voice_id):
                fields.wrong("caller.phone_number", "or voice_id is required, and not both")
            elif not request.voice_id:
                fields.numbered(caller)
            voice_id = fields.id("voice_id", request.voice_id, required=False)
            fields.check()
            deleted, pending = await self._erasure.forget(caller, voice_id, deadline=answering.deadline)
            return pb.ForgetCallerResponse(voices_deleted=deleted, voices_pending=pending)
        return pb.ForgetCallerResponse()

    async def _request(
        self, method: str, request_id: str, caller: Caller, sample: bytes
    ) -> NamedRequest | None:
        """The request by its name and content; None where its sender gave it no name."""
        if not request_id:
            return None
        digest = await asyncio.to_thread(lambda: hashlib.sha256(sample).hexdigest())
        return NamedRequest(
            key=self._identities.request(request_id),
            content=self._identities.content(method, caller, sample_digest=digest),
        )

    @asynccontextmanager
    async def _answered(
        self,
        context: Context,
        *,
        conversation_id: str = "",
        longest: float = LONGEST_SECONDS,
        waits: bool = False,
    ) -> AsyncIterator[_Answering]:
        """Answers a failure as a status, in time, and tells span and log how the request ended.

        One that `waits` is not for a call that is starting: it lets those go before it at ElevenLabs.
        """
        began = time.monotonic()
        left = context.time_remaining()
        seconds = longest if left is None else max(0.0, min(left, longest))
        headroom = min(HEADROOM_SECONDS, seconds / 2)
        answering = _Answering(asyncio.get_running_loop().time() + seconds - headroom)
        outcome = "cancelled"
        with (
            about(**({"conversation_id": _line(conversation_id)} if conversation_id else {})),
            as_urgent_as(Urgency(call=not waits, until=answering.deadline)),
        ):
            try:
                # What asks ElevenLabs ends at the deadline by itself; the rest waits for the registry.
                try:
                    async with asyncio.timeout_at(answering.deadline + headroom / 2):
                        yield answering
                except (TimeoutError, Overloaded) as failure:
                    # Who gave less than all is done in when all is well has no reason to complain of anybody.
                    if seconds < min(FAIR_SECONDS, longest):
                        raise DeadlineTooShort from None
                    if isinstance(failure, Overloaded):
                        raise
                    raise self._store.missed(answering.deadline + headroom - seconds) from None
                outcome = "success"
            except Exception as failure:  # noqa: BLE001 - the boundary: whatever it is, it ends here
                outcome = reason_of(failure)
                begun = answering.begun
                more = [] if begun is None else [_fallback(begun, self._calls.refused(begun.call.agent_id))]
                answer_failure(context, failure, *more)
            finally:
                get_current_span().set_attribute("precall.outcome", outcome)
                duration_ms = round((time.monotonic() - began) * 1000)
                log.info("request answered", outcome=outcome, duration_ms=duration_ms)


def _named(request: pb.OpenCallRequest, fields: Fields) -> tuple[CallName, str]:
    """What names the call best: its conversation, else the telephone line, else the SIP trunk."""
    names = {
        "conversation_id": request.conversation_id,
        "call_sid": request.call_sid,
        "sip_call_id": request.sip_call_id,
    }
    given = {kind: text for kind, name in names.items() if (text := fields.text(kind, name, most=256))}
    for kind, text in given.items():
        return cast("CallName", kind), text
    fields.wrong("conversation_id", "is required, unless call_sid or sip_call_id is given")
    return "conversation_id", ""


def _line(text: str) -> str:
    """What may stand in a log line before it has been checked."""
    return text[:256] if text.isprintable() else ""


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
        call_id=begun.call_id,
    )


def _speech(speech: AgentVoice | None) -> pb.Speech | None:
    if speech is None:
        return None
    return pb.Speech(voice_id=speech.voice_id or "", first_message=speech.first_message or "")
