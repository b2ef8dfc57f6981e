"""The route for events after a call. Read it from the top: it is the path of one event.

    POST /webhook/post-call   bytes and headers
    verified_body()           -> VerifiedBody | SignatureError, BodyError          (answering.py)
    read()                    -> Event | DeliveryError, BodyError
    complete()                -> whether there was such a call | PrecallError
    answer                    -> 200, or what problems.py makes of the failure

A sender repeats an event after a 5xx, 429 or 408, and never after another 4xx.
"""

from functools import partial
from typing import Any, Literal

import grpc
from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from precall_client import Precall

from gateway.answering import Progress, RouteContext, answered, attempted, verified_body, verifier
from gateway.edge import problems
from gateway.edge.aside import Aside
from gateway.edge.openapi import responses
from gateway.measures import EVENTS
from gateway.postcall.description import CompleteOperation
from gateway.postcall.request import Event, read, trim
from telemetry.parts import part

__all__ = ["post_call"]

COMPLETE_SECONDS = 5.0
# Nothing here waits for the provider: if there is no answer in time, the cloner is at fault.
CODES = {**problems.CODES, grpc.StatusCode.DEADLINE_EXCEEDED: "CLONER_UNAVAILABLE"}
STATUSES = (400, 401, 403, 408, 413, 415, 429, 500, 503, 504)


class Acknowledgement(Struct, frozen=True, kw_only=True):
    """The JSON of an event that was taken."""

    status: Literal["success"] = "success"
    conversation_id: str | None
    """Null where the event names none."""


def post_call(context: RouteContext) -> HTTPRouteHandler:
    """The route `POST /webhook/post-call`."""
    failures = responses(problems.Problem, STATUSES)
    handle = partial(handled, Aside())

    @post(EVENTS, status_code=200, operation_class=CompleteOperation, responses=failures)
    async def tell_end(request: Request[Any, Any, Any]) -> Response[Acknowledgement]:
        return answered(request, context, await attempted(request, context, handle, codes=CODES))

    return tell_end


async def handled(
    aside: Aside, request: Request[Any, Any, Any], context: RouteContext, progress: Progress
) -> Acknowledgement:
    """One event, from its bytes to its answer."""
    event = await received(aside, request, context, progress)
    progress.note_ids(agent_id=event.agent_id, conversation_id=event.conversation_id)
    if event.type:
        progress.log_facts["event_type"] = event.type
    try:
        if not event.ends_call:
            progress.reason = "ignored"
        else:
            with part("cloner"):
                found = await complete(context.cloner, event)
            progress.reason = "call_ended" if found else "call_unknown"
    finally:
        context.measures.event_ended(event.type, progress.reason or "error")
    return Acknowledgement(conversation_id=event.conversation_id)


async def received(
    aside: Aside, request: Request[Any, Any, Any], context: RouteContext, progress: Progress
) -> Event:
    """What the event says; its bytes are freed."""
    settings = context.settings
    most = settings.max_held_event_bytes
    with context.bodies.share(most, "events") as share:
        body = await verified_body(
            request,
            context,
            verifier(request, context),
            share,
            progress,
            limit=settings.max_event_bytes,
            seconds=settings.post_call_timeout_seconds,
            trim=partial(trim, most=most),
        )
        return await aside.read(len(body.content), partial(read, body))


async def complete(cloner: Precall, event: Event) -> bool:
    """Ends the call, and returns whether there was such a call. Raises PrecallError.

    A sender that hangs up does not stop this: the call is over in any case.
    """
    response = await cloner.complete_call(
        conversation_id=event.conversation_id or "",
        call_id=event.call_id or "",
        agent_id=event.agent_id or "",
        voice_id=event.voice_id or "",
        seconds=COMPLETE_SECONDS,
    )
    return response.found
