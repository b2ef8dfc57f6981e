"""The calls of the contract that are about voices, and what callers say of them."""

from contextlib import aclosing
from typing import Any

from precall.v1 import cloning_pb2 as pb

from cloner.clients import calling
from cloner.provider.failures import VoiceNotFound
from cloner.registry import NamedRequest, views
from cloner.rpc import messages
from cloner.rpc.answering import answered
from cloner.rpc.contract import Context
from cloner.rpc.fields import Fields
from cloner.rpc.pages import Pages
from cloner.rpc.rooms import Rooms
from cloner.voices.callers import Caller
from cloner.voices.intent import Wanted
from cloner.voices.samples import digest_of
from telemetry.facts import add_log_context, note

__all__ = [
    "clone_voice",
    "delete_voice",
    "forget_caller",
    "get_voice",
    "list_voices",
    "replace_voice",
    "set_consent",
    "watch_voice",
]


async def clone_voice(request: pb.CloneVoiceRequest, context: Context, rooms: Rooms) -> pb.CloneVoiceResponse:
    """Answers CloneVoice."""
    async with answered(rooms.store, context, yields=True) as answering:
        caller, sample, request_id = _read(request, Fields(rooms.identities))
        del request  # frees its bytes: only the sample is needed from now on
        wanted = await _wanted(rooms, "CloneVoice", request_id, caller, sample)
        voice, reused = await rooms.voices.clone_ahead(wanted, sample, deadline=answering.deadline)
        answering.log_facts |= {"voice_id": voice.voice_id, "voice_reused": reused}
        return pb.CloneVoiceResponse(voice=messages.voice(voice), voice_reused=reused)
    return pb.CloneVoiceResponse()


async def replace_voice(
    request: pb.ReplaceVoiceRequest, context: Context, rooms: Rooms
) -> pb.ReplaceVoiceResponse:
    """Answers ReplaceVoice."""
    async with answered(rooms.store, context, yields=True) as answering:
        caller, sample, request_id = _read(request, Fields(rooms.identities), numbered=True)
        del request  # frees its bytes: only the sample is needed from now on
        wanted = await _wanted(rooms, "ReplaceVoice", request_id, caller, sample)
        voice = await rooms.voices.replace(wanted, sample, deadline=answering.deadline)
        answering.log_facts["voice_id"] = voice.voice_id
        return pb.ReplaceVoiceResponse(voice=messages.voice(voice))
    return pb.ReplaceVoiceResponse()


async def get_voice(request: pb.GetVoiceRequest, context: Context, rooms: Rooms) -> pb.GetVoiceResponse:
    """Answers GetVoice."""
    async with answered(rooms.store, context):
        caller, voice_id = _which(request, Fields(rooms.identities))
        found = await (
            rooms.looking.voice(voice_id) if caller is None else rooms.looking.voice_of_caller(caller)
        )
        if found is None:
            raise VoiceNotFound
        told = await rooms.consenting.history(found.person)
        return pb.GetVoiceResponse(
            voice=messages.voice(rooms.looking.seen(found)), consents=map(messages.consent, told)
        )
    return pb.GetVoiceResponse()


async def watch_voice(request: pb.WatchVoiceRequest, context: Context, rooms: Rooms) -> None:
    """Answers WatchVoice."""
    # Not a generator: it may be closed in another task than the one that began it.
    async with answered(rooms.store, context, longest=rooms.watch_seconds, yields=True) as answering:
        caller, voice_id = _which(request, Fields(rooms.identities))
        watched = await rooms.looking.begin(caller, voice_id)
        answering.may_end = True
        async with aclosing(rooms.looking.follow(watched, until=answering.deadline)) as changes:
            async for voice in changes:
                await context.write(pb.WatchVoiceResponse(voice=messages.voice(voice)))


async def list_voices(request: pb.ListVoicesRequest, context: Context, rooms: Rooms) -> pb.ListVoicesResponse:
    """Answers ListVoices."""
    async with answered(rooms.store, context):
        fields = Fields(rooms.identities)
        whom = fields.caller(request.caller, numbered=True) if request.HasField("caller") else None
        person, number = (None, None) if whom is None else rooms.identities.row_hashes(whom)
        reference = fields.reference(request.client_reference)
        if request.client_reference and not reference:
            fields.wrong("client_reference", "may not be blank: without it, the voices of all are listed")
        told = set(request.states) or {pb.VOICE_STATE_READY}
        if told - set(messages.STATES.values()):
            fields.wrong("states", "may hold CREATING, READY, FAILED and GONE only")
        pages = Pages(
            rooms.identities, fields, "voices", person or "", number or "", reference, *map(str, sorted(told))
        )
        size, before = pages.size(request.page_size), pages.position_of(request.page_token)
        fields.check()
        page = await rooms.store.look_through(
            views.voices,
            before=before,
            size=size,
            states=[state for state, shown in messages.STATES.items() if shown in told],
            person=person,
            number=number,
            reference=reference,
            busy_since=rooms.looking.busy_since,
            unsure_since=rooms.looking.unsure_since,
        )
        shown = [messages.voice(rooms.looking.seen(found)) for found in page]
        return pb.ListVoicesResponse(
            # Time has gone on since they were read, so that one on its way may have failed by now.
            voices=[voice for voice in shown if voice.state in told],
            next_page_token=pages.token(page[-1].created_at, page[-1].marker) if len(page) == size else "",
        )
    return pb.ListVoicesResponse()


async def delete_voice(
    request: pb.DeleteVoiceRequest, context: Context, rooms: Rooms
) -> pb.DeleteVoiceResponse:
    """Answers DeleteVoice."""
    async with answered(rooms.store, context, yields=True) as answering:
        fields = Fields(rooms.identities)
        voice_id = fields.id("voice_id", request.voice_id)
        fields.check()
        add_log_context(voice_id=voice_id)
        deleted = await rooms.erasure.delete(voice_id, deadline=answering.deadline)
        return pb.DeleteVoiceResponse(deleted=deleted)
    return pb.DeleteVoiceResponse()


async def forget_caller(
    request: pb.ForgetCallerRequest, context: Context, rooms: Rooms
) -> pb.ForgetCallerResponse:
    """Answers ForgetCaller."""
    async with answered(rooms.store, context, yields=True) as answering:
        fields = Fields(rooms.identities)
        caller = fields.caller(request.caller)
        both = request.voice_id and request.HasField("caller")
        if both or not (request.voice_id or caller.phone_number):
            fields.wrong("caller.phone_number", "or voice_id is required, and not both")
        elif not request.voice_id:
            fields.numbered(caller)
        voice_id = fields.id("voice_id", request.voice_id, required=False)
        fields.check()
        deleted, pending = await rooms.erasure.forget(caller, voice_id, deadline=answering.deadline)
        return pb.ForgetCallerResponse(voices_deleted=deleted, voices_pending=pending)
    return pb.ForgetCallerResponse()


async def set_consent(request: pb.SetConsentRequest, context: Context, rooms: Rooms) -> pb.SetConsentResponse:
    """Answers SetConsent."""
    async with answered(rooms.store, context, yields=True) as answering:
        fields = Fields(rooms.identities)
        consent = fields.consent(request.consent, required=not request.withdrawn)
        caller, voice_id = _which(request, fields)
        if not request.withdrawn:
            told = await rooms.consenting.give(caller, voice_id, consent)
            return pb.SetConsentResponse(consents=map(messages.consent, told))
        told, deleted, pending = await rooms.consenting.withdraw(
            caller, voice_id, consent, deadline=answering.deadline
        )
        return pb.SetConsentResponse(
            consents=map(messages.consent, told), voices_deleted=deleted, voices_pending=pending
        )
    return pb.SetConsentResponse()


def _which(request: Any, fields: Fields) -> tuple[Caller | None, str]:
    """Whose voice is meant: a caller's, or the one of an id. Raises FieldInvalid with every fault."""
    caller = None
    if request.HasField("caller") == bool(request.voice_id):
        fields.wrong("voice_id", "or caller is required, and not both")
    if request.HasField("caller"):
        caller = fields.caller(request.caller, numbered=True)
    voice_id = fields.id("voice_id", request.voice_id, required=False)
    fields.check()
    return caller, voice_id


def _read(
    request: pb.CloneVoiceRequest | pb.ReplaceVoiceRequest, fields: Fields, *, numbered: bool = False
) -> tuple[Caller, bytes, str]:
    """Whose voice is to be made, of which sample, and the request's id. Raises FieldInvalid."""
    caller = fields.caller(request.caller, request.consent, request.client_reference, numbered=numbered)
    sample = fields.sample(request.sample)
    request_id = fields.id("request_id", request.request_id, required=False)
    fields.check()
    note(sample_bytes=len(sample))
    return caller, sample, request_id


async def _wanted(rooms: Rooms, method: str, request_id: str, caller: Caller, sample: bytes) -> Wanted:
    """The voice that is wanted, under the request's name and content where its sender gave it a name."""
    identity, named = await rooms.voices.identify(caller, sample), None
    if request_id:
        named = NamedRequest(
            key=rooms.identities.request_key(calling.get().name, request_id),
            content=rooms.identities.content_hash(method, caller, sample_digest=await digest_of(sample)),
        )
    return Wanted(identity=identity, caller=caller, request=named)
