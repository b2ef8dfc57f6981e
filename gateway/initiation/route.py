"""The route that ElevenLabs asks how a call is to start. Read it from the top: it is the path of one call.

    POST /webhook/conversation-init   headers and bytes
    received()          -> the bytes of somebody we know | SignatureError, Unauthenticated
    initiation.read()   -> Initiation: what is known of the call
    OpenCall            -> OpenCallResponse | PrecallError
    greeted()           -> StartData: the caller's voice, or nobody's

A known sender is always answered 200 within the budget, with all that a conversation needs: whatever fails on
the way ends in nobodys_voice().
"""

import asyncio
import hmac
import secrets
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from msgspec import structs
from precall.v1.cloning_pb2 import (
    CALLER_MATCH_ONE,
    CALLER_MATCH_SEVERAL,
    OpenCallResponse,
)

from environment import Secret
from gateway.answering import (
    HEADROOM_SECONDS,
    Attempt,
    Progress,
    RouteContext,
    answered,
    attempted,
    header_values,
    mark_verified,
    receive_body,
    verified_body,
    verifier,
)
from gateway.conversation.overrides import NOT_ACTIVATED, VOICE, Speech, remember
from gateway.conversation.start_data import Facts, StartData, build_start_data, nobodys_voice, unknown_call
from gateway.edge import problems
from gateway.edge.openapi import responses
from gateway.edge.problems import Unauthenticated
from gateway.initiation import request as initiation
from gateway.initiation.description import InitiationOperation
from gateway.initiation.request import Initiation
from gateway.measures import INITIATIONS
from gateway.settings import MAX_INITIATION_BYTES
from telemetry.parts import part

__all__ = ["initiation_route"]

# The reason for an answer without a voice although somebody is known by the number.
UNKNOWN = {CALLER_MATCH_SEVERAL: "caller_ambiguous", CALLER_MATCH_ONE: "voice_unavailable"}
STATUSES = (401, 403, 408, 413, 429, 500)


def initiation_route(context: RouteContext) -> HTTPRouteHandler:
    """The route `POST /webhook/conversation-init`."""
    failures = responses(problems.Problem, STATUSES)

    @post(INITIATIONS, status_code=200, operation_class=InitiationOperation, responses=failures)
    async def start_conversation(request: Request[Any, Any, Any]) -> Response[StartData]:
        attempt = await attempted(request, context, handled)
        return answered(request, context, attempt, fallback=fallback_answer(context, attempt))

    return start_conversation


async def handled(request: Request[Any, Any, Any], context: RouteContext, progress: Progress) -> StartData:
    """One call, from the bytes about it to its answer."""
    ends = progress.began + context.settings.conversation_init_budget_ms / 1000 - HEADROOM_SECONDS
    content = await received(request, context, progress, ends)
    call = initiation.read(content, own_numbers=context.own_numbers, region=context.settings.default_region)
    facts = note_call(context, call, progress)
    if facts.agent_id is None:
        progress.reason, progress.fallback = "agent_unknown", True
        return nobodys_voice(facts, context.settings, context.overrides)
    with part("cloner"):
        response = await context.cloner.open_call(
            agent_id=facts.agent_id,
            phone_number=call.phone_number or "",
            seconds=ends - asyncio.get_running_loop().time(),
            **(call.name or {"call_sid": secrets.token_hex(16)}),
        )
    remember(context.overrides, facts.agent_id, response)
    facts = progress.facts = structs.replace(facts, call_id=response.call_id)
    progress.log_facts["call_id"] = response.call_id
    if not response.HasField("voice"):
        progress.reason = UNKNOWN.get(response.caller_match, "caller_unknown")
        progress.fallback = response.caller_match == CALLER_MATCH_ONE
        return nobodys_voice(facts, context.settings, context.overrides)
    return greeted(context, facts, response, progress)


async def received(
    request: Request[Any, Any, Any], context: RouteContext, progress: Progress, ends: float
) -> bytes:
    """The body, from a sender that shows our token or signs it.

    Raises Unauthenticated, SignatureError, BodyError and ClientGone.
    """
    headers = request.scope["headers"]
    seconds = max(0.0, min(ends - progress.began, context.settings.body_timeout_seconds))
    with context.bodies.share(MAX_INITIATION_BYTES, "initiations") as share:
        if _carries(context.settings.conversation_init_token, header_values(headers, b"authorization")):
            mark_verified(request, share, progress)
            content = bytearray()

            def feed(chunk: bytes) -> None:
                content.extend(chunk)
                share.hold(len(content))

            await receive_body(request, context, feed, share, limit=MAX_INITIATION_BYTES, seconds=seconds)
            return bytes(content)
        if not header_values(headers, b"elevenlabs-signature"):
            raise Unauthenticated
        check = verifier(request, context)
        verified = await verified_body(
            request, context, check, share, progress, limit=MAX_INITIATION_BYTES, seconds=seconds
        )
        return verified.content


def note_call(context: RouteContext, call: Initiation, progress: Progress) -> Facts:
    """Notes what is known of the call before the cloner is asked, and returns it."""
    progress.note_ids(agent_id=call.agent_id, conversation_id=call.conversation_id)
    progress.facts = Facts(
        name=None,
        date_of_birth=None,
        number=call.phone_number,
        region=context.settings.default_region,
        agent_id=call.agent_id,
        conversation_id=call.conversation_id,
        call_id=unknown_call(),
    )
    return progress.facts


def greeted(context: RouteContext, facts: Facts, response: OpenCallResponse, progress: Progress) -> StartData:
    """The caller's voice and greeting, as far as the agent lets them be overridden.

    The greeting by name is left out if another caller's voice would say it.
    """
    leaves = context.overrides.allowed(facts.agent_id)
    heard = response.voice.voice_id if VOICE in leaves else None
    greeting = response.first_message or None
    progress.log_facts |= {"voice_id": response.voice.voice_id, "voice_reused": True}
    if heard is None:
        progress.reason, progress.fallback = NOT_ACTIVATED, True
        if not response.agent_updated:
            greeting = context.overrides.speech_before(facts.agent_id).first_message or greeting
    return build_start_data(
        structs.replace(facts, name=response.name or None, voice_id=heard),
        variables=context.settings.dynamic_variables,
        leaves=leaves,
        speech=Speech(voice_id=heard, first_message=greeting),
    )


def fallback_answer(context: RouteContext, attempt: Attempt) -> StartData | None:
    """The answer to a known sender, whatever failed."""
    progress = attempt.progress
    if attempt.refused is None or not progress.verified:
        return None
    facts = progress.facts or note_call(context, initiation.NOTHING, progress)
    return nobodys_voice(facts, context.settings, context.overrides)


def _carries(tokens: tuple[Secret, ...], authorization: list[str]) -> bool:
    """Whether the request shows one of the tokens."""
    if len(authorization) != 1:
        return False
    scheme, _, given = authorization[0].partition(" ")
    shown = given.strip().encode()
    # Each is compared, so that the time does not tell which one it was.
    fits = [hmac.compare_digest(shown, token.reveal().encode()) for token in tokens]
    return any(fits) and scheme.lower() == "bearer"
