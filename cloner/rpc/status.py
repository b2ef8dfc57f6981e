"""The gRPC boundary: every exception of this process as a google.rpc.Status.

The status goes out by `set_code`, `set_details` and a trailing `grpc-status-details-bin`, with no
answer message: `context.abort_with_status` would leave the server span without a status.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.trace import get_current_span
from precall.v1 import error_reason_pb2
from precall.v1.error_reason_pb2 import ErrorReason

from cloner import refusals
from cloner.audio.inspector import InspectionUnavailable, SampleUnreadable
from cloner.provider import failures
from cloner.registry import (
    CallerForgotten,
    ConsentWithdrawn,
    RegistryBusy,
    RegistryUnavailable,
    RequestDiffers,
    RequestForgotten,
    TextNotStorable,
)
from cloner.rpc.contract import Context
from cloner.voices import samples
from cloner.voices.callers import ConversationMismatch
from cloner.voices.finding import ConsentMissing
from cloner.voices.looking import CallersSeveral
from cloner.voices.marked import VoiceNeedsVerification
from telemetry.facts import note
from telemetry.logs import exception_place
from telemetry.tracing import trace_id

__all__ = [
    "CallEnding",
    "CallNotFound",
    "FieldInvalid",
    "answer_failure",
    "ending_of_call",
    "reason_of",
    "refuse",
]

log = structlog.get_logger()

DOMAIN = "precall"
DETAILS_KEY = "grpc-status-details-bin"
# Tells a gRPC client with a retry policy not to send the call again by itself.
PUSHBACK = ("grpc-retry-pushback-ms", "-1")


class FieldInvalid(Exception):
    """Fields of the request are missing, empty, or not of the form that their comments state.

    `faults` holds every such field and what is wrong with it.
    """

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{field} {problem}" for field, problem in faults))
        self.faults = faults


class CallNotFound(Exception):
    """Nobody has asked about such a call, or it ended longer ago than calls are remembered."""

    def __init__(self) -> None:
        super().__init__("There is no such call.")


E = error_reason_pb2
C = grpc.StatusCode
# These name their reason themselves, since it also stands in the log and with the voice.
OWN_REASON: dict[
    type[failures.ProviderFailure | RegistryUnavailable | VoiceNeedsVerification], grpc.StatusCode
] = {
    failures.SampleRejected: C.FAILED_PRECONDITION,
    failures.VoiceNotFound: C.NOT_FOUND,
    failures.AgentNotFound: C.NOT_FOUND,
    failures.AgentRejected: C.FAILED_PRECONDITION,
    failures.Unauthorized: C.FAILED_PRECONDITION,
    failures.PlanLimit: C.FAILED_PRECONDITION,
    failures.SlotsExhausted: C.FAILED_PRECONDITION,
    failures.MonthlyLimit: C.FAILED_PRECONDITION,
    failures.ProtocolBroken: C.INTERNAL,
    failures.Busy: C.UNAVAILABLE,
    failures.OwnQueueFull: C.UNAVAILABLE,
    failures.Unavailable: C.UNAVAILABLE,
    failures.TimedOut: C.DEADLINE_EXCEEDED,
    failures.DeadlineTooShort: C.DEADLINE_EXCEEDED,
    VoiceNeedsVerification: C.FAILED_PRECONDITION,
    RegistryBusy: C.RESOURCE_EXHAUSTED,
    RegistryUnavailable: C.UNAVAILABLE,
}
TABLE: dict[type[Exception], tuple[ErrorReason.ValueType, grpc.StatusCode]] = {
    **{kind: (ErrorReason.Value(f"ERROR_REASON_{kind.reason}"), code) for kind, code in OWN_REASON.items()},
    FieldInvalid: (E.ERROR_REASON_FIELD_INVALID, C.INVALID_ARGUMENT),
    RequestDiffers: (E.ERROR_REASON_FIELD_INVALID, C.INVALID_ARGUMENT),
    CallersSeveral: (E.ERROR_REASON_FIELD_INVALID, C.INVALID_ARGUMENT),
    samples.SampleRequired: (E.ERROR_REASON_SAMPLE_REQUIRED, C.INVALID_ARGUMENT),
    samples.SampleTooLarge: (E.ERROR_REASON_SAMPLE_TOO_LARGE, C.INVALID_ARGUMENT),
    samples.SampleTooShort: (E.ERROR_REASON_SAMPLE_TOO_SHORT, C.INVALID_ARGUMENT),
    samples.SampleTooLong: (E.ERROR_REASON_SAMPLE_TOO_LONG, C.INVALID_ARGUMENT),
    samples.SampleSilent: (E.ERROR_REASON_SAMPLE_SILENT, C.INVALID_ARGUMENT),
    samples.SampleRateTooLow: (E.ERROR_REASON_SAMPLE_RATE_TOO_LOW, C.INVALID_ARGUMENT),
    SampleUnreadable: (E.ERROR_REASON_SAMPLE_UNREADABLE, C.INVALID_ARGUMENT),
    ConsentMissing: (E.ERROR_REASON_CONSENT_MISSING, C.FAILED_PRECONDITION),
    CallerForgotten: (E.ERROR_REASON_CONSENT_MISSING, C.FAILED_PRECONDITION),
    ConsentWithdrawn: (E.ERROR_REASON_CONSENT_MISSING, C.FAILED_PRECONDITION),
    CallNotFound: (E.ERROR_REASON_NOT_FOUND, C.NOT_FOUND),
    ConversationMismatch: (E.ERROR_REASON_CONVERSATION_MISMATCH, C.ALREADY_EXISTS),
    RequestForgotten: (E.ERROR_REASON_NOT_FOUND, C.NOT_FOUND),
    InspectionUnavailable: (E.ERROR_REASON_RATE_LIMITED, C.RESOURCE_EXHAUSTED),
    refusals.Overloaded: (E.ERROR_REASON_RATE_LIMITED, C.RESOURCE_EXHAUSTED),
    refusals.Stopping: (E.ERROR_REASON_CLONER_UNAVAILABLE, C.UNAVAILABLE),
    refusals.MalformedMessage: (E.ERROR_REASON_MALFORMED_BODY, C.INVALID_ARGUMENT),
    refusals.BodyTooLarge: (E.ERROR_REASON_BODY_TOO_LARGE, C.INVALID_ARGUMENT),
    refusals.MetadataTooLarge: (E.ERROR_REASON_BODY_TOO_LARGE, C.INVALID_ARGUMENT),
    refusals.BodyTimeout: (E.ERROR_REASON_BODY_TIMEOUT, C.DEADLINE_EXCEEDED),
    refusals.MethodUnknown: (E.ERROR_REASON_METHOD_NOT_ALLOWED, C.UNIMPLEMENTED),
    refusals.TooManyWatchers: (E.ERROR_REASON_METHOD_NOT_ALLOWED, C.UNIMPLEMENTED),
    refusals.ServiceUnknown: (E.ERROR_REASON_NOT_FOUND, C.NOT_FOUND),
    refusals.Unauthenticated: (E.ERROR_REASON_UNAUTHENTICATED, C.UNAUTHENTICATED),
    refusals.PermissionDenied: (E.ERROR_REASON_PERMISSION_DENIED, C.PERMISSION_DENIED),
    refusals.ClientOverloaded: (E.ERROR_REASON_RATE_LIMITED, C.RESOURCE_EXHAUSTED),
    # Texts of requests were checked before, so this is a text that ElevenLabs sent of a voice or an agent.
    TextNotStorable: (E.ERROR_REASON_PROVIDER_PROTOCOL, C.INTERNAL),
}
# After how many seconds another try may succeed, if the failure itself does not say.
WAITS = {
    E.ERROR_REASON_RATE_LIMITED: 1.0,
    E.ERROR_REASON_PROVIDER_BUSY: 1.0,
    E.ERROR_REASON_PROVIDER_UNAVAILABLE: 1.0,
    E.ERROR_REASON_CLONER_UNAVAILABLE: 1.0,
    E.ERROR_REASON_REGISTRY_UNAVAILABLE: 1.0,
}
INTERNAL = "An internal error; the trace shows where."


@dataclass(slots=True)
class CallEnding:
    """How a call ends."""

    outcome: str = "success"
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    """How many seconds each part took."""


ending_of_call: ContextVar[CallEnding | None] = ContextVar("ending_of_call", default=None)
"""How the call that is being answered ends."""


def reason_of(failure: Exception) -> str:
    """The name of the reason without its prefix, such as SAMPLE_TOO_SHORT."""
    reason, _ = _row(failure)
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def answer_failure(context: Context, failure: Exception, *more: Message) -> None:
    """Sets the call's status, with `more` among its details.

    An exception that is not in the table is a bug: it is logged, and not described to the client.
    """
    reason, code = _row(failure)
    ending = ending_of_call.get()
    if ending is not None:
        ending.outcome, ending.reason = "error", reason_of(failure)
    message = str(failure)
    if reason == E.ERROR_REASON_INTERNAL:
        log.error("bug", exception=exception_place(failure))
        message = INTERNAL
    status = status_pb2.Status(code=code.value[0], message=message)
    facts = dict(failure.facts) if isinstance(failure, samples.SampleRefused | refusals.Refused) else {}
    if isinstance(failure, failures.OwnQueueFull):
        # The contract has no reason of its own for this; the message says that ElevenLabs was not asked.
        facts["queue"] = "own"
    info = error_details_pb2.ErrorInfo(
        domain=DOMAIN,
        reason=reason_of(failure),
        metadata={**facts, "trace_id": trace_id(get_current_span())},
    )
    status.details.add().Pack(info)
    faults = failure.faults if isinstance(failure, FieldInvalid | RequestDiffers | CallersSeveral) else ()
    if faults:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
            for field, problem in faults
        ]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    asked = failure.retry_after if isinstance(failure, failures.ProviderFailure) else None
    if (seconds := asked or WAITS.get(reason)) is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * seconds))
        status.details.add().Pack(retry)
    for detail in more:
        status.details.add().Pack(detail)
    context.set_code(code)
    context.set_details(message)
    # Requests to ElevenLabs and the registry were tried again here; another process would fail too.
    final = code is C.UNAVAILABLE and reason != E.ERROR_REASON_CLONER_UNAVAILABLE
    context.set_trailing_metadata(
        ((DETAILS_KEY, status.SerializeToString()), *((PUSHBACK,) if final else ()))
    )


def refuse(context: Context, failure: Exception, *, warn: bool = False) -> None:
    """Answers a call that is refused before it is handled, and logs it."""
    answer_failure(context, failure)
    reason = reason_of(failure)
    note(outcome="error", reason=reason)
    level = logging.WARNING if warn else logging.INFO
    log.log(level, "call refused", reason=reason, peer=context.peer())


def _row(failure: Exception) -> tuple[ErrorReason.ValueType, grpc.StatusCode]:
    return TABLE.get(type(failure), (E.ERROR_REASON_INTERNAL, C.INTERNAL))
