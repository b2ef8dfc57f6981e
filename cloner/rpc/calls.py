"""The calls of the contract that are about telephone calls."""

from typing import cast

import structlog
from precall.v1 import cloning_pb2 as pb

from callerid import MAX_CALL_ID, MAX_ID
from cloner.call import Call
from cloner.registry import views
from cloner.rpc import messages
from cloner.rpc.answering import answered
from cloner.rpc.contract import Context
from cloner.rpc.fields import Fields
from cloner.rpc.pages import Pages
from cloner.rpc.rooms import Rooms
from cloner.rpc.status import CallNotFound
from cloner.voices.callers import CallName
from telemetry.facts import add_log_context, note

__all__ = ["complete_call", "get_call", "list_calls", "open_call", "prepare_call"]

log = structlog.get_logger()

MATCHES = {
    None: pb.CALLER_MATCH_UNSPECIFIED,
    0: pb.CALLER_MATCH_NONE,
    1: pb.CALLER_MATCH_ONE,
    2: pb.CALLER_MATCH_SEVERAL,
}


async def prepare_call(
    request: pb.PrepareCallRequest, context: Context, rooms: Rooms
) -> pb.PrepareCallResponse:
    """Answers PrepareCall."""
    async with answered(rooms.store, context, conversation_id=request.conversation_id) as answering:
        fields = Fields(rooms.identities)
        call = Call(
            agent_id=fields.id("agent_id", request.agent_id),
            conversation_id=fields.conversation("conversation_id", request.conversation_id, required=True),
            caller=fields.caller(request.caller, request.consent, request.client_reference),
        )
        sample = request.sample
        fields.check()
        del request  # frees its bytes: only the sample is needed from now on
        add_log_context(agent_id=call.agent_id, conversation_id=call.conversation_id)
        note(sample_bytes=len(sample))
        begun = await rooms.calls.begin(call, sample)
        add_log_context(call_id=begun.call_id)
        log.info("call opened")
        try:
            prepared = await rooms.calls.prepare(begun, sample, deadline=answering.deadline)
        except BaseException:
            # The telephone call goes on without the voice, so the failure is sent with what is known for it.
            answering.details.append(
                messages.fallback(begun, rooms.calls.refused_leaves(begun.call.agent_id))
            )
            raise
        answering.log_facts |= {
            "voice_id": prepared.voice.voice_id,
            "voice_reused": prepared.voice_reused,
            "agent_updated": prepared.agent_updated,
            **({} if prepared.agent_missed is None else {"agent_not_updated": prepared.agent_missed}),
        }
        if prepared.voice_reused:
            log.info("voice used", voice_id=prepared.voice.voice_id)
        return pb.PrepareCallResponse(
            voice=messages.voice(prepared.voice),
            voice_reused=prepared.voice_reused,
            agent_updated=prepared.agent_updated,
            first_message=prepared.first_message,
            call_id=prepared.call_id,
            refused_leaves=sorted(prepared.refused_leaves or ()),
            settings_seen=prepared.refused_leaves is not None,
            agent_before=messages.speech(prepared.agent_before),
        )
    return pb.PrepareCallResponse()


async def open_call(request: pb.OpenCallRequest, context: Context, rooms: Rooms) -> pb.OpenCallResponse:
    """Answers OpenCall."""
    async with answered(
        rooms.store, context, conversation_id=request.conversation_id, longest=rooms.opening_seconds
    ) as answering:
        fields = Fields(rooms.identities)
        agent_id = fields.id("agent_id", request.agent_id)
        kind, name = _name(request, fields)
        phone_number = fields.number("phone_number", request.phone_number)
        fields.check()
        add_log_context(agent_id=agent_id)
        if kind == "conversation_id":
            add_log_context(conversation_id=name)
        opened = await rooms.openings.open(
            agent_id=agent_id, kind=kind, name=name, phone_number=phone_number, deadline=answering.deadline
        )
        add_log_context(call_id=opened.call_id)
        log.info("call opened")
        if opened.voice is not None:
            answering.log_facts["voice_id"] = opened.voice.voice_id
            log.info("voice used", voice_id=opened.voice.voice_id)
        return pb.OpenCallResponse(
            call_id=opened.call_id,
            voice=None if opened.voice is None else messages.voice(opened.voice),
            name=opened.name,
            first_message=opened.first_message,
            agent_before=messages.speech(opened.agent_before),
            refused_leaves=sorted(opened.refused_leaves or ()),
            settings_seen=opened.refused_leaves is not None,
            agent_updated=opened.agent_updated,
            caller_match=MATCHES[opened.persons],
        )
    return pb.OpenCallResponse()


async def complete_call(
    request: pb.CompleteCallRequest, context: Context, rooms: Rooms
) -> pb.CompleteCallResponse:
    """Answers CompleteCall."""
    async with answered(rooms.store, context, conversation_id=request.conversation_id):
        fields = Fields(rooms.identities)
        conversation_id = fields.conversation("conversation_id", request.conversation_id)
        call_id = fields.text("call_id", request.call_id, most=MAX_CALL_ID)
        agent_id = fields.text("agent_id", request.agent_id, most=MAX_ID)
        voice_id = fields.text("voice_id", request.voice_id, most=MAX_ID)
        if not conversation_id and not call_id and not voice_id:
            fields.wrong("conversation_id", "is required, unless call_id or voice_id is given")
        fields.check()
        if agent_id:
            add_log_context(agent_id=agent_id)
        found = await rooms.calls.complete(
            conversation_id=conversation_id, call_id=call_id, agent_id=agent_id, voice_id=voice_id
        )
        return pb.CompleteCallResponse(found=found)
    return pb.CompleteCallResponse()


async def get_call(request: pb.GetCallRequest, context: Context, rooms: Rooms) -> pb.GetCallResponse:
    """Answers GetCall."""
    async with answered(rooms.store, context, conversation_id=request.conversation_id):
        fields = Fields(rooms.identities)
        conversation_id = fields.conversation("conversation_id", request.conversation_id)
        # With a conversation it is ignored, whatever it is.
        call_id = "" if conversation_id else fields.text("call_id", request.call_id, most=MAX_CALL_ID)
        if not call_id and not conversation_id:
            fields.wrong("call_id", "is required, unless conversation_id is given")
        agent_id = fields.id("agent_id", request.agent_id, required=bool(conversation_id))
        fields.check()
        found = await rooms.store.read(
            views.call, call_id=call_id, conversation_id=conversation_id, agent_id=agent_id
        )
        if found is None:
            raise CallNotFound
        return pb.GetCallResponse(call=messages.call(found, rooms.looking.ended_at(found)))
    return pb.GetCallResponse()


async def list_calls(request: pb.ListCallsRequest, context: Context, rooms: Rooms) -> pb.ListCallsResponse:
    """Answers ListCalls."""
    async with answered(rooms.store, context):
        fields = Fields(rooms.identities)
        agent_id = fields.id("agent_id", request.agent_id, required=False)
        voice_id = fields.id("voice_id", request.voice_id, required=False)
        whom = fields.caller(request.caller, numbered=True) if request.HasField("caller") else None
        person, number = (None, None) if whom is None else rooms.identities.row_hashes(whom)
        pages = Pages(
            rooms.identities, fields, "calls", agent_id, person or "", number or "", voice_id,
            str(request.in_progress),
        )  # fmt: skip
        size, before = pages.size(request.page_size), pages.position_of(request.page_token)
        fields.check()
        page = await rooms.store.look_through(
            views.calls,
            before=before,
            size=size,
            agent_id=agent_id,
            person=person,
            number=number,
            voice_id=voice_id,
            in_progress=request.in_progress,
            busy_since=rooms.looking.busy_since,
        )
        return pb.ListCallsResponse(
            calls=[messages.call(found, rooms.looking.ended_at(found)) for found in page],
            next_page_token=pages.token(page[-1].begun_at, page[-1].id) if len(page) == size else "",
        )
    return pb.ListCallsResponse()


def _name(request: pb.OpenCallRequest, fields: Fields) -> tuple[CallName, str]:
    """The best name of the call, with its kind: conversation, else telephone line, else SIP trunk."""
    names = {
        "conversation_id": request.conversation_id,
        "call_sid": request.call_sid,
        "sip_call_id": request.sip_call_id,
    }
    for kind, name in names.items():
        if text := fields.conversation(kind, name):
            return cast("CallName", kind), text
    fields.wrong("conversation_id", "is required, unless call_sid or sip_call_id is given")
    return "conversation_id", ""
