"""Why a call of the cloner failed, as its answer tells in messages of google.rpc.

Written down a second time: tests hold the client that callers use against what is read here.
"""

import re
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

__all__ = ["Failure", "failed", "failure", "read", "reason", "refusal", "told"]


class Failure(NamedTuple):
    """A failure that the cloner told, which is always in this one shape."""

    reason: str
    code: grpc.StatusCode
    message: str
    metadata: dict[str, str]
    """The facts beside the reason; `trace_id` is always there."""
    fields: list[str]
    """The fields at fault, in the order in which they are told."""
    retry: Duration | None
    """How long to wait before another try, where one may help."""
    more: list[Any]
    """Every detail after the reason, packed."""


def read(failed: Any) -> Failure | None:
    """What a failed call tells; None where gRPC itself ended it, without a word of the cloner's.

    Raises ValueError where the details contradict the status.
    """
    status = rpc_status.from_call(failed)
    if status is None:
        return None
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    assert status.details, failed
    assert status.details[0].Unpack(info), status
    assert "precall" == info.domain, status
    assert re.fullmatch("[0-9a-f]{32}", info.metadata["trace_id"]), status
    assert int(info.metadata["trace_id"], 16), "the trace id of no trace"
    more = list(status.details[1:])
    kinds = [detail.type_url for detail in status.details]
    assert len(set(kinds)) == len(kinds), f"told twice: {kinds}"
    for detail in more:
        detail.Unpack(bad)
    waits = any(detail.Unpack(retry) for detail in more)
    return Failure(
        reason=info.reason,
        code=failed.code(),
        message=status.message,
        metadata=dict(info.metadata),
        fields=[violation.field for violation in bad.field_violations],
        retry=retry.retry_delay if waits else None,
        more=more,
    )


def told(failed: Any) -> Failure:
    """What the cloner told, which must have."""
    found = read(failed)
    assert found is not None, failed
    return found


def reason(failed: Any) -> tuple[str, grpc.StatusCode]:
    """The reason that the cloner told, and its status code."""
    found = told(failed)
    return found.reason, found.code


async def failure(answer: Any) -> Any:
    """How a call fails that must, of whichever client of gRPC, by whomever."""
    with pytest.raises(grpc.RpcError) as caught:
        await answer
    return caught.value


async def refusal(answer: Any) -> tuple[str, list[str]]:
    """The reason of a call that the cloner must fail, and the fields at fault."""
    found = told(await failure(answer))
    return found.reason, found.fields


async def failed(cloner: Any, method: str, asked: Any, seconds: float = 15) -> grpc.aio.AioRpcError:
    """How the cloner fails a call that must fail.

    On a machine that stands still for a moment the client's own clock may end it first; then it asks again.
    """
    for _ in range(5):
        answer = getattr(cloner, method)(asked, timeout=seconds)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (answer.read() if method == "WatchVoice" else answer)
        if read(caught.value) is not None:
            break
    return caught.value
