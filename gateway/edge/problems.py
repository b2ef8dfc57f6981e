"""Turns every failure into the error answer, by the one table of the HTTP boundary.

The reason decides; a gRPC code decides only if no reason of ours came with it. The texts of foreign
exceptions reach neither the answer nor the log.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import grpc
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from msgspec import Struct
from opentelemetry.trace import get_current_span
from precall.v1.cloning_pb2 import FallbackInfo
from precall_client import PrecallError, SampleTooLarge

from gateway.edge.body import BodyError
from gateway.edge.fault import DeliveryError
from gateway.edge.limits import OverLimit
from gateway.edge.path import legible
from gateway.edge.signature import SignatureError
from gateway.edge.source import SourceRefused
from telemetry.facts import note
from telemetry.logs import exception_place
from telemetry.tracing import trace_id

__all__ = [
    "ANSWERS",
    "CODES",
    "DeadlineTooShort",
    "Problem",
    "Refusal",
    "Unauthenticated",
    "answer",
    "answer_failure",
    "refusal",
]

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 1

ErrorCode = Literal[
    "VALIDATION_ERROR",
    "INVALID_SIGNATURE",
    "VOICE_CLONING_FAILED",
    "AGENT_UPDATE_FAILED",
    "RATE_LIMITED",
    "PROVIDER_ERROR",
    "INTERNAL_ERROR",
]

# Reason: HTTP status, error_code, and the text for a failure that brings none.
ANSWERS: Mapping[str, tuple[int, ErrorCode, str]] = {
    "MALFORMED_BODY": (400, "VALIDATION_ERROR", "The request cannot be read."),
    "FIELD_INVALID": (400, "VALIDATION_ERROR", "A field is missing or invalid."),
    "SIGNATURE_MISSING": (401, "INVALID_SIGNATURE", "Send the header ElevenLabs-Signature."),
    "SIGNATURE_MALFORMED": (
        401,
        "INVALID_SIGNATURE",
        "Send one header ElevenLabs-Signature of the form t=<unix seconds>,v0=<64 hex digits>.",
    ),
    "SIGNATURE_MISMATCH": (401, "INVALID_SIGNATURE", "The signature does not fit the body."),
    "SIGNATURE_EXPIRED": (
        401,
        "INVALID_SIGNATURE",
        "The signature is older than 30 minutes or more than 5 minutes ahead.",
    ),
    "UNAUTHENTICATED": (401, "INVALID_SIGNATURE", "The request carries no valid credential."),
    "PERMISSION_DENIED": (403, "INVALID_SIGNATURE", "The credential does not allow this."),
    "NOT_FOUND": (404, "VALIDATION_ERROR", "There is nothing at this path."),
    "METHOD_NOT_ALLOWED": (405, "VALIDATION_ERROR", "This path does not offer this method."),
    "CONVERSATION_MISMATCH": (
        409,
        "VALIDATION_ERROR",
        "This conversation was asked about for another caller.",
    ),
    "BODY_TIMEOUT": (408, "VALIDATION_ERROR", "The body did not arrive in time."),
    "BODY_TOO_LARGE": (413, "VALIDATION_ERROR", "The body is larger than a delivery can be."),
    "SAMPLE_TOO_LARGE": (413, "VALIDATION_ERROR", "The voice sample is too large."),
    "UNSUPPORTED_MEDIA_TYPE": (
        415,
        "VALIDATION_ERROR",
        "Send Content-Type application/json or multipart/form-data.",
    ),
    "SAMPLE_REQUIRED": (422, "VOICE_CLONING_FAILED", "No voice of this caller is known; send a sample."),
    "SAMPLE_TOO_SHORT": (422, "VOICE_CLONING_FAILED", "The voice sample is too short."),
    "SAMPLE_TOO_LONG": (422, "VOICE_CLONING_FAILED", "The voice sample is too long."),
    "SAMPLE_SILENT": (422, "VOICE_CLONING_FAILED", "The voice sample is silent."),
    "SAMPLE_RATE_TOO_LOW": (422, "VOICE_CLONING_FAILED", "The voice sample's sample rate is too low."),
    "SAMPLE_UNREADABLE": (422, "VOICE_CLONING_FAILED", "The voice sample is not audio that can be read."),
    "SAMPLE_REJECTED": (422, "VOICE_CLONING_FAILED", "The provider refused the voice sample."),
    "VOICE_NEEDS_VERIFICATION": (422, "VOICE_CLONING_FAILED", "The provider wants the voice verified."),
    "CONSENT_MISSING": (422, "VOICE_CLONING_FAILED", "The caller's consent is required."),
    "AGENT_NOT_FOUND": (422, "AGENT_UPDATE_FAILED", "The provider knows no such agent."),
    "AGENT_REJECTED": (422, "AGENT_UPDATE_FAILED", "The provider refused the change to the agent."),
    "RATE_LIMITED": (429, "RATE_LIMITED", "Too much is going on at once. Try again in a moment."),
    "PROVIDER_UNAUTHORIZED": (502, "PROVIDER_ERROR", "The provider refused our API key."),
    "PROVIDER_PLAN_LIMIT": (502, "PROVIDER_ERROR", "The provider's plan does not allow this now."),
    "VOICE_SLOTS_EXHAUSTED": (502, "PROVIDER_ERROR", "Every voice slot at the provider is taken."),
    "VOICE_MONTHLY_LIMIT": (502, "PROVIDER_ERROR", "This month's voice operations are used up."),
    "PROVIDER_PROTOCOL": (502, "PROVIDER_ERROR", "The provider's answer cannot be read."),
    "PROVIDER_BUSY": (503, "PROVIDER_ERROR", "The provider is busy. Try again later."),
    "PROVIDER_UNAVAILABLE": (503, "PROVIDER_ERROR", "The provider cannot be reached. Try again later."),
    "CLONER_UNAVAILABLE": (503, "PROVIDER_ERROR", "The cloner cannot be reached. Try again later."),
    "REGISTRY_UNAVAILABLE": (503, "PROVIDER_ERROR", "The voice registry cannot be reached. Try again later."),
    "PROVIDER_TIMEOUT": (504, "PROVIDER_ERROR", "There was no answer in time."),
    "DEADLINE_TOO_SHORT": (504, "PROVIDER_ERROR", "The time was too short for an answer."),
    "INTERNAL": (500, "INTERNAL_ERROR", "Something is wrong on our side."),
}

# For a status without a reason of ours: gRPC's own, or one of a newer cloner.
CODES: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "FIELD_INVALID",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
    grpc.StatusCode.UNAVAILABLE: "CLONER_UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "CLONER_UNAVAILABLE",
    # The server at this address is no cloner, or not one of this version.
    grpc.StatusCode.UNIMPLEMENTED: "CLONER_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "PROVIDER_TIMEOUT",
}

# These are addressed to us and not to the sender, who may have done nothing wrong: the cloner does not accept
# our token.
REFUSING_US = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

# These are about the connection between us and the cloner, of which the sender knows nothing: a cloner of
# another version, or a request of ours that arrived too slowly.
BETWEEN_US_AND_CLONER = frozenset(
    {
        ("METHOD_NOT_ALLOWED", grpc.StatusCode.UNIMPLEMENTED),
        ("BODY_TIMEOUT", grpc.StatusCode.DEADLINE_EXCEEDED),
    }
)

# Litestar's own refusals. Any other status below 500 means a request that cannot be read.
STATUSES: Mapping[int, str] = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "BODY_TIMEOUT",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMITED",
}


class Problem(Struct, frozen=True, kw_only=True):
    """The JSON of every answer from status 400 up."""

    status: Literal["error"] = "error"
    error_code: ErrorCode
    reason: str
    """The name of a value of the enum ErrorReason, without its prefix."""

    error_message: str
    conversation_id: str | None
    trace_id: str | None
    """None where tracing is switched off."""


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a request failed, as the answer says it."""

    reason: str
    message: str = ""
    headers: dict[str, str] = {}
    fallback: FallbackInfo | None = None
    """What the cloner said for a call that goes on without the caller's voice."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return ANSWERS[self.reason][0]


class Unauthenticated(Exception):
    """The request lacks the credential that its path requires."""


class DeadlineTooShort(Exception):
    """The time for the answer was used up, by the body or by ourselves, before anybody was asked."""

    reason = "DEADLINE_TOO_SHORT"
    message = ""


def refusal(failure: Exception, codes: Mapping[grpc.StatusCode, str] = CODES) -> Refusal:
    """What the answer says of a failure. A failure that nobody expected is logged.

    `codes` gives the reason for a gRPC status that comes without one of ours.
    """
    match failure:
        case SignatureError() | BodyError():
            retry = RETRY_AFTER_SECONDS if failure.reason == "RATE_LIMITED" else None
            message = failure.message if isinstance(failure, BodyError) else ""
            return Refusal(reason=failure.reason, message=message, headers=_retry_after(retry))
        case Unauthenticated():
            return Refusal(reason="UNAUTHENTICATED", headers={"WWW-Authenticate": "Bearer"})
        case DeliveryError() | OverLimit() | SourceRefused() | DeadlineTooShort():
            retry = failure.retry_after if isinstance(failure, OverLimit) else None
            return Refusal(reason=failure.reason, message=failure.message, headers=_retry_after(retry))
        case PrecallError():
            return _refusal_of_call(failure, codes)
        case HTTPException() if failure.status_code < 500:
            reason = STATUSES.get(failure.status_code, "MALFORMED_BODY")
            allow = (failure.headers or {}).get("allow")
            return Refusal(reason=reason, headers={"Allow": allow} if allow else {})
        case _:
            log.error("bug", exception=exception_place(failure))
            return Refusal(reason="INTERNAL")


def answer(refused: Refusal, conversation_id: str | None = None) -> Response[Problem]:
    """The error answer, with the id of the current trace."""
    status, error_code, sentence = ANSWERS[refused.reason]
    span = get_current_span()
    return Response(
        Problem(
            error_code=error_code,
            reason=refused.reason,
            error_message=refused.message or sentence,
            conversation_id=conversation_id,
            trace_id=trace_id(span) if span.get_span_context().is_valid else None,
        ),
        status_code=status,
        headers=refused.headers,
        media_type="application/json",
    )


def answer_failure(request: Request[Any, Any, Any], failure: Exception) -> Response[Problem]:
    """The error answer to a failure outside a delivery, as Litestar asks for one.

    A failure at a path of webhooks is logged: somebody may have mistyped a URL, and waits for requests that
    never come.
    """
    refused = refusal(failure)
    facts = {"outcome": "error", "reason": refused.reason}
    note(**facts)
    if path := legible(request.scope["path"]):
        log.warning("request refused", path=path, status=refused.status, **facts)
    return answer(refused)


def _refusal_of_call(failure: PrecallError, codes: Mapping[grpc.StatusCode, str]) -> Refusal:
    code, known = failure.code, failure.told and failure.reason in ANSWERS
    if (failure.reason if known else code.name) in REFUSING_US:
        log.error("cloner refuses us, check CLONER_TOKEN", code=code.name)
        reason, message = "CLONER_UNAVAILABLE", ""
    elif failure.told and (failure.reason, code) in BETWEEN_US_AND_CLONER:
        reason, message = "CLONER_UNAVAILABLE", ""
    elif known:
        reason, message = failure.reason, failure.message
        # The field that is `caller` in gRPC is `caller_metadata` in a delivery.
        if reason == "FIELD_INVALID" and message.startswith("caller."):
            message = f"caller_metadata.{message.removeprefix('caller.')}"
    elif failure.told:
        reason, message = codes.get(code, "INTERNAL"), failure.message
    elif isinstance(failure, SampleTooLarge):
        reason, message = failure.reason, ""
    else:
        reason, message = codes.get(code, "INTERNAL"), ""
        log.warning(
            "call failed without a reason",
            code=code.name,
            **({"cause": failure.cause} if failure.cause else {}),
        )
    retry = None if failure.retry_after is None else max(1, math.ceil(failure.retry_after))
    if reason == "RATE_LIMITED":
        retry = retry or RETRY_AFTER_SECONDS
    elif ANSWERS[reason][0] != 503:
        retry = None
    return Refusal(reason=reason, message=message, headers=_retry_after(retry), fallback=failure.fallback)


def _retry_after(seconds: int | None) -> dict[str, str]:
    return {} if seconds is None else {"Retry-After": str(seconds)}
