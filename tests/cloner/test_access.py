"""Who is let in, to what, and how often at once: over real sockets."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from environment import Secret, Toml
from tests.kit.changes import comes_true
from tests.kit.clients import ALL, entry, with_token
from tests.kit.failures import failure, reason, told
from tests.kit.requests import IVAN, call

CREATE = "/v1/voices/add"
SERVICE = "precall.v1.CloningService"
# DESIGN's table of rights, written down a second time.
RIGHTS = {
    "PrepareCall": "calls",
    "OpenCall": "calls",
    "CompleteCall": "calls",
    "CloneVoice": "voices",
    "ReplaceVoice": "voices",
    "GetVoice": "read",
    "ListVoices": "read",
    "SetConsent": "voices",
    "WatchVoice": "voices",
    "GetCall": "read",
    "ListCalls": "read",
    "GetLimits": "read",
    "GetUsage": "read",
    "DeleteVoice": "erase",
    "ForgetCaller": "erase",
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
IDS = (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
METHODS = pb.DESCRIPTOR.services_by_name["CloningService"].methods


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


def written(path: Path, *entries: str) -> Toml:
    """Clients, in a file."""
    path.write_text("".join(entries))
    return Toml(path.read_text(), path)


async def outcome(answer: Any) -> str:
    """What comes of a call: OK, or the reason why not."""
    try:
        await answer
    except grpc.aio.AioRpcError as failed:
        return reason(failed)[0]
    return "OK"


async def listed(cloner: Any, token: str) -> str:
    """What comes of a call that reads."""
    return await outcome(cloner.ListVoices(pb.ListVoicesRequest(), timeout=5, metadata=with_token(token)))


def test_table_is_complete() -> None:
    """No call is forgotten."""
    assert set(RIGHTS) == {method.name for method in METHODS}


async def test_rights(cloning) -> None:
    """Every call takes one right and no other; the answer names the one that is missing."""
    clients = "".join(entry(right, f"token-of-{right}", may=(right,)) for right in ALL)
    async with cloning(cloner_clients=Toml(clients)) as cloner:
        for method in METHODS:
            for right in ALL:
                request = pb.__dict__[method.input_type.name]()
                answer = getattr(cloner, method.name)(
                    request, timeout=10, metadata=with_token(f"token-of-{right}")
                )
                if method.server_streaming:
                    answer = answer.read()
                if right == RIGHTS[method.name]:
                    assert await outcome(answer) in {"OK", "FIELD_INVALID"}
                    continue
                failed = await failure(answer)
                assert ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED) == reason(failed)
                facts = told(failed).metadata
                assert (right, RIGHTS[method.name]) == (facts["client"], facts["missing_right"])


async def served(port: int, version: str, metadata: Any) -> list[str]:
    """What reflection names."""
    ask = reflection_pb2.ServerReflectionRequest(list_services="")

    def told() -> list[str]:
        # In an asyncio client, a write that fails since the call has ended may take the place of the status:
        # https://github.com/grpc/grpc/issues/36066. Once that is mended, a channel of grpc.aio does.
        with grpc.insecure_channel(f"127.0.0.1:{port}") as wire:
            answers = wire.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([ask]), timeout=5, metadata=metadata)
            return [service.name for answer in answers for service in answer.list_services_response.service]

    return await asyncio.to_thread(told)


async def test_open_and_closed(cloning) -> None:
    """Health is told to anybody; what is served, to whoever has a token, with whatever right."""
    clients = Toml(entry("crm", "token-of-the-crm", may=()))
    async with (
        cloning(cloner_clients=clients) as cloner,
        grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as wire,
    ):
        health = health_pb2_grpc.HealthStub(wire)
        assert (
            health_pb2.HealthCheckResponse.SERVING
            == (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status
        )
        for version in ("v1", "v1alpha"):
            assert SERVICE in await served(cloner.port, version, with_token("token-of-the-crm"))
            refused = reason(await failure(served(cloner.port, version, None)))
            assert ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED) == refused


async def test_trace_of_a_refusal(cloning, spans) -> None:
    """A refusal of what gets no span is told with a trace id: a client's, or else one of its own."""
    theirs = (("traceparent", PARENT),)
    asked = health_pb2.HealthCheckRequest(service="nothing")
    async with cloning() as cloner, grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as wire:
        check = health_pb2_grpc.HealthStub(wire).Check
        refusals = [await failure(check(asked, timeout=5, metadata=metadata)) for metadata in (None, theirs)]
    async with cloning(cloner_clients=Toml(entry("crm", "token-of-the-crm"))) as cloner:
        refusals += [await failure(served(cloner.port, "v1", metadata)) for metadata in (None, theirs)]
    ids = [told(refusal).metadata["trace_id"] for refusal in refusals]

    assert "0af7651916cd43dd8448eb211c80319c" == ids[1]
    assert 4 == len({*ids} - {"0" * 32})
    assert [] == [span.name for span in spans.finished() if span.name.startswith("grpc.")]


async def test_trace_of_a_stranger(cloning, spans) -> None:
    """Who has no token chooses neither the trace of a span nor its name; where no token is asked for, anybody may."""
    theirs = (("traceparent", PARENT), ("tracestate", "theirs=31612345678"))
    name = f"{SERVICE}/GetLimits"

    async def ask(cloner: Any, token: str) -> str:
        metadata = (*theirs, *with_token(token))
        return await outcome(cloner.GetLimits(pb.GetLimitsRequest(), timeout=5, metadata=metadata))

    async with cloning(cloner_clients=Toml(entry("crm", "token-of-the-crm"))) as cloner:
        for token in ("token-of-the-crm", "token-of-nobody"):
            await ask(cloner, token)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as wire:
            await failure(wire.unary_unary("/Ivan/31612345678")(b"", timeout=5, metadata=theirs))
    async with cloning() as cloner:
        await ask(cloner, "token-of-nobody")
    known, stranger, anybody = sorted(await spans.wait(name, 3), key=lambda span: span.start_time)
    (unknown,) = await spans.wait("_OTHER")

    def parent(span: Any) -> tuple[int, int]:
        return (span.parent.trace_id, span.parent.span_id)

    assert [IDS, IDS] == [parent(span) for span in (known, anybody)]
    assert [None, None] == [span.parent for span in (stranger, unknown)]
    for span in (stranger, unknown):
        (link,) = span.links
        assert (*IDS, 0) == (link.context.trace_id, link.context.span_id, len(link.context.trace_state))
        assert IDS[0] != span.context.trace_id
    assert "_OTHER" == unknown.attributes["rpc.method"]


async def test_no_reflection(cloning) -> None:
    """Where it is switched off, what is served is told to nobody."""
    async with cloning(cloner_reflection=False) as cloner:
        for version in ("v1", "v1alpha"):
            refused = reason(await failure(served(cloner.port, version, None)))
            assert ("METHOD_NOT_ALLOWED", grpc.StatusCode.UNIMPLEMENTED) == refused


async def test_bound_of_a_client(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """One client's requests fill its own places and nobody else's; whoever waits a moment gets one again."""
    clients = Toml(entry("enrolment", "token-of-enrolment", most=2) + entry("calls", "token-of-calls"))
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(cloner_clients=clients) as cloner:

        def clone(number: int) -> Any:
            caller = pb.Caller(name="Ivan", phone_number=f"+3161234{number:04}")
            request = pb.CloneVoiceRequest(caller=caller, sample=speech)
            return cloner.CloneVoice(request, timeout=20, metadata=with_token("token-of-enrolment"))

        under_way = [clone(1), clone(2)]
        await eventually(lambda: len(emulator.requests.matching(path=CREATE)) == 2)

        failed = await failure(clone(3))
        assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == reason(failed)
        assert "2" == told(failed).metadata["limit_requests"]
        assert 0 < told(failed).retry.seconds
        assert ["RATE_LIMITED", "OK"] == [
            await listed(cloner, token) for token in ("token-of-enrolment", "token-of-calls")
        ]

        emulator.faults.clear()
        await asyncio.gather(*under_way)
        assert "OK" == await listed(cloner, "token-of-enrolment")
        prepared = await cloner.PrepareCall(
            call(speech, 4), timeout=20, metadata=with_token("token-of-calls")
        )
        assert prepared.voice.voice_id


async def test_rotation(cloning, speech: bytes, tmp_path: Path) -> None:
    """A file of clients that changes counts while calls go on."""
    path = tmp_path / "clients.toml"
    clients = written(path, entry("crm", "token-of-the-past"))
    with capture_logs() as lines:
        async with cloning(cloner_clients=clients) as cloner:

            async def taken(token: str) -> bool:
                return await listed(cloner, token) == "OK"

            async def refused(token: str) -> bool:
                return await listed(cloner, token) == "UNAUTHENTICATED"

            assert await taken("token-of-the-past")
            assert await refused("token-of-the-future")

            written(path, entry("crm", "token-of-the-past", "token-of-the-future"))
            await comes_true(lambda: taken("token-of-the-future"))
            assert await taken("token-of-the-past")
            past, future = (
                cloner.WatchVoice(pb.WatchVoiceRequest(caller=IVAN), timeout=60, metadata=with_token(token))
                for token in ("token-of-the-past", "token-of-the-future")
            )

            # As an orchestrator does it: another file in its place.
            written(tmp_path / "next", entry("crm", "token-of-the-future")).path.rename(path)
            await comes_true(lambda: refused("token-of-the-past"))
            assert await taken("token-of-the-future")
            assert "UNAUTHENTICATED" == await outcome(past.read())
            request = pb.CloneVoiceRequest(caller=IVAN, sample=speech)
            cloned = await cloner.CloneVoice(request, timeout=20, metadata=with_token("token-of-the-future"))
            states = [(await future.read()).voice]
            while states[-1].state == pb.VOICE_STATE_CREATING:
                states.append((await future.read()).voice)
            assert cloned.voice.voice_id == states[-1].voice_id
            future.cancel()

    assert [] == [line for line in lines if line["log_level"] == "error"]
    assert "token-of" not in str(lines)


async def test_broken_files(cloning, tmp_path: Path) -> None:
    """A file of clients that is broken is told, and changes nothing; one that is whole again counts."""
    broken = (b"[clients.crm", b"[clients.crm]\nmay = ['all']", b"", b"\xff\xfe", None)
    paths = [tmp_path / f"{number}.toml" for number in range(len(broken))]

    def errors() -> list[Any]:
        return [line["variable"] for line in lines if line["log_level"] == "error"]

    with capture_logs() as lines:
        async with AsyncExitStack() as stack:
            cloners = [
                await stack.enter_async_context(
                    cloning(cloner_clients=written(path, entry("crm", "token-of-the-past")))
                )
                for path in paths
            ]

            async def all_take(token: str) -> bool:
                return {"OK"} == {await listed(cloner, token) for cloner in cloners}

            assert await all_take("token-of-the-past")
            for path, content in zip(paths, broken, strict=True):
                path.unlink() if content is None else path.write_bytes(content)
            await comes_true(lambda: asyncio.sleep(0, len(errors()) == len(broken)))
            assert await all_take("token-of-the-past")

            for path in paths:
                written(path, entry("crm", "token-of-the-end"))
            await comes_true(lambda: all_take("token-of-the-end"))
            assert {"UNAUTHENTICATED"} == {await listed(cloner, "token-of-the-past") for cloner in cloners}

    assert ["CLONER_CLIENTS_FILE"] * len(broken) == [
        line["variable"] for line in lines if line["log_level"] == "error"
    ]
    assert "token-of" not in str(lines)


async def test_told(cloning, speech: bytes, spans) -> None:
    """Span and log line say whose call it was and which; erasures and refusals have a line of their own."""
    clients = Toml(entry("crm", "token-of-the-crm", may=("calls", "erase")))
    tokens = (Secret("token-of-everything"),)
    merge = structlog.contextvars.merge_contextvars
    with capture_logs(processors=[merge]) as lines:
        async with cloning(cloner_clients=clients, cloner_token=tokens) as cloner:
            mine = with_token("token-of-the-crm")
            await cloner.PrepareCall(call(speech), timeout=10, metadata=mine)
            await cloner.ForgetCaller(
                pb.ForgetCallerRequest(caller=call(speech).caller), timeout=10, metadata=mine
            )
            await failure(cloner.ForgetCaller(pb.ForgetCallerRequest(), timeout=10, metadata=mine))
            await failure(cloner.ListVoices(pb.ListVoicesRequest(), timeout=10, metadata=mine))
            await cloner.ListVoices(
                pb.ListVoicesRequest(), timeout=10, metadata=with_token("token-of-everything")
            )
            await failure(
                cloner.GetVoice(pb.GetVoiceRequest(), timeout=10, metadata=with_token("t0ken-of-a-stranger"))
            )
            async with grpc.aio.insecure_channel(f"127.0.0.1:{cloner.port}") as wire:
                await failure(wire.unary_unary("/name.of/Ivan")(b"", timeout=10))

    answered = [line for line in lines if line["event"] == "request answered"]
    assert [
        ("crm", f"{SERVICE}/PrepareCall", None),
        ("crm", f"{SERVICE}/ForgetCaller", None),
        ("crm", f"{SERVICE}/ForgetCaller", "FIELD_INVALID"),
        ("default", f"{SERVICE}/ListVoices", None),
    ] == [(line["client"], line["method"], line.get("reason")) for line in answered]
    assert [
        ("crm", f"{SERVICE}/ForgetCaller", "OK"),
        ("crm", f"{SERVICE}/ForgetCaller", "INVALID_ARGUMENT"),
    ] == [(line["client"], line["method"], line["code"]) for line in lines if line["event"] == "erasure"]
    refused = [line for line in lines if line["event"] == "call refused"]
    assert [
        ("crm", f"{SERVICE}/ListVoices", "PERMISSION_DENIED"),
        (None, f"{SERVICE}/GetVoice", "UNAUTHENTICATED"),
        (None, None, "UNAUTHENTICATED"),
    ] == [(line.get("client"), line.get("method"), line["reason"]) for line in refused]
    assert all(re.fullmatch(r"ipv4:127\.0\.0\.1:[0-9]+", line["peer"]) for line in refused)
    assert "Ivan" not in str(refused)
    assert ["crm", "crm", "crm", "default", None] == [
        span.attributes.get("precall.client")
        for method in ("PrepareCall", "ForgetCaller", "ListVoices", "GetVoice")
        for span in spans.finished(f"precall.v1.CloningService/{method}")
        if (method, span.attributes.get("precall.reason")) != ("ForgetCaller", "FIELD_INVALID")
    ]
    told = str(lines) + "".join(span.to_json() for span in spans.finished())
    assert not any(
        token in told for token in ("token-of-the-crm", "token-of-everything", "t0ken-of-a-stranger")
    )


async def test_anybody(cloning) -> None:
    """Where nobody has to say who it is, the line of a call says which it was."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with cloning() as cloner:
            await cloner.ListVoices(
                pb.ListVoicesRequest(), timeout=10, metadata=with_token("a-token-that-nobody-asked-for")
            )

    (line,) = [line for line in lines if line["event"] == "request answered"]
    assert ("anybody", f"{SERVICE}/ListVoices") == (line["client"], line["method"])


async def test_names_of_requests_are_each_clients_own(
    cloning, emulator: Emulator, speech: bytes, tmp_path: Path
) -> None:
    """Two clients that use one request_id make two requests; the tokens of one client share its names."""
    clients = written(tmp_path / "clients.toml", entry("crm", "token-a", "token-b"), entry("desk", "token-c"))
    async with cloning(cloner_clients=clients) as cloner:

        async def clone(token: str, name: str) -> str:
            request = pb.CloneVoiceRequest(
                caller=pb.Caller(name=name, phone_number="+31612345678"), sample=speech, request_id="1"
            )
            answer = await cloner.CloneVoice(request, timeout=10, metadata=with_token(token))
            return answer.voice.voice_id

        first = await clone("token-a", "Ivan")
        assert first == await clone("token-b", "Ivan")
        assert "FIELD_INVALID" == await outcome(clone("token-b", "Maria"))
        assert first != await clone("token-c", "Maria")
    assert 2 == len(emulator.requests.matching(path=CREATE))
