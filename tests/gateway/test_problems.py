import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from opentelemetry.trace import format_trace_id
from precall.v1.error_reason_pb2 import ErrorReason
from precall_client import PrecallError, error_of
from structlog.testing import capture_logs

from gateway.edge.body import BodyError
from gateway.edge.fault import DeliveryError
from gateway.edge.problems import ANSWERS, Refusal, answer, refusal
from gateway.edge.signature import Reason as SignatureReason
from gateway.edge.signature import SignatureError

PROTO = Path(__file__).parents[2] / "proto/precall/v1/error_reason.proto"
ROW = re.compile(r"HTTP (?P<status>\d+|-), gRPC [A-Z_-]+\.\s+ERROR_REASON_(?P<reason>[A-Z_]+) =")

SIGNATURE_REASONS: tuple[SignatureReason, ...] = (
    "SIGNATURE_MISSING",
    "SIGNATURE_MALFORMED",
    "SIGNATURE_MISMATCH",
    "SIGNATURE_EXPIRED",
)

# The table of docs/API.md, as it stands there.
TABLE = {
    "VALIDATION_ERROR": {
        400: "MALFORMED_BODY FIELD_INVALID",
        404: "NOT_FOUND",
        405: "METHOD_NOT_ALLOWED",
        408: "BODY_TIMEOUT",
        409: "CONVERSATION_MISMATCH",
        413: "BODY_TOO_LARGE SAMPLE_TOO_LARGE",
        415: "UNSUPPORTED_MEDIA_TYPE",
    },
    "INVALID_SIGNATURE": {
        401: "SIGNATURE_MISSING SIGNATURE_MALFORMED SIGNATURE_MISMATCH SIGNATURE_EXPIRED UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
    },
    "VOICE_CLONING_FAILED": {
        422: "SAMPLE_REQUIRED SAMPLE_TOO_SHORT SAMPLE_TOO_LONG SAMPLE_SILENT SAMPLE_RATE_TOO_LOW SAMPLE_UNREADABLE "
        "SAMPLE_REJECTED VOICE_NEEDS_VERIFICATION CONSENT_MISSING",
    },
    "AGENT_UPDATE_FAILED": {422: "AGENT_NOT_FOUND AGENT_REJECTED"},
    "RATE_LIMITED": {429: "RATE_LIMITED"},
    "PROVIDER_ERROR": {
        502: "PROVIDER_UNAUTHORIZED PROVIDER_PLAN_LIMIT VOICE_SLOTS_EXHAUSTED VOICE_MONTHLY_LIMIT "
        "PROVIDER_PROTOCOL",
        503: "PROVIDER_BUSY PROVIDER_UNAVAILABLE CLONER_UNAVAILABLE REGISTRY_UNAVAILABLE",
        504: "PROVIDER_TIMEOUT DEADLINE_TOO_SHORT",
    },
    "INTERNAL_ERROR": {500: "INTERNAL"},
}
EXPECTED = {
    reason: (status, error_code)
    for error_code, rows in TABLE.items()
    for status, reasons in rows.items()
    for reason in reasons.split()
}


def rpc_error(
    code: grpc.StatusCode, *details: Any, message: str = "The slots are full.", text: str = "secret text"
) -> PrecallError:
    """A failed call, with details where any are given."""
    trailing = grpc.aio.Metadata()
    if details:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailing.add("grpc-status-details-bin", status.SerializeToString())
    return error_of(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=text))


def info(reason: str, domain: str = "precall") -> error_details_pb2.ErrorInfo:
    """Our own detail."""
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


def retry(seconds: float) -> error_details_pb2.RetryInfo:
    """When to try again."""
    whole = int(seconds)
    delay = duration_pb2.Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def test_table() -> None:
    """Every reason has the status and error code that the contract gives it."""
    assert EXPECTED == {reason: (status, code) for reason, (status, code, _) in ANSWERS.items()}


def test_enum() -> None:
    """Every reason that HTTP may send is in the enum, and its comment says the same status."""
    comments = re.sub(r"\n\s*//", " ", PROTO.read_text())
    rows = {row["reason"]: row["status"] for row in ROW.finditer(comments)}

    assert {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    } == rows.keys()
    assert {reason: str(status) for reason, (status, _, _) in ANSWERS.items()} == {
        reason: status for reason, status in rows.items() if status != "-"
    }


@pytest.mark.parametrize("reason", sorted(EXPECTED.keys() - {"UNAUTHENTICATED", "PERMISSION_DENIED"}))
def test_reason_of_the_cloner(reason: str) -> None:
    """The cloner's reason decides, whatever the code, and its message is told."""
    refused = refusal(rpc_error(grpc.StatusCode.UNKNOWN, info(reason)))

    assert (reason, "The slots are full.") == (refused.reason, refused.message)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("METHOD_NOT_ALLOWED", grpc.StatusCode.UNIMPLEMENTED),
        ("BODY_TIMEOUT", grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_what_is_between_us_and_the_cloner(reason: str, code: grpc.StatusCode) -> None:
    """A cloner without the method, or one that our request reached too slowly, is nothing to blame a sender for."""
    assert "CLONER_UNAVAILABLE" == refusal(rpc_error(code, info(reason))).reason


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        *[(SignatureError(reason), reason) for reason in SIGNATURE_REASONS],
        (BodyError("BODY_TIMEOUT"), "BODY_TIMEOUT"),
        (BodyError("BODY_TOO_LARGE"), "BODY_TOO_LARGE"),
        (BodyError("RATE_LIMITED"), "RATE_LIMITED"),
        (DeliveryError("FIELD_INVALID", "agent_id is required."), "FIELD_INVALID"),
        (DeliveryError("SAMPLE_TOO_LARGE", "Too large."), "SAMPLE_TOO_LARGE"),
        (NotFoundException(), "NOT_FOUND"),
        (MethodNotAllowedException(), "METHOD_NOT_ALLOWED"),
        (HTTPException(status_code=400), "MALFORMED_BODY"),
        (HTTPException(status_code=401), "UNAUTHENTICATED"),
        (HTTPException(status_code=403), "PERMISSION_DENIED"),
        (HTTPException(status_code=413), "BODY_TOO_LARGE"),
        (HTTPException(status_code=415), "UNSUPPORTED_MEDIA_TYPE"),
        (HTTPException(status_code=418), "MALFORMED_BODY"),
        (HTTPException(status_code=429), "RATE_LIMITED"),
        (HTTPException(status_code=500), "INTERNAL"),
        (RuntimeError("secret text"), "INTERNAL"),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), "CLONER_UNAVAILABLE"),
        (rpc_error(grpc.StatusCode.CANCELLED), "CLONER_UNAVAILABLE"),
        (rpc_error(grpc.StatusCode.UNIMPLEMENTED), "CLONER_UNAVAILABLE"),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), "PROVIDER_TIMEOUT"),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), "RATE_LIMITED"),
        (
            rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, text="Received message larger than max (5 vs. 4)"),
            "SAMPLE_TOO_LARGE",
        ),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT), "FIELD_INVALID"),
        (rpc_error(grpc.StatusCode.UNKNOWN), "INTERNAL"),
        (rpc_error(grpc.StatusCode.INTERNAL), "INTERNAL"),
        (rpc_error(grpc.StatusCode.FAILED_PRECONDITION), "INTERNAL"),
        (rpc_error(grpc.StatusCode.PERMISSION_DENIED, info("SAMPLE_REJECTED")), "SAMPLE_REJECTED"),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("NEWER")), "CLONER_UNAVAILABLE"),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT, info("NEWER")), "FIELD_INVALID"),
        (rpc_error(grpc.StatusCode.FAILED_PRECONDITION, info("NEWER")), "INTERNAL"),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("SAMPLE_SILENT", "other")), "CLONER_UNAVAILABLE"),
    ],
)
def test_failures(failure: Exception, reason: str) -> None:
    """Every failure has its reason, and no foreign text is told or logged."""
    with capture_logs() as logged:
        refused = refusal(failure)

    assert reason == refused.reason
    assert "secret text" not in refused.message + str(logged)


@pytest.mark.parametrize(
    "failure",
    [
        rpc_error(code, *details)
        for code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        for details in ((), (info(code.name),), (info("NEWER"),))
    ],
)
def test_refused_by_the_cloner(failure: Exception) -> None:
    """A token that is not the cloner's is our fault, never the sender's, and the log says where to look."""
    with capture_logs() as logged:
        refused = refusal(failure)

    assert ("CLONER_UNAVAILABLE", "") == (refused.reason, refused.message)
    (line,) = logged
    assert ("error", True) == (line["log_level"], "CLONER_TOKEN" in line["event"])
    assert "secret text" not in str(logged)


def test_codes_of_a_route() -> None:
    """A route may say what a call without a reason means to it; a reason still decides."""
    codes = {grpc.StatusCode.DEADLINE_EXCEEDED: "CLONER_UNAVAILABLE"}
    silent = rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)
    told = rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, info("PROVIDER_TIMEOUT"))

    assert ["CLONER_UNAVAILABLE", "PROVIDER_TIMEOUT"] == [
        refusal(failure, codes).reason for failure in (silent, told)
    ]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("NEWER"), message="Newer words."), "Newer words."),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("X", "other"), message="Theirs."), ""),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), ""),
        (
            rpc_error(
                grpc.StatusCode.INVALID_ARGUMENT, info("FIELD_INVALID"), message="caller.name may not be so."
            ),
            "caller_metadata.name may not be so.",
        ),
        (
            rpc_error(grpc.StatusCode.INVALID_ARGUMENT, info("FIELD_INVALID"), message="sample is required"),
            "sample is required",
        ),
    ],
)
def test_whose_words(failure: Exception, message: str) -> None:
    """A message is told only where our own cloner wrote it."""
    assert message == refusal(failure).message


def test_broken_details() -> None:
    """Details that cannot be read count as none."""
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    failure = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailing)

    assert "CLONER_UNAVAILABLE" == refusal(error_of(failure)).reason


@pytest.mark.parametrize(
    ("failure", "headers"),
    [
        (BodyError("RATE_LIMITED"), {"Retry-After": "1"}),
        (BodyError("BODY_TIMEOUT"), {}),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, info("RATE_LIMITED")), {"Retry-After": "1"}),
        (
            rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, info("RATE_LIMITED"), retry(2.2)),
            {"Retry-After": "3"},
        ),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("PROVIDER_BUSY"), retry(7)), {"Retry-After": "7"}),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, info("PROVIDER_BUSY")), {}),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT, info("SAMPLE_SILENT"), retry(7)), {}),
        (MethodNotAllowedException(headers={"allow": "POST"}), {"Allow": "POST"}),
    ],
)
def test_headers(failure: Exception, headers: dict[str, str]) -> None:
    """Says when to try again where that is known, and which methods there are."""
    assert headers == refusal(failure).headers


def test_bug_is_logged_by_its_place() -> None:
    """An unexpected failure is logged by its type and place, without its text."""
    with capture_logs() as logged:
        try:
            raise KeyError("secret text")  # noqa: TRY301
        except KeyError as bug:
            refusal(bug)

    (line,) = logged
    assert "error" == line["log_level"]
    assert re.fullmatch(rf"KeyError at {re.escape(__file__)}:\d+ in \S+", line["exception"])


def test_shape(spans: Any) -> None:
    """The answer has the one shape, and carries the id of the trace it was made in."""
    with spans.provider("gateway").get_tracer("test").start_as_current_span("request") as span:
        response = answer(Refusal(reason="PROVIDER_BUSY"), "conv_1")

    assert 503 == response.status_code
    assert {
        "status": "error",
        "error_code": "PROVIDER_ERROR",
        "reason": "PROVIDER_BUSY",
        "error_message": "The provider is busy. Try again later.",
        "conversation_id": "conv_1",
        "trace_id": format_trace_id(span.get_span_context().trace_id),
    } == {name: getattr(response.content, name) for name in response.content.__struct_fields__}
