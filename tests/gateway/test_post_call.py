import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.trace import StatusCode
from precall.v1.cloning_pb2 import CompleteCallRequest, CompleteCallResponse
from structlog.testing import capture_logs

from tests.gateway.events import (
    ENDING,
    FAILED_SIP,
    MARKS,
    MIB,
    OTEL,
    PATH,
    event,
    head,
    recording,
    transcription,
)

SERVER = f"POST {PATH}"
CLIENT = "precall.v1.CloningService/CompleteCall"

Start = Callable[..., Awaitable[str]]
Tell = Callable[..., Coroutine[Any, Any, httpx.Response]]


@pytest.mark.parametrize("name", ENDING)
async def test_ends(gateway: Start, tell: Tell, cloner: Any, name: str) -> None:
    """Ends the call with all that the event knows of it."""
    body, expected = ENDING[name]

    answer = await tell(await gateway(), body)

    assert (200, {"status": "success", "conversation_id": "conv_y"}) == (answer.status_code, answer.json())
    assert [expected] == cloner.ended
    assert 4.0 < cloner.remaining[0] < 5.1  # gRPC rounds up


async def test_found_otherwise(gateway: Start, tell: Tell, cloner: Any) -> None:
    """Names a call without a conversation by what our own answer said before it."""
    answer = await tell(await gateway(), transcription(conversation_id=None))

    assert (200, None) == (answer.status_code, answer.json()["conversation_id"])
    assert [CompleteCallRequest(call_id="call_1", agent_id="agent_x", voice_id="c38k")] == cloner.ended


@pytest.mark.parametrize("stamp", ["1739537297", 1739537297.5, None, {"at": 1}])
async def test_stamp(gateway: Start, tell: Tell, cloner: Any, stamp: Any) -> None:
    """Does not mind what an event says of its time."""
    body = event("post_call_transcription", {"conversation_id": "conv_y"}, event_timestamp=stamp)

    answer = await tell(await gateway(), body, **{"Content-Type": "text/plain"})

    assert (200, 1) == (answer.status_code, len(cloner.ended))


async def test_again(gateway: Start, tell: Tell, cloner: Any) -> None:
    """Takes the events of a call in any order and any number, at once too, and always says yes."""
    url = await gateway()
    bodies = [OTEL, transcription(), FAILED_SIP, transcription(), OTEL, b"".join(recording(MIB))]

    answers = [await tell(url, body) for body in bodies]
    answers += await asyncio.gather(*(tell(url, body) for body in bodies))

    assert [200] * 12 == [answer.status_code for answer in answers]
    assert 10 == len(cloner.ended)


async def test_unknown_call(gateway: Start, tell: Tell, cloner: Any, spans: Any) -> None:
    """A call that nobody knows is no failure."""

    async def unknown(_context: Any) -> CompleteCallResponse:
        return CompleteCallResponse(found=False)

    cloner.completed = unknown

    answer = await tell(await gateway(), transcription())

    assert 200 == answer.status_code
    assert "call_unknown" == (await spans.wait(SERVER))[0].attributes["precall.reason"]


@pytest.mark.parametrize("kind", ["voice_removed", "voice_removal_notice", "unredacted_audio", "new\nthing"])
async def test_ignored(gateway: Start, tell: Tell, cloner: Any, spans: Any, kind: str) -> None:
    """Says yes to an event that it knows nothing of, does nothing and does not repeat its name."""
    answer = await tell(await gateway(), event(kind, {"voice_id": "v", "conversation_id": "conv_y"}))

    (server,) = await spans.wait(SERVER)
    assert (200, []) == (answer.status_code, cloner.ended)
    assert ("ignored", False) == (
        server.attributes["precall.reason"],
        "precall.event.type" in server.attributes,
    )


@pytest.mark.parametrize(
    ("body", "reason", "word"),
    [
        (b"", "MALFORMED_BODY", "JSON"),
        (b'{"type": "post_call_transcription"', "MALFORMED_BODY", "JSON"),
        (b"[1]", "MALFORMED_BODY", "object"),
        (b"{}", "FIELD_INVALID", "type is"),
        (b'{"type": "post_call_transcription"}', "FIELD_INVALID", "data is"),
        (
            transcription(conversation_id="", conversation_initiation_client_data={}),
            "FIELD_INVALID",
            "data.conv",
        ),
    ],
)
async def test_refused(gateway: Start, tell: Tell, cloner: Any, body: bytes, reason: str, word: str) -> None:
    """Refuses, for good, what will never get better."""
    answer = await tell(await gateway(), body)

    problem = answer.json()
    assert (400, "VALIDATION_ERROR", reason) == (answer.status_code, problem["error_code"], problem["reason"])
    assert word in problem["error_message"]
    assert [] == cloner.ended


@pytest.mark.parametrize("size", [0, MIB], ids=["held", "too large to be held"])
async def test_encoded(gateway: Start, tell: Tell, cloner: Any, size: int) -> None:
    """Says of an event that cannot be read because of its Content-Encoding that it is for this."""
    body = gzip.compress(transcription(transcript="x" * size), compresslevel=0)
    answer = await tell(await gateway(post_call_held_mb=0.5), body, **{"Content-Encoding": "gzip"})

    problem = answer.json()
    assert (415, "UNSUPPORTED_MEDIA_TYPE") == (answer.status_code, problem["reason"])
    assert "Content-Encoding" in problem["error_message"]
    assert [] == cloner.ended


async def test_strangers(
    gateway: Start, client: httpx.AsyncClient, sign: Any, cloner: Any, spans: Any
) -> None:
    """Does nothing for whom it does not know, and says the same as before a call."""
    url = await gateway()
    body = transcription()
    headers = {
        "SIGNATURE_MISSING": {},
        "SIGNATURE_MALFORMED": {"ElevenLabs-Signature": "v0=x"},
        "SIGNATURE_EXPIRED": {"ElevenLabs-Signature": sign(body, at=time.time() - 1801)},
        "SIGNATURE_MISMATCH": {"ElevenLabs-Signature": sign(body, secret="another")},
    }
    for reason, given in headers.items():
        answer = await client.post(url + PATH, content=body, headers=given)

        problem = answer.json()
        assert (401, "INVALID_SIGNATURE", reason) == (
            answer.status_code,
            problem["error_code"],
            problem["reason"],
        )
        assert problem["conversation_id"] is None
    assert [] == cloner.ended
    for span in await spans.wait(SERVER, 4):
        assert not {"gen_ai.conversation.id", "gen_ai.agent.id", "precall.event"} & span.attributes.keys()


async def test_no_cloner(gateway: Start, tell: Tell) -> None:
    """Asks for the event again while there is no cloner, and at once."""
    async with asyncio.timeout(5):
        answer = await tell(await gateway(cloner_target="127.0.0.1:1"), transcription())

    assert (503, "CLONER_UNAVAILABLE", "conv_y") == (
        answer.status_code,
        answer.json()["reason"],
        answer.json()["conversation_id"],
    )


@pytest.mark.parametrize(
    ("code", "reason", "status", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, "REGISTRY_UNAVAILABLE", 503, "REGISTRY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "REGISTRY_UNAVAILABLE", 503, "REGISTRY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, 503, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, None, 503, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", 503, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.PERMISSION_DENIED, None, 503, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", 429, "RATE_LIMITED"),
        (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", 400, "FIELD_INVALID"),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 500, "INTERNAL"),
    ],
)
async def test_failures_of_the_cloner(
    gateway: Start, tell: Tell, cloner: Any, code: Any, reason: str | None, status: int, expected: str
) -> None:
    """Says why, with a status after which the event is sent again wherever that can help."""

    async def fail(context: Any) -> CompleteCallResponse:
        if reason is not None:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="precall"))
            told = status_pb2.Status(code=code.value[0], message="It is so.", details=[packed])
            context.set_trailing_metadata((("grpc-status-details-bin", told.SerializeToString()),))
        context.set_code(code)
        return CompleteCallResponse()

    cloner.completed = fail

    answer = await tell(await gateway(), transcription())

    assert (status, expected) == (answer.status_code, answer.json()["reason"])


@pytest.mark.long
async def test_silent_cloner(gateway: Start, tell: Tell, cloner: Any) -> None:
    """Waits five seconds for a cloner that says nothing."""
    never = asyncio.Event()

    async def hang(_context: Any) -> CompleteCallResponse:
        await never.wait()
        return CompleteCallResponse()

    cloner.completed = hang
    began = time.monotonic()

    answer = await tell(await gateway(), transcription())

    assert 4.5 < time.monotonic() - began < 6
    assert (503, "CLONER_UNAVAILABLE") == (answer.status_code, answer.json()["reason"])


async def test_hangs_up(gateway: Start, connected: Any, sign: Any, cloner: Any, spans: Any) -> None:
    """Ends the call also for a sender who does not wait for the answer."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_context: Any) -> CompleteCallResponse:
        begun.set()
        await go_on.wait()
        return CompleteCallResponse(found=True)

    cloner.completed = wait
    body = transcription()
    async with connected(await gateway()) as (_, writer):
        writer.write(head(sign(body), f"Content-Length: {len(body)}") + body)
        await begun.wait()
    await asyncio.sleep(0.1)
    go_on.set()

    (span,) = await spans.wait(CLIENT)
    assert StatusCode.UNSET is span.status.status_code
    assert "call_ended" == (await spans.wait(SERVER))[0].attributes["precall.reason"]


async def test_trace(gateway: Start, tell: Tell, spans: Any) -> None:
    """Traces an event as one server span around one client span."""
    await tell(await gateway(), transcription())

    (server,) = await spans.wait(SERVER)
    assert server.context.span_id == spans.one(CLIENT).parent.span_id
    assert {
        "http.request.method": "POST",
        "client.address": "127.0.0.1",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": PATH,
        "http.response.status_code": 200,
        "gen_ai.conversation.id": "conv_y",
        "gen_ai.agent.id": "agent_x",
        "precall.event.type": "post_call_transcription",
        "precall.reason": "call_ended",
        "precall.outcome": "success",
        "precall.fallback": False,
        "url.path": PATH,
        "server.address": "127.0.0.1",
        "user_agent.original": f"python-httpx/{httpx.__version__}",
    } == {
        name: value
        for name, value in server.attributes.items()
        if not name.endswith("_ms") and name != "server.port"
    }


async def test_large_event_holds_nobody_up(gateway: Start, client: httpx.AsyncClient, tell: Tell) -> None:
    """Others are answered while an event is read that takes long to read."""
    # What only the loose reader can read, and reads slowest.
    slow = b'{"type":"post_call_transcription","data":{"transcript":[' + b'[{"":[0]}],' * 200_000 + b"NaN]}}"
    url = await gateway()
    telling = asyncio.create_task(tell(url, slow))
    answered = 0
    while not telling.done():
        await client.get(f"{url}/schema/openapi.json")
        answered += 1

    assert ("FIELD_INVALID", True) == ((await telling).json()["reason"], answered > 10)


async def test_nothing_private_is_told(gateway: Start, tell: Tell, cloner: Any, spans: Any) -> None:
    """Writes one line for each event; nothing of a caller or of what was said gets out."""
    bodies = [
        *(body for body, _ in ENDING.values()),
        b"".join(recording(MIB)),
        event(MARKS[0], {"conversation_id": "conv_y", "agent_id": MARKS[1]}),
        transcription(agent_id=MARKS[1], conversation_id=f"\n{MARKS[0]}"),
        transcription(conversation_id="", conversation_initiation_client_data=MARKS[0]),
        transcription()[:-5],
        MARKS[2].encode(),
    ]
    with capture_logs() as logged:
        url = await gateway()
        answers = [await tell(url, body) for body in bodies]

    assert [200] * 9 + [400] * 4 == [answer.status_code for answer in answers]
    assert [("delivery answered", "info")] * 13 == [(line["event"], line["log_level"]) for line in logged]
    assert {
        "event_type": "post_call_transcription",
        "reason": "call_ended",
        "status": 200,
    }.items() <= logged[0].items()
    told = [span.to_json() for span in await spans.wait(SERVER, 13)] + [
        span.to_json() for span in spans.finished()
    ]
    everything = str(logged) + str(told) + str([(answer.text, answer.headers) for answer in answers])
    for mark in MARKS:
        assert mark not in everything
    assert not [request for request in cloner.ended if any(mark in str(request) for mark in MARKS)]


async def test_description(gateway: Start, client: httpx.AsyncClient) -> None:
    """Describes the header, the body and the answers."""
    described = (await client.get(f"{await gateway()}/schema/openapi.json")).json()

    route = described["paths"][PATH]["post"]
    assert ["ElevenLabs-Signature"] == [parameter["name"] for parameter in route["parameters"]]
    assert ["application/json"] == list(route["requestBody"]["content"])
    statuses = {"200", "400", "401", "403", "408", "413", "415", "429", "500", "503", "504"}
    assert statuses == route["responses"].keys()
    assert {"Acknowledgement", "Problem"} <= described["components"]["schemas"].keys()
