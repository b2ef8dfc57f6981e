"""The route for deliveries. Read it from the top: it is the path of one delivery.

    POST /webhook       bytes and headers
    verified_body()     -> VerifiedBody | SignatureError, BodyError                (answering.py)
    received()          -> Delivery | DeliveryError
    limits              -> | OverLimit, of the source before the body is read, of the agent here
    _enough()           -> the seconds that are left | DeadlineTooShort
    ask_cloner()        -> PrepareCallResponse | PrecallError, ClientGone
    prepared()          -> PreparedCall, FallbackCall                              (answer.py)
    ask_agent()         -> how the agent speaks, for a call that goes on although it was refused here
    answer              -> 200, or what problems.py makes of the failure, or fallback_answer()

Behind an arrow stands what a step makes and, after the bar, what it may raise.
"""

import asyncio
from functools import partial
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from msgspec import structs
from precall.v1.cloning_pb2 import PrepareCallResponse
from precall_client import Caller, Precall

from gateway.answering import (
    HEADROOM_SECONDS,
    Attempt,
    Progress,
    RouteContext,
    answered,
    attempted,
    header_values,
    verified_body,
    verifier,
)
from gateway.conversation.overrides import remember
from gateway.conversation.start_data import Facts, unknown_call
from gateway.edge import problems
from gateway.edge.aside import Aside
from gateway.edge.body import ClientGone, Receive, disconnected
from gateway.edge.openapi import responses
from gateway.edge.problems import DeadlineTooShort
from gateway.edge.signature import VerifiedBody
from gateway.edge.source import source
from gateway.measures import DELIVERIES
from gateway.precall.answer import FallbackCall, PreparedCall, fallback, prepared
from gateway.precall.description import DeliverOperation
from gateway.precall.questions import AgentQuestions
from gateway.precall.request import Delivery, MediaType, NotStrict, media_type, read
from gateway.settings import Settings
from telemetry.facts import note
from telemetry.parts import part

__all__ = ["webhook"]


# The failures after which a call may go on with the agent's own voice. All others are the sender's fault.
FALLBACK_STATUSES = frozenset({422, 429, 500, 502, 503, 504})
# In less the cloner's answer may not arrive, and nobody would know whether it had asked anybody.
LEAST_SECONDS = 0.05
# Reading a body that is already there begins within this time, even on a busy loop.
AT_ONCE_SECONDS = 0.1


def webhook(context: RouteContext) -> HTTPRouteHandler:
    """The route `POST /webhook`."""
    failures = responses(problems.Problem)
    questions = AgentQuestions(context.cloner, context.overrides)
    handle = partial(handled, Aside())

    @post(DELIVERIES, status_code=200, operation_class=DeliverOperation, responses=failures)
    async def deliver(request: Request[Any, Any, Any]) -> Response[PreparedCall | FallbackCall]:
        attempt = await attempted(request, context, handle)
        await ask_agent(context, questions, attempt)
        return answered(request, context, attempt, fallback=fallback_answer(context, attempt))

    return deliver


async def handled(
    aside: Aside, request: Request[Any, Any, Any], context: RouteContext, progress: Progress
) -> PreparedCall | FallbackCall:
    """One delivery, from its bytes to its answer."""
    settings = context.settings
    # Held until the answer, because what was made of the body lives as long.
    with context.bodies.share(settings.max_body_bytes, "deliveries") as share:
        # Faults in the headers are refused before the body is read. The signature is checked first, so that a
        # stranger learns of no other fault.
        check = verifier(request, context)
        media = media_type(header_values(request.scope["headers"], b"content-type"))
        await context.limits.count_source(source(request.scope), left=_left(settings, progress))
        began, counted = progress.began, asyncio.get_running_loop().time()
        verified = await verified_body(
            request,
            context,
            check,
            share,
            progress,
            limit=settings.max_body_bytes,
            seconds=max(0.0, min(settings.body_timeout_seconds, _left(settings, progress))),
        )
        if progress.began - counted < AT_ONCE_SECONDS:
            # The body had begun to arrive while its source was counted.
            progress.began = began
        delivery, facts = await received(aside, verified, media, settings, progress)
        del verified, check
        # Counted after the verification, so that no stranger can use up an agent's limit.
        await context.limits.count_agent(delivery.agent_id, left=_enough(_left(settings, progress)))
        # Twice the sample at most: what is sent, and gRPC's copy. A large request is freed once it is sent.
        share.become(2 * len(delivery.sample))
        left = _enough(_left(settings, progress))
        asking = ask_cloner(context.cloner, delivery, request.receive, left)
        del delivery
        progress.cloner_asked = True
        with part("cloner"):
            response = await asking
    answer = prepared(response, facts, settings, context.overrides, progress.duration_ms)
    progress.log_facts |= {
        "voice_id": response.voice.voice_id,
        "call_id": response.call_id,
        "voice_reused": response.voice_reused,
        "agent_updated": response.agent_updated,
    }
    if isinstance(answer, FallbackCall):
        progress.reason, progress.fallback = answer.reason, True
    return answer


async def ask_agent(context: RouteContext, questions: AgentQuestions, attempt: Attempt) -> None:
    """Finds out how the agent speaks if its call goes on and the cloner has not heard of it."""
    facts, left = facts_to_go_on(context, attempt), _left(context.settings, attempt.progress)
    if facts is not None and not attempt.progress.cloner_asked and left >= LEAST_SECONDS:
        await questions.ask(facts.agent_id or "", seconds=left)


def facts_to_go_on(context: RouteContext, attempt: Attempt) -> Facts | None:
    """What is known of a call whose delivery was refused, if it goes on without the caller's voice."""
    allowed = context.settings.precall_fallback == "default_voice"
    goes_on = allowed and attempt.refused is not None and attempt.refused.status in FALLBACK_STATUSES
    return attempt.progress.facts if goes_on else None


def fallback_answer(context: RouteContext, attempt: Attempt) -> FallbackCall | None:
    """The answer to a delivery that could not be prepared, if its call may go on without the voice."""
    facts, refused = attempt.progress.facts, attempt.refused
    if facts is None or refused is None:
        return None
    if refused.fallback is not None:
        # Whatever becomes of this call, the next one may have to do without the cloner.
        remember(context.overrides, facts.agent_id or "", refused.fallback)
        facts = structs.replace(facts, call_id=refused.fallback.call_id or facts.call_id)
    if facts_to_go_on(context, attempt) is None:
        return None
    return fallback(refused.reason, facts, context.settings, context.overrides, attempt.progress.duration_ms)


async def received(
    aside: Aside, body: VerifiedBody, media: MediaType, settings: Settings, progress: Progress
) -> tuple[Delivery, Facts]:
    """What the cloner is sent, and what the answer needs of it. Raises DeliveryError and DeadlineTooShort."""
    reading = partial(read, body, media, max_sample_bytes=settings.max_sample_bytes)
    try:
        delivery = reading(loosely=False)
    except NotStrict:
        delivery = await aside.read(len(body.content), reading, seconds=_left(settings, progress))
    progress.note_ids(agent_id=delivery.agent_id, conversation_id=delivery.conversation_id)
    note(sample_bytes=len(delivery.sample))
    facts = Facts(
        name=delivery.name,
        date_of_birth=delivery.date_of_birth,
        number=delivery.phone_number,
        region=settings.default_region,
        agent_id=delivery.agent_id,
        conversation_id=delivery.conversation_id,
        call_id=unknown_call(),
    )
    progress.facts = facts
    return delivery, facts


async def ask_cloner(
    cloner: Precall, delivery: Delivery, receive: Receive, seconds: float
) -> PrepareCallResponse:
    """The cloner's answer. Raises PrecallError, and ClientGone when the client hangs up before it.

    In that case the call is cancelled: no agent may be changed for a call that is gone.
    """
    caller = Caller(
        name=delivery.name or "",
        date_of_birth=delivery.date_of_birth or "",
        phone_number=delivery.phone_number or "",
    )
    prepare = cloner.prepare_call(
        agent_id=delivery.agent_id,
        conversation_id=delivery.conversation_id,
        caller=caller,
        sample=delivery.sample,
        consent=delivery.consent or "",
        seconds=seconds,
    )
    del delivery  # its sample is as large as the request, which is all that is needed from now on
    asked = asyncio.create_task(prepare)
    watch = asyncio.create_task(disconnected(receive))
    watch.add_done_callback(partial(_cancel, asked))
    try:
        return await asked
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            asked.cancel()
            raise
        raise ClientGone from None
    finally:
        watch.cancel()
        # A failure refers to this frame, and its task to the failure: such a cycle would keep the request.
        del asked


def _cancel(asked: asyncio.Task[PrepareCallResponse], _: object) -> None:
    asked.cancel()


def _enough(left: float) -> float:
    """The seconds that are left. Raises DeadlineTooShort where the cloner could not even refuse in them."""
    if left < LEAST_SECONDS:
        raise DeadlineTooShort
    return left


def _left(settings: Settings, progress: Progress) -> float:
    """How many seconds are left until the answer has to leave."""
    return (
        progress.began
        + settings.precall_budget_ms / 1000
        - HEADROOM_SECONDS
        - asyncio.get_running_loop().time()
    )
