"""The route that takes a delivery, readable from the top as the way of one delivery.

    POST /webhook       bytes and headers
    verified_body()     -> VerifiedBody | SignatureError, BodyError, DeliveryError
    receive()           -> PrepareCallRequest | DeliveryError
    call_through()      -> PrepareCallResponse | AioRpcError, ClientGone
    answer              -> 200, or what problems.py makes of the failure

Each arrow changes the type once.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import structlog
from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from msgspec import Struct, field, structs
from opentelemetry.trace import get_current_span
from voice.v1.cloning_pb2 import Caller, PrepareCallRequest, PrepareCallResponse

from gateway import delivery, problems
from gateway.body import Bodies, ClientGone, Receive, Share, disconnected, read_body
from gateway.delivery import DeliveryError, MediaType
from gateway.description import DeliverOperation, responses
from gateway.initiation import Facts, Initiation, initiation
from gateway.settings import Settings
from gateway.signature import VerifiedBody, Verifier
from telemetry.logs import about

if TYPE_CHECKING:
    # The stub of an aio channel is a class of its own in the type stubs alone.
    from voice.v1.cloning_pb2_grpc import CloningServiceAsyncStub

__all__ = ["webhook"]

log = structlog.get_logger()

# What is kept of the budget for bringing the answer out.
HEADROOM_SECONDS = 0.1


class CallerInfo(Struct, frozen=True, kw_only=True):
    """What the sender told of the caller; null where it told nothing."""

    name: str | None = field(name="Name")
    date_of_birth: str | None = field(name="DateOfBirth")


class PreparedCall(Struct, frozen=True, kw_only=True):
    """The JSON of a delivery that succeeded."""

    status: Literal["success"] = "success"
    conversation_id: str
    voice_id: str
    voice_name: str
    agent_updated: bool
    caller_info: CallerInfo
    processing_time_ms: int
    voice_reused: bool
    conversation_initiation_client_data: Initiation


class Desk(Struct, frozen=True, kw_only=True):
    """What every delivery is handled with."""

    settings: Settings
    secrets: list[bytes]
    cloner: "CloningServiceAsyncStub"
    bodies: Bodies
    now: Callable[[], float]


class Progress(Struct, kw_only=True):
    """How far one delivery has come."""

    began: float
    """The loop's time at the first byte of the body, or at the headers until that has come."""

    verified: bool = False
    conversation_id: str | None = None


def webhook(
    settings: Settings, cloner: "CloningServiceAsyncStub", now: Callable[[], float]
) -> HTTPRouteHandler:
    """The route `POST /webhook`. `now` is the time of day that signatures are held against."""
    desk = Desk(
        settings=settings,
        secrets=[secret.reveal().encode() for secret in settings.elevenlabs_webhook_secret],
        cloner=cloner,
        bodies=Bodies(settings.max_buffered_bytes),
        now=now,
    )

    failures = responses(problems.Problem)

    @post("/webhook", status_code=200, operation_class=DeliverOperation, responses=failures)
    async def deliver(request: Request[Any, Any, Any]) -> Response[PreparedCall]:
        return await answered(request, desk)

    return deliver


async def answered(request: Request[Any, Any, Any], desk: Desk) -> Response[Any]:
    """Handles one delivery, answers it whatever happens, and tells what came of it."""
    progress = Progress(began=_time())
    response: Response[Any]
    try:
        prepared = await handled(request, desk, progress)
    except ClientGone:
        response, outcome = NoAnswer(None), "client_gone"
    except Exception as failure:  # noqa: BLE001  The HTTP boundary: whatever failed is answered.
        if isinstance(failure, DeliveryError):
            progress.conversation_id = failure.conversation_id
        refused = problems.refusal(failure)
        response, outcome = problems.answer(refused, progress.conversation_id), refused.reason
    else:
        response, outcome = Response(prepared, status_code=200), "success"
    tell(progress, outcome, response.status_code)
    return response


async def handled(request: Request[Any, Any, Any], desk: Desk, progress: Progress) -> PreparedCall:
    """One delivery, from its bytes to its answer."""
    settings = desk.settings
    # Held until the answer: what was made of the body is as large as the body was.
    with desk.bodies.share() as share:
        verified, media = await verified_body(request, desk, share, progress)
        prepare, facts = receive(verified, media, settings.max_sample_bytes, progress)
        # Not needed while the cloner works, which is most of the time.
        del verified
        response = await call_through(desk.cloner, prepare, request.receive, _left(settings, progress))
    facts = structs.replace(facts, voice_id=response.voice.voice_id)
    return PreparedCall(
        conversation_id=facts.conversation_id,
        voice_id=response.voice.voice_id,
        voice_name=response.voice.name,
        agent_updated=response.agent_updated,
        caller_info=CallerInfo(name=facts.name, date_of_birth=facts.date_of_birth),
        processing_time_ms=int((_time() - progress.began) * 1000),
        voice_reused=response.voice_reused,
        conversation_initiation_client_data=initiation(
            facts,
            variables=settings.dynamic_variables,
            leaves=settings.override_leaves,
            call_id=response.call_id,
            first_message=response.first_message,
        ),
    )


async def verified_body(
    request: Request[Any, Any, Any], desk: Desk, share: Share, progress: Progress
) -> tuple[VerifiedBody, MediaType]:
    """The signed body and how to read it.

    What the headers alone can be refused for is refused before the body is read, the signature
    first, so that a stranger learns nothing of the rest. Raises SignatureError, DeliveryError,
    BodyError and ClientGone.
    """
    settings = desk.settings
    headers = request.scope["headers"]
    verifier = Verifier(_lines(headers, b"elevenlabs-signature"), desk.secrets, now=desk.now())
    media = delivery.media_type(_lines(headers, b"content-type"))
    progress.began = await read_body(
        headers,
        request.receive,
        verifier.feed,
        share,
        limit=settings.max_body_bytes,
        seconds=min(settings.body_timeout_seconds, settings.precall_budget_ms / 1000),
    )
    body = verifier.finish()
    progress.verified = True
    return body, media


def receive(
    body: VerifiedBody, media: MediaType, max_sample_bytes: int, progress: Progress
) -> tuple[PrepareCallRequest, Facts]:
    """The request to the cloner, and what the answer needs of it. Raises DeliveryError."""
    call = delivery.read(body, media, max_sample_bytes=max_sample_bytes)
    progress.conversation_id = call.conversation_id
    get_current_span().set_attributes(
        {"gen_ai.agent.id": call.agent_id, "precall.sample.size": len(call.sample)}
    )
    facts = Facts(
        name=call.name,
        date_of_birth=call.date_of_birth,
        phone_number=call.phone_number,
        agent_id=call.agent_id,
        conversation_id=call.conversation_id,
        voice_id=None,
    )
    caller = Caller(
        name=call.name or "", date_of_birth=call.date_of_birth or "", phone_number=call.phone_number or ""
    )
    request = PrepareCallRequest(
        agent_id=call.agent_id, conversation_id=call.conversation_id, caller=caller, sample=call.sample
    )
    return request, facts


async def call_through(
    cloner: "CloningServiceAsyncStub", request: PrepareCallRequest, receive: Receive, seconds: float
) -> PrepareCallResponse:
    """The cloner's answer. Raises AioRpcError, and ClientGone when the client hangs up before it.

    Then the call is cancelled: an agent must not be touched for a call that is gone.
    """
    call = cloner.PrepareCall(request, timeout=max(0.0, seconds))
    watch = asyncio.create_task(disconnected(receive))
    watch.add_done_callback(lambda _: call.cancel())
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            call.cancel()
            raise
        raise ClientGone from None
    finally:
        watch.cancel()


def tell(progress: Progress, outcome: str, status: int | None) -> None:
    """Writes what came of a delivery to its span, if it was signed, and to the log.

    Without a status there was nobody left to answer.
    """
    if progress.verified:
        span = get_current_span()
        span.set_attribute("precall.outcome", outcome)
        if progress.conversation_id:
            span.set_attribute("gen_ai.conversation.id", progress.conversation_id)
    duration_ms = int((_time() - progress.began) * 1000)
    with about(**({"conversation_id": progress.conversation_id} if progress.conversation_id else {})):
        if status is None:
            log.info("delivery abandoned", outcome=outcome, duration_ms=duration_ms)
        else:
            log.info("delivery answered", outcome=outcome, status=status, duration_ms=duration_ms)


class Silence(ASGIResponse):
    """Sends nothing."""

    async def __call__(self, *_: Any) -> None:
        return


class NoAnswer(Response[None]):
    """For a client that is gone: an answer sent to nobody would only put a false status into the span."""

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        """Nothing to send."""
        return Silence()


def _left(settings: Settings, progress: Progress) -> float:
    """The seconds that the cloner may take."""
    return progress.began + settings.precall_budget_ms / 1000 - HEADROOM_SECONDS - _time()


def _lines(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Every value that a header was sent with."""
    return [value.decode("latin-1") for key, value in headers if key == name]


def _time() -> float:
    return asyncio.get_running_loop().time()
