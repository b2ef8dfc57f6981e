import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceServicer, CloningServiceStub
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server as add
from precall_client import Precall, PrecallError, connect

from telemetry.rpc import RpcServerTracing

NAME = "precall.v1.CloningService/GetVoice"
WATCH = "precall.v1.CloningService/WatchVoice"
Behavior = Callable[[Any, Any], Any]


class Servicer(CloningServiceServicer):
    """Behaves as it is told."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior

    async def GetVoice(self, request, context):  # noqa: N802 - gRPC names it
        return await self._behavior(request, context)

    def WatchVoice(self, request, context):  # noqa: N802 - as above
        return self._behavior(request, context)


@pytest.fixture
def serving(spans) -> Callable[[Behavior], AbstractAsyncContextManager[Precall]]:
    """A traced server with that behavior, and a traced client of it."""

    @asynccontextmanager
    async def start(behavior: Behavior) -> AsyncIterator[Precall]:
        server = grpc.aio.server(
            interceptors=(RpcServerTracing(spans.provider("server"), known=frozenset({NAME, WATCH})),)
        )
        add(Servicer(behavior), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with connect(f"127.0.0.1:{port}", tracer_provider=spans.provider("client")) as client:
                yield client
        finally:
            await server.stop(None)

    return start


async def succeed(_request, _context):
    """Answers."""
    return pb.GetVoiceResponse()


async def abort(_request, context):
    """Aborts for a reason of the server's."""
    await context.abort(grpc.StatusCode.DATA_LOSS, "told to")


async def abort_for_the_caller(_request, context):
    """Aborts for a reason of the caller's."""
    await context.abort(grpc.StatusCode.NOT_FOUND, "told to")


async def set_code(_request, context):
    """Fails without an exception."""
    context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
    return pb.GetVoiceResponse()


async def fail(_request, _context):
    """Fails as a bug does."""
    raise ValueError("what nobody caught")


@pytest.mark.parametrize(
    ("behavior", "code", "server_failed"),
    [
        (succeed, "OK", False),
        (abort, "DATA_LOSS", True),
        (abort_for_the_caller, "NOT_FOUND", False),
        (set_code, "FAILED_PRECONDITION", False),
        (fail, "UNKNOWN", True),
    ],
)
async def test_status(serving, spans, behavior: Behavior, code: str, server_failed: bool) -> None:
    """Both spans tell the true status; a client's fails with every status but OK."""
    async with serving(behavior) as precall:
        try:
            await precall.get_voice("voice_1", seconds=5)
        except PrecallError as failure:
            told = failure.code.name
        else:
            told = "OK"
        assert code == told
        # The status may reach the client before the server's span has ended.
        server, client = sorted(await spans.wait(NAME, 2), key=lambda span: span.kind is SpanKind.CLIENT)

    assert [code, code] == [span.attributes["rpc.response.status_code"] for span in (server, client)]
    assert [server_failed, code != "OK"] == [
        span.status.status_code is StatusCode.ERROR for span in (server, client)
    ]
    assert server.parent.span_id == client.context.span_id
    assert () == tuple(server.events) + tuple(client.events)


async def test_caller_that_gives_up(serving, spans) -> None:
    """A cancelled call ends both spans, at the server too."""
    entered = asyncio.Event()

    async def wait(_request, _context):
        entered.set()
        await asyncio.Event().wait()

    async with serving(wait) as client:
        call = asyncio.ensure_future(client.get_voice("voice_1", seconds=30))
        await entered.wait()
        call.cancel()
        found = await spans.wait(NAME, 2)

    assert {"CANCELLED"} == {span.attributes["rpc.response.status_code"] for span in found}
    assert {StatusCode.ERROR} == {span.status.status_code for span in found}


async def test_deadline_that_passes_in_a_handler(serving, spans) -> None:
    """A handler that is cut off by the deadline is told apart from one whose caller gave up."""

    async def wait(_request, context):
        # Nobody hears before the server's own time is up that the client's was: it began to run earlier.
        while context.time_remaining() > 0:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop stands still
        await asyncio.Event().wait()

    async with serving(wait) as client:
        with pytest.raises(PrecallError):
            await client.get_voice("voice_1", seconds=1.5)  # of which a busy machine takes some to connect
        found = await spans.wait(NAME, 2)

    assert {"DEADLINE_EXCEEDED"} == {span.attributes["rpc.response.status_code"] for span in found}
    assert {StatusCode.ERROR} == {span.status.status_code for span in found}


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def generate(_request, _context):
    """Answers twice."""
    yield pb.WatchVoiceResponse()
    yield pb.WatchVoiceResponse()


async def write(_request, context):
    """Answers twice, by itself."""
    await context.write(pb.WatchVoiceResponse())
    await context.write(pb.WatchVoiceResponse())


async def break_off(_request, context):
    """Answers once, and fails."""
    await context.write(pb.WatchVoiceResponse())
    context.set_code(grpc.StatusCode.UNAVAILABLE)


async def break_down(_request, _context):
    """Answers once, and fails as a bug does."""
    yield pb.WatchVoiceResponse()
    raise ValueError("what nobody caught")


@pytest.mark.parametrize(
    ("behavior", "answers", "code", "failed"),
    [
        (generate, 2, "OK", False),
        (write, 2, "OK", False),
        (break_off, 1, "UNAVAILABLE", True),
        (break_down, 1, "UNKNOWN", True),
    ],
)
async def test_stream(serving, spans, behavior: Behavior, answers: int, code: str, failed: bool) -> None:
    """A stream has one span in its caller's trace, which ends with it and tells its true status."""
    async with serving(behavior) as precall:
        stub = CloningServiceStub(precall.channel)
        call = stub.WatchVoice(pb.WatchVoiceRequest(), timeout=5, metadata=(("traceparent", PARENT),))
        assert all([await call.read() is not grpc.aio.EOF for _ in range(answers)])
        assert code == (await call.code()).name
        (server,) = await spans.wait(WATCH)

    assert (code, failed) == (
        server.attributes["rpc.response.status_code"],
        server.status.status_code is StatusCode.ERROR,
    )
    assert (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331) == (
        server.context.trace_id,
        server.parent.span_id,
    )
    assert () == tuple(server.events)


async def test_stream_that_is_given_up(serving, spans) -> None:
    """A stream whose caller leaves ends its span, as cancelled."""

    async def wait(_request, context):
        await context.write(pb.WatchVoiceResponse())
        await asyncio.Event().wait()

    async with serving(wait) as precall:
        call = CloningServiceStub(precall.channel).WatchVoice(pb.WatchVoiceRequest(), timeout=30)
        await call.read()
        call.cancel()
        (span,) = await spans.wait(WATCH)

    assert ("CANCELLED", StatusCode.ERROR) == (
        span.attributes["rpc.response.status_code"],
        span.status.status_code,
    )
