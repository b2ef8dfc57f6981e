"""The exceptions of failed calls: PrecallError, with a subclass for every reason.

PrecallError              whatever failed; `reason` says what
├── Temporary             waiting helps: RateLimited, ProviderBusy, ClonerUnavailable, ...
├── SampleInvalid         another recording helps: SampleTooShort, SampleSilent, ...
└── ...                   a class for each other reason
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from precall.v1.cloning_pb2 import FallbackInfo

from precall_client.cause import cause_of

__all__ = ["PrecallError", "SampleInvalid", "Temporary", "Violation", "error_of"]

M = TypeVar("M", bound=Message)

DOMAIN = "precall"
DETAILS = "grpc-status-details-bin"
TOO_LARGE = "larger than max"

# For a status without a reason of ours: gRPC's own, or one of another server.
CODES: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "FIELD_INVALID",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
    grpc.StatusCode.UNIMPLEMENTED: "METHOD_NOT_ALLOWED",
    grpc.StatusCode.UNAVAILABLE: "CLONER_UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "CLONER_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "PROVIDER_TIMEOUT",
}
SENTENCES: Mapping[str, str] = {
    "CLONER_UNAVAILABLE": "The cloner cannot be reached.",
    "METHOD_NOT_ALLOWED": "What answers there is no cloner of this version.",
    "PROVIDER_TIMEOUT": "There was no answer in time.",
    "SAMPLE_TOO_LARGE": "The recording is larger than can be sent.",
}
# The server refused the request and began nothing: always if it gives one of these reasons; for RATE_LIMITED
# only if the metadata name a limit or the queue. After PROVIDER_BUSY and DEADLINE_TOO_SHORT a clone that was
# begun may still be waiting, and goes on.
REFUSED = frozenset({"CLONER_UNAVAILABLE", "BODY_TIMEOUT"})
LIMITS = frozenset({"limit_requests", "limit_bytes_at_once", "queue"})


@dataclass(frozen=True)
class Violation:
    """A faulty field, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an answer says of a failure."""

    message: str = ""
    cause: str = ""
    by_server: bool = False
    """Whether it says why; if not, that is derived from the status."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    fallback: FallbackInfo | None = None


CLASSES: dict[str, type["PrecallError"]] = {}
"""The class of each reason; each class registers itself."""


class PrecallError(Exception):
    """A call that failed. Its text is a sentence for people; code should use its class or its `reason`."""

    REASON: ClassVar[str] = ""
    """The reason that the class stands for."""

    def __init__(self, reason: str, answer: Answer, *, repeatable: bool) -> None:
        super().__init__(answer.message)
        self.reason = reason
        """The name of a value of ErrorReason, without its prefix; it may be one of a newer server."""

        self.message = answer.message
        """A sentence of the server's, or one of this client's if the server sent none."""

        self.code = answer.code
        """The status of gRPC."""

        self.told = answer.by_server
        """Whether the server gave the reason; if not, it was derived from the status."""

        self.cause = answer.cause
        """What is in the way of the connection, in a few words; empty if that is not known."""

        self.metadata = answer.metadata
        """What else the server sent with the reason, such as a limit and what was found."""

        self.trace_id = answer.metadata.get("trace_id", "")
        """The id of the trace at the server, for whoever looks into it; empty if it sent none."""

        self.violations = answer.violations
        """Every field at fault, of FIELD_INVALID."""

        self.retry_after = answer.retry_after
        """After how many seconds another try may succeed, if the server knows."""

        self.fallback = answer.fallback
        """What the call needs to go on without the caller's voice, if PrepareCall sent it."""

        self.may_repeat = isinstance(self, Temporary) and (repeatable or _unbegun(reason, answer))
        """Whether the same request may be sent again after a while: that may help, and harms nothing."""

    def __init_subclass__(cls) -> None:
        if cls.REASON:
            CLASSES[cls.REASON] = cls


class Temporary(PrecallError):
    """Waiting helps: the same request may succeed later; `retry_after` says when, if that is known."""


class SampleInvalid(PrecallError):
    """The recording was refused; another one may be accepted. The text says what is wrong with it."""


def error_of(failure: grpc.aio.AioRpcError, *, repeatable: bool = True) -> PrecallError:
    """The exception for a failed call of any stub of the service.

    `repeatable` says that sending it twice does no harm.
    """
    reason, answer = _read(failure)
    kind = CLASSES.get(reason)
    if kind is None:
        # The reason is a newer server's, but its status still says whether waiting helps.
        fallback = CLASSES.get(CODES.get(failure.code(), ""), PrecallError)
        kind = Temporary if issubclass(fallback, Temporary) else PrecallError
    return kind(reason, answer, repeatable=repeatable)


def _unbegun(reason: str, answer: Answer) -> bool:
    return answer.by_server and (
        reason in REFUSED or (reason == "RATE_LIMITED" and not LIMITS.isdisjoint(answer.metadata))
    )


def _read(failure: grpc.aio.AioRpcError) -> tuple[str, Answer]:
    code = failure.code()
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes) and (found := _details(code, value)) is not None:
            return found
    reason = CODES.get(code, "INTERNAL")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in (failure.details() or ""):
        reason = "SAMPLE_TOO_LARGE"
    # Texts of gRPC or of a stranger can hold anything, and are not repeated.
    message = SENTENCES.get(reason, f"The call failed with {code.name}.")
    cause = cause_of(failure.details()) if reason == "CLONER_UNAVAILABLE" else ""
    return reason, Answer(code=code, message=message, cause=cause)


def _details(code: grpc.StatusCode, value: bytes) -> tuple[str, Answer] | None:
    """What a status of our own says, if it is one."""
    try:
        status = status_pb2.Status.FromString(value)
        info = _one(status, error_details_pb2.ErrorInfo())
        if info is None or info.domain != DOMAIN:
            return None
        retry = _one(status, error_details_pb2.RetryInfo())
        faults = _one(status, error_details_pb2.BadRequest())
        return info.reason, Answer(
            message=status.message,
            by_server=True,
            code=code,
            metadata=dict(info.metadata),
            violations=tuple(
                Violation(each.field, each.description)
                for each in (faults.field_violations if faults else ())
            ),
            retry_after=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry else None,
            fallback=_one(status, FallbackInfo()),
        )
    except DecodeError:
        return None


def _one(status: status_pb2.Status, into: M) -> M | None:
    return into if any(detail.Unpack(into) for detail in status.details) else None
