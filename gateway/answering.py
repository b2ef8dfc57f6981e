"""What every signed delivery goes through, whichever route it comes to.

    attempted()                   what the route's own module makes of it -> Attempt, whatever fails
    verifier(), verified_body()   within that: bytes -> VerifiedBody | SignatureError, BodyError, ClientGone
    answered()                    Attempt -> an answer, a line in the log, a span

Before `answered()`, a route may replace the refusal of an attempt by another answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc
import structlog
from litestar import Request, Response
from litestar.response.base import ASGIResponse
from msgspec import Struct
from precall_client import Precall, PrecallError

from callerid import e164
from gateway.conversation.overrides import Overrides
from gateway.conversation.start_data import Facts
from gateway.edge import problems
from gateway.edge.body import Bodies, ClientGone, Share, read_body
from gateway.edge.fault import DeliveryError
from gateway.edge.limits import Limits, OverLimit
from gateway.edge.places import EXTENSION, Occupant
from gateway.edge.problems import Refusal
from gateway.edge.signature import VerifiedBody, Verifier
from gateway.edge.source import admit, source
from gateway.measures import Measures, Outcome
from gateway.settings import Settings
from telemetry.facts import add_log_context, note
from telemetry.parts import Parts, measured, part

__all__ = [
    "HEADROOM_SECONDS",
    "Attempt",
    "Progress",
    "RouteContext",
    "answered",
    "attempted",
    "header_values",
    "make_context",
    "mark_verified",
    "receive_body",
    "verified_body",
    "verifier",
]

log = structlog.get_logger()

# How much of a budget is kept for sending the answer.
HEADROOM_SECONDS = 0.1
ENCODED = "The body cannot be read as it came. Send it without Content-Encoding, and not compressed."


class RouteContext(Struct, frozen=True, kw_only=True):
    """What every route needs to handle a delivery."""

    settings: Settings
    secrets: list[bytes]
    cloner: Precall
    bodies: Bodies
    limits: Limits
    overrides: Overrides
    measures: Measures
    own_numbers: frozenset[str]
    """The numbers that our agents call from, in E.164 form."""

    now: Callable[[], float]


class Progress(Struct, kw_only=True):
    """How far a delivery has come, and what is known of it."""

    began: float
    """The loop's time at the first byte of the body; until it arrives, at the headers."""

    verified: bool = False
    """Whether the sender is known: it signed the body, or showed our token."""

    facts: Facts | None = None
    """What is known of the call, once it can be answered without the cloner."""

    conversation_id: str | None = None
    """The conversation that the delivery names, if the sender is known."""

    cloner_asked: bool = False
    """Whether the cloner was sent what the delivery asks for."""

    reason: str | None = None
    """Why the outcome was no plain success, in a word: the reason of a refusal, or what was unusual."""

    fallback: bool = False
    """Whether the call goes on without the caller's voice."""

    log_facts: dict[str, str | int | bool] = {}
    """Further facts for span and log, under the names of `telemetry.facts`."""

    @property
    def duration_ms(self) -> int:
        """The milliseconds since it began."""
        return int((asyncio.get_running_loop().time() - self.began) * 1000)

    def note_ids(self, *, agent_id: str | None, conversation_id: str | None) -> None:
        """Notes the agent and conversation of a delivery whose sender is known."""
        self.conversation_id = conversation_id
        named = {"agent_id": agent_id, "conversation_id": conversation_id}
        add_log_context(**{name: id_ for name, id_ in named.items() if id_})


class Attempt(Struct, frozen=True, kw_only=True):
    """The result of a delivery: the content of its answer, or a refusal; neither if the client is gone."""

    progress: Progress
    parts: Parts
    content: Struct | None = None
    refused: Refusal | None = None


Handle = Callable[[Request[Any, Any, Any], RouteContext, Progress], Awaitable[Struct]]


def make_context(
    settings: Settings, cloner: Precall, limits: Limits, now: Callable[[], float], measures: Measures
) -> RouteContext:
    """What all routes share. `now` is the time of day that signatures are compared with."""
    region = settings.default_region
    bodies = Bodies(settings.max_buffered_bytes, settings.unverified_bytes)
    measures.observe_buffers(lambda: bodies.used, bodies.capacity)
    return RouteContext(
        settings=settings,
        secrets=[secret.reveal().encode() for secret in settings.elevenlabs_webhook_secret],
        cloner=cloner,
        bodies=bodies,
        limits=limits,
        overrides=Overrides(settings.override_leaves),
        measures=measures,
        own_numbers=frozenset(filter(None, (e164(number, region) for number in settings.own_numbers))),
        now=now,
    )


async def attempted(
    request: Request[Any, Any, Any],
    context: RouteContext,
    handle: Handle,
    *,
    codes: Mapping[grpc.StatusCode, str] = problems.CODES,
) -> Attempt:
    """Handles one delivery; whatever fails becomes a refusal.

    `codes` gives the reason for a gRPC status that comes without one of ours.
    """
    address = source(request.scope)
    progress = Progress(began=asyncio.get_running_loop().time())
    if address is not None:
        progress.log_facts["client_address"] = str(address)
    content, refused = None, None
    with measured() as parts:
        try:
            admit(request.scope, context.settings.allowed_sources)
            content = await handle(request, context, progress)
        except ClientGone:
            progress.reason = "client_gone"
        except Exception as failure:  # noqa: BLE001 - the HTTP boundary: whatever failed is answered
            refused = _refused(request, failure, progress, codes)
    return Attempt(progress=progress, parts=parts, content=content, refused=refused)


def answered(
    request: Request[Any, Any, Any],
    context: RouteContext,
    attempt: Attempt,
    *,
    fallback: Struct | None = None,
) -> Response[Any]:
    """The answer to a delivery, whose outcome is noted in span and log.

    If there is a `fallback`, that is sent with status 200 in place of a refusal.
    """
    progress, refused = attempt.progress, attempt.refused
    response: Response[Any]
    outcome: Outcome
    if refused is not None and fallback is None:
        response, outcome = problems.answer(refused, progress.conversation_id), "error"
    elif refused is None and attempt.content is None:
        response, outcome = NoAnswer(None), "abandoned"
    else:
        progress.fallback = progress.fallback or refused is not None
        response = Response(attempt.content if refused is None else fallback, status_code=200)
        outcome = "fallback" if progress.fallback else "success"
    route, reused = request.scope["path_template"], progress.log_facts.get("voice_reused")
    _log_outcome(route, outcome, attempt)
    context.measures.delivery_ended(
        route,
        outcome,
        progress.reason,
        reused=None if reused is None else reused is True,
        seconds=asyncio.get_running_loop().time() - progress.began,
        parts=attempt.parts.seconds,
    )
    return response


def _refused(
    request: Request[Any, Any, Any],
    failure: Exception,
    progress: Progress,
    codes: Mapping[grpc.StatusCode, str],
) -> Refusal:
    """The refusal for a failure; its facts are noted in `progress`."""
    if isinstance(failure, DeliveryError):
        progress.note_ids(agent_id=failure.agent_id, conversation_id=failure.conversation_id)
    if isinstance(failure, OverLimit):
        progress.log_facts["limit"] = failure.whose
    if isinstance(failure, PrecallError) and failure.metadata.get("queue") == "own":
        progress.log_facts["queue"] = "own"
    refused = problems.refusal(failure, codes)
    # Of a body that is too large to be held only the beginning is read, once its sender is verified.
    unread = refused.reason == "MALFORMED_BODY" or (refused.reason == "BODY_TOO_LARGE" and progress.verified)
    codings = header_values(request.scope["headers"], b"content-encoding")
    if unread and any(coding.lower() not in ("", "identity") for coding in codings):
        refused = Refusal(reason="UNSUPPORTED_MEDIA_TYPE", message=ENCODED)
    progress.reason = refused.reason
    return refused


def verifier(request: Request[Any, Any, Any], context: RouteContext) -> Verifier:
    """What the body is checked with. Raises SignatureError if the header alone is reason enough."""
    header = header_values(request.scope["headers"], b"elevenlabs-signature")
    return Verifier(header, context.secrets, now=context.now())


async def verified_body(
    request: Request[Any, Any, Any],
    context: RouteContext,
    check: Verifier,
    share: Share,
    progress: Progress,
    *,
    limit: int,
    seconds: float,
    trim: Callable[[Verifier], None] | None = None,
) -> VerifiedBody:
    """The signed body. Raises SignatureError, BodyError and ClientGone.

    After each piece `trim` may drop what need not be kept.
    """

    def feed(chunk: bytes) -> None:
        check.feed(chunk)
        if trim is not None:
            trim(check)
        share.hold(check.kept)

    progress.began = await receive_body(request, context, feed, share, limit=limit, seconds=seconds)
    body = check.finish()
    mark_verified(request, share, progress)
    return body


async def receive_body(
    request: Request[Any, Any, Any],
    context: RouteContext,
    feed: Callable[[bytes], None],
    share: Share,
    *,
    limit: int,
    seconds: float,
) -> float:
    """Reads the body. Until the sender is verified, this request may be evicted to make room for others."""
    occupant = _occupant(request)
    if occupant is not None and not share.verified:
        occupant.refuse = share.evict
    try:
        with part("receive"):
            return await read_body(
                request.scope["headers"],
                request.receive,
                feed,
                share,
                limit=limit,
                seconds=seconds,
                least_rate=context.settings.body_least_bytes_per_second,
            )
    finally:
        if occupant is not None:
            occupant.refuse = None


def mark_verified(request: Request[Any, Any, Any], share: Share, progress: Progress) -> None:
    """Notes that the sender is verified: from now on the request is not evicted for others."""
    share.mark_verified()
    progress.verified = True
    occupant = _occupant(request)
    if occupant is not None:
        occupant.mark_verified()


def _occupant(request: Request[Any, Any, Any]) -> Occupant | None:
    """The connection of a request, where the server says so."""
    extensions: Any = request.scope.get("extensions") or {}
    occupant: Occupant | None = extensions.get(EXTENSION)
    return occupant


def _log_outcome(route: str, outcome: Outcome, attempt: Attempt) -> None:
    """Writes the outcome of a delivery to its span and to the log."""
    progress, refused = attempt.progress, attempt.refused
    status = refused.status if refused is not None and outcome == "error" else 200
    facts: dict[str, Any] = {
        "route": route,
        "outcome": outcome,
        "reason": progress.reason,
        "fallback": progress.fallback,
        **progress.log_facts,
        "duration_ms": progress.duration_ms,
        **attempt.parts.milliseconds,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    note(**facts)
    if outcome == "abandoned":
        log.info("delivery abandoned", **facts)
    elif progress.fallback or status >= 500:
        log.warning("delivery answered", status=status, **facts)
    else:
        log.info("delivery answered", status=status, **facts)


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Every value that a header was sent with."""
    return [value.decode("latin-1") for key, value in headers if key == name]


class Silence(ASGIResponse):
    """An answer that sends nothing."""

    async def __call__(self, *_: Any) -> None:
        return


class NoAnswer(Response[None]):
    """The answer for a client that is gone: it is not sent, so that no false status is in the span."""

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        """Nothing to send."""
        return Silence()
