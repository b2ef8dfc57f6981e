"""What a call fails with."""

import re
from pathlib import Path
from typing import Any

import grpc
import precall_client
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from precall.v1.cloning_pb2 import FallbackInfo
from precall.v1.error_reason_pb2 import ErrorReason
from precall_client import PrecallError, SampleInvalid, Temporary, error_of

PROTO = Path(__file__).parents[2] / "proto" / "precall" / "v1" / "error_reason.proto"
C = grpc.StatusCode
REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in ErrorReason.DESCRIPTOR.values_by_name
    if not name.endswith("UNSPECIFIED")
]
TEMPORARY = {
    "RATE_LIMITED", "PROVIDER_BUSY", "PROVIDER_UNAVAILABLE", "CLONER_UNAVAILABLE", "REGISTRY_UNAVAILABLE",
    "PROVIDER_TIMEOUT", "DEADLINE_TOO_SHORT", "BODY_TIMEOUT",
}  # fmt: skip


def failed(
    code: grpc.StatusCode, *details: Any, text: str = "secret text", message: str = "Words."
) -> grpc.aio.AioRpcError:
    """A failed call, with details where any are given."""
    trailing = grpc.aio.Metadata()
    if details:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailing.add("grpc-status-details-bin", status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=text)


def info(reason: str, domain: str = "precall", **metadata: str) -> error_details_pb2.ErrorInfo:
    """The detail that tells the reason."""
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


@pytest.mark.parametrize("reason", REASONS)
def test_words_of_a_reason(reason: str) -> None:
    """The class says of its reason what the proto says."""
    comment = re.search(rf"((?:  //.*\n)+)  ERROR_REASON_{reason} =", PROTO.read_text())
    assert comment
    stated = " ".join(line.strip("/ ") for line in comment[1].splitlines())

    told = " ".join(str(type(error_of(failed(C.UNKNOWN, info(reason)))).__doc__).split())
    assert re.sub(r" HTTP \S+, gRPC \S+\.$", "", stated) == told


@pytest.mark.parametrize("reason", REASONS)
def test_class_of_a_reason(reason: str) -> None:
    """Every reason of the proto has its class, by its own name, in the group that says what helps."""
    failure = error_of(failed(C.UNKNOWN, info(reason, trace_id="ab" * 16)))

    assert reason.replace("_", "").lower() == type(failure).__name__.lower()
    assert type(failure) is getattr(precall_client, type(failure).__name__)
    assert (reason, "Words.", "ab" * 16, True) == (
        failure.reason,
        str(failure),
        failure.trace_id,
        failure.told,
    )
    assert (reason in TEMPORARY, reason.startswith("SAMPLE_")) == (
        isinstance(failure, Temporary),
        isinstance(failure, SampleInvalid),
    )


def test_details() -> None:
    """All that an answer tells of a failure can be read from it."""
    violation = error_details_pb2.BadRequest.FieldViolation
    failure = error_of(
        failed(
            C.RESOURCE_EXHAUSTED,
            info("RATE_LIMITED", limit_requests="8"),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000)),
            error_details_pb2.BadRequest(
                field_violations=[violation(field="a", description="b"), violation(field="c")]
            ),
            FallbackInfo(call_id="call_1"),
        )
    )

    assert (C.RESOURCE_EXHAUSTED, 2.5, {"limit_requests": "8"}) == (
        failure.code,
        failure.retry_after,
        failure.metadata,
    )
    assert [("a", "b"), ("c", "")] == [(each.field, each.description) for each in failure.violations]
    assert "call_1" == failure.fallback.call_id


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (failed(C.UNAVAILABLE), "CLONER_UNAVAILABLE"),
        (failed(C.CANCELLED), "CLONER_UNAVAILABLE"),
        (failed(C.DEADLINE_EXCEEDED), "PROVIDER_TIMEOUT"),
        (failed(C.UNIMPLEMENTED), "METHOD_NOT_ALLOWED"),
        (failed(C.UNAUTHENTICATED), "UNAUTHENTICATED"),
        (failed(C.PERMISSION_DENIED), "PERMISSION_DENIED"),
        (failed(C.INVALID_ARGUMENT), "FIELD_INVALID"),
        (failed(C.RESOURCE_EXHAUSTED), "RATE_LIMITED"),
        (failed(C.RESOURCE_EXHAUSTED, text="Sent message larger than max (5 vs. 4)"), "SAMPLE_TOO_LARGE"),
        (failed(C.UNKNOWN), "INTERNAL"),
        (failed(C.UNAVAILABLE, info("SAMPLE_SILENT", "of-somebody-else")), "CLONER_UNAVAILABLE"),
        (grpc.aio.AioRpcError(C.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))), "CLONER_UNAVAILABLE"),
    ],
)  # fmt: skip
def test_untold(failure: grpc.aio.AioRpcError, reason: str) -> None:
    """Where nobody of ours said why, the status decides, and no foreign text is repeated."""
    found = error_of(failure)

    assert (reason, False) == (found.reason, found.told)
    assert "secret text" not in str(found)
    assert str(found)


def test_newer_server() -> None:
    """A reason that this client does not know keeps its name, and its status says whether waiting helps."""
    busy, other = (
        error_of(failed(C.UNAVAILABLE, info("NEWER"))),
        error_of(failed(C.FAILED_PRECONDITION, info("NEWER"))),
    )

    assert (("NEWER", Temporary), ("NEWER", PrecallError)) == (
        (busy.reason, type(busy)),
        (other.reason, type(other)),
    )


@pytest.mark.parametrize(
    ("failure", "harmless", "otherwise"),
    [
        (failed(C.RESOURCE_EXHAUSTED, info("RATE_LIMITED", limit_requests="4")), True, True),
        (failed(C.RESOURCE_EXHAUSTED, info("RATE_LIMITED", limit_bytes_at_once="9")), True, True),
        (failed(C.RESOURCE_EXHAUSTED, info("RATE_LIMITED", queue="own")), True, True),
        (failed(C.RESOURCE_EXHAUSTED, info("RATE_LIMITED")), True, False),  # the registry, after a clone
        (failed(C.RESOURCE_EXHAUSTED), True, False),
        (failed(C.DEADLINE_EXCEEDED, info("BODY_TIMEOUT")), True, True),
        (failed(C.DEADLINE_EXCEEDED, info("DEADLINE_TOO_SHORT")), True, False),
        (failed(C.UNAVAILABLE, info("PROVIDER_BUSY")), True, False),
        (failed(C.UNAVAILABLE, info("PROVIDER_BUSY", queue="own")), True, False),  # it may still be waiting
        (failed(C.UNAVAILABLE, info("CLONER_UNAVAILABLE")), True, True),  # it said that it is stopping
        (failed(C.UNAVAILABLE), True, False),  # a connection that broke tells nothing
        (failed(C.DEADLINE_EXCEEDED), True, False),
        (failed(C.DEADLINE_EXCEEDED, info("PROVIDER_TIMEOUT")), True, False),
        (failed(C.INVALID_ARGUMENT, info("SAMPLE_SILENT")), False, False),
        (failed(C.FAILED_PRECONDITION, info("VOICE_MONTHLY_LIMIT")), False, False),
        (failed(C.INTERNAL, info("INTERNAL")), False, False),
    ],
)
def test_may_repeat(failure: grpc.aio.AioRpcError, harmless: bool, otherwise: bool) -> None:
    """What may be repeated is repeated where waiting helps; the rest only where nothing was begun."""
    assert (harmless, otherwise) == (
        error_of(failure).may_repeat,
        error_of(failure, repeatable=False).may_repeat,
    )
