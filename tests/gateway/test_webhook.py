import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.trace import StatusCode
from precall.v1.cloning_pb2 import Caller, PrepareCallRequest, PrepareCallResponse
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server
from structlog.testing import capture_logs

from tests.kit.ports import free_port

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Coroutine[Any, Any, httpx.Response]]
Document = Callable[..., bytes]

SERVER = "POST /webhook"
CLIENT = "precall.v1.CloningService/PrepareCall"
CALLER = {"name": "Ivan", "date_of_birth": "11.12.2007", "phone_number": "+31612345678"}


async def fails(context: Any, code: grpc.StatusCode, reason: str, message: str) -> PrepareCallResponse:
    """Fails as the cloner does."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="precall"))
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.set_code(code)
    context.set_details(message)
    return PrepareCallResponse()


async def test_escaped_slashes(gateway: Start, deliver: Deliver, document: Document) -> None:
    """A sample within the limit is taken also where its sender escapes slashes, of which quiet sound has many."""
    loudness = (b"\xff\xff", b"\xfe\xff", b"\xfd\xff", b"\x02\x00", b"\x01\x00")
    quiet = b"".join(loudness * 104_857)
    body = document(quiet).replace(b"/", b"\\/")

    answer = await deliver(await gateway(voice_clone_max_size_mb=1.0), body)

    assert len(body) > 1.5 * len(quiet) + 65_536
    assert 200 == answer.status_code


async def test_success(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Answers a delivery with all that the contract names."""
    url = await gateway(dynamic_variables={"who": "{name|friend}", "visits": 3})

    answer = await deliver(url, document())

    body = answer.json()
    assert 200 == answer.status_code
    assert isinstance(body.pop("processing_time_ms"), int)
    assert {
        "status": "success",
        "conversation_id": "conv_abc123xyz",
        "voice_id": "voice_1",
        "voice_name": "Ivan_Clone_20251210_123456_xyz",
        "agent_updated": True,
        "caller_info": {"Name": "Ivan", "DateOfBirth": "11.12.2007"},
        "voice_reused": True,
        "conversation_initiation_client_data": {
            "type": "conversation_initiation_client_data",
            "dynamic_variables": {"who": "Ivan", "visits": 3, "precall_call_id": "call_1"},
            "conversation_config_override": {
                "agent": {"first_message": "Hallo Ivan, fijn dat je belt!"},
                "tts": {"voice_id": "voice_1"},
            },
        },
    } == body


async def test_request(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Hands the delivery to the cloner as it came, and the time that is left."""
    await deliver(await gateway(precall_budget_ms=5000), document(b"RIFF" * 64))

    assert [
        PrepareCallRequest(
            agent_id="agent_def456uvw",
            conversation_id="conv_abc123xyz",
            caller=Caller(**CALLER),
            sample=b"RIFF" * 64,
        )
    ] == cloner.asked
    assert 4.0 < cloner.remaining[0] < 4.95


async def test_form(
    gateway: Start, client: httpx.AsyncClient, sign: Any, document: Document, cloner: Any
) -> None:
    """Takes the same delivery as a form."""
    form = client.build_request(
        "POST",
        f"{await gateway()}/webhook",
        data={"metadata": document(voice_sample=None).decode()},
        files={"voice_sample": ("sample.wav", b"RIFF" * 64, "audio/wav")},
    )
    form.headers["ElevenLabs-Signature"] = sign(await form.aread())

    answer = await client.send(form)

    assert (200, b"RIFF" * 64) == (answer.status_code, cloner.asked[0].sample)


async def test_unknown_caller(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Both keys are there for a caller of whom nothing is known."""
    answer = await deliver(await gateway(), document(caller_metadata=None))

    assert {"Name": None, "DateOfBirth": None} == answer.json()["caller_info"]


@pytest.mark.parametrize("size", [200_000, 10 * 1_048_576])
async def test_large(gateway: Start, deliver: Deliver, document: Document, cloner: Any, size: int) -> None:
    """Takes a sample up to and including the limit."""
    answer = await deliver(await gateway(), document(bytes(size)))

    assert (200, size) == (answer.status_code, len(cloner.asked[0].sample))


async def test_sample_too_large(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any, spans: Any
) -> None:
    """Refuses a sample of one byte more, without troubling the cloner."""
    answer = await deliver(await gateway(), document(bytes(10 * 1_048_576 + 1)))

    assert (413, "SAMPLE_TOO_LARGE") == (answer.status_code, answer.json()["reason"])
    assert "conv_abc123xyz" == answer.json()["conversation_id"]
    assert "agent_def456uvw" == (await spans.wait("POST /webhook"))[0].attributes["gen_ai.agent.id"]
    assert [] == cloner.asked


async def test_strangers(gateway: Start, deliver: Deliver, cloner: Any) -> None:
    """Tells a stranger about the signature before anything else, and does nothing for them."""
    url = await gateway()
    old = "t=1,v0=" + "0" * 64

    answers = [
        await deliver(url, b"{}", **{"ElevenLabs-Signature": ""}),
        await deliver(url, b"{}", **{"ElevenLabs-Signature": old}),
        await deliver(url, b"{}", **{"ElevenLabs-Signature": old, "Content-Type": "text/plain"}),
        await deliver(url, bytes(20_000_000), **{"ElevenLabs-Signature": old}),
    ]

    assert ["SIGNATURE_MALFORMED", *["SIGNATURE_EXPIRED"] * 3] == [
        answer.json()["reason"] for answer in answers
    ]
    assert {(401, "INVALID_SIGNATURE")} == {
        (answer.status_code, answer.json()["error_code"]) for answer in answers
    }
    assert [] == cloner.asked


async def test_wrong_secret(
    gateway: Start, deliver: Deliver, document: Document, sign: Any, spans: Any
) -> None:
    """Refuses what was signed with another secret, and believes nothing that it says."""
    body = document()

    with capture_logs() as logged:
        answer = await deliver(await gateway(), body, **{"ElevenLabs-Signature": sign(body, secret="other")})

    assert (401, "SIGNATURE_MISMATCH", None) == (
        answer.status_code,
        answer.json()["reason"],
        answer.json()["conversation_id"],
    )
    assert "conv_abc123xyz" not in str(spans.one(SERVER).attributes) + str(logged)


async def test_unsigned(gateway: Start, client: httpx.AsyncClient) -> None:
    """Refuses what is not signed at all."""
    answer = await client.post(f"{await gateway()}/webhook", json={})

    assert (401, "SIGNATURE_MISSING") == (answer.status_code, answer.json()["reason"])


async def test_media_type(gateway: Start, deliver: Deliver) -> None:
    """Refuses other media by the header."""
    answer = await deliver(await gateway(), b"a=b", content_type="application/x-www-form-urlencoded")

    assert (415, "UNSUPPORTED_MEDIA_TYPE") == (answer.status_code, answer.json()["reason"])


@pytest.mark.parametrize(
    ("content_type", "coding", "expected"),
    [
        ("application/json", "gzip", (415, "UNSUPPORTED_MEDIA_TYPE")),
        ("multipart/form-data; boundary=b", "br", (415, "UNSUPPORTED_MEDIA_TYPE")),
        ("application/json", "Identity", (400, "MALFORMED_BODY")),
    ],
)
async def test_content_encoding(
    gateway: Start,
    deliver: Deliver,
    document: Document,
    sign: Any,
    content_type: str,
    coding: str,
    expected: tuple[int, str],
) -> None:
    """Says of a body that is encoded why it cannot be read, to whom signed it."""
    url, body = await gateway(), gzip.compress(document())
    headers = {"content_type": content_type, "Content-Encoding": coding}

    answer = await deliver(url, body, **headers)
    stranger = await deliver(url, body, **headers, **{"ElevenLabs-Signature": sign(b"another")})

    problem = answer.json()
    assert (expected, "SIGNATURE_MISMATCH") == (
        (answer.status_code, problem["reason"]), stranger.json()["reason"]
    )  # fmt: skip
    assert ("Content-Encoding" in problem["error_message"]) == (expected[0] == 415)


async def test_readable_whatever_its_content_encoding(
    gateway: Start, deliver: Deliver, document: Document
) -> None:
    """Reads what can be read, also from a sender that writes its character set into the wrong header."""
    answer = await deliver(await gateway(), document(), **{"Content-Encoding": "utf-8"})

    assert 200 == answer.status_code


async def test_field_invalid(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Names the field, the conversation and the trace, in the one shape."""
    answer = await deliver(await gateway(), document(agent_id="a/b"))

    assert 400 == answer.status_code
    assert {
        "status": "error",
        "error_code": "VALIDATION_ERROR",
        "reason": "FIELD_INVALID",
        "error_message": 'agent_id must be 1 to 128 letters, digits, "_" and "-".',
        "conversation_id": "conv_abc123xyz",
        "trace_id": answer.headers["traceresponse"].split("-")[1],
    } == answer.json()


async def test_framework(gateway: Start, client: httpx.AsyncClient) -> None:
    """What the framework refuses has the one shape, too."""
    url = await gateway()
    expected = {
        ("GET", "/webhook"): (405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/webhook"): (405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/webhook"): (400, "MALFORMED_BODY"),
        ("GET", "/"): (404, "NOT_FOUND"),
        ("POST", "/webhook/none"): (404, "NOT_FOUND"),
        ("GET", "/schema/none"): (404, "NOT_FOUND"),
        ("POST", "/health"): (405, "METHOD_NOT_ALLOWED"),
    }

    answers = {asked: await client.request(asked[0], url + asked[1]) for asked in expected}

    assert expected == {
        asked: (answer.status_code, answer.json()["reason"]) for asked, answer in answers.items()
    }
    keys = {"status", "error_code", "reason", "error_message", "conversation_id", "trace_id"}
    assert all(keys == answer.json().keys() for answer in answers.values())
    traces = {answer.json()["trace_id"] for answer in answers.values()}
    assert len(answers) == len([trace for trace in traces if re.fullmatch("[0-9a-f]{32}", str(trace))])


async def test_reason_of_the_cloner(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any
) -> None:
    """Passes the cloner's reason and words on."""
    cloner.reply = lambda context: fails(
        context, grpc.StatusCode.INVALID_ARGUMENT, "SAMPLE_TOO_SHORT", "Voice sample too short: 2.1 s."
    )

    answer = await deliver(await gateway(), document())

    assert (422, "VOICE_CLONING_FAILED", "SAMPLE_TOO_SHORT", "Voice sample too short: 2.1 s.") == (
        answer.status_code,
        answer.json()["error_code"],
        answer.json()["reason"],
        answer.json()["error_message"],
    )
    assert "conv_abc123xyz" == answer.json()["conversation_id"]


async def test_bug_in_the_cloner(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Passes nothing on of a text that nobody wrote for the outside."""

    async def bug(_context: Any) -> PrepareCallResponse:
        raise RuntimeError("secret text")

    cloner.reply = bug

    answer = await deliver(await gateway(), document())

    assert (500, "INTERNAL") == (answer.status_code, answer.json()["reason"])
    assert "secret text" not in answer.text


async def test_no_cloner(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Says at once that there is no cloner; the log says why it is not reached."""
    with capture_logs() as logged:
        async with asyncio.timeout(5):
            answer = await deliver(await gateway(cloner_target="127.0.0.1:1"), document())

    (line,) = [line for line in logged if line["event"] == "call failed without a reason"]
    assert ("UNAVAILABLE", "connection refused") == (line["code"], line["cause"])
    assert (503, "CLONER_UNAVAILABLE") == (answer.status_code, answer.json()["reason"])


async def test_cloner_returns(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Finds a cloner that was away again within a few seconds."""
    port = free_port()
    url = await gateway(cloner_target=f"127.0.0.1:{port}")
    assert 503 == (await deliver(url, document())).status_code
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_CloningServiceServicer_to_server(cloner, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        async with asyncio.timeout(60):
            while (await deliver(url, document())).status_code != 200:
                pass
    finally:
        await server.stop(0)


async def test_delivery_that_is_slow_to_read(
    gateway: Start, client: httpx.AsyncClient, deliver: Deliver, document: Document
) -> None:
    """Others are answered while a delivery is read that takes long to read, and it is answered as well."""
    # What only the loose reader can read, and reads slowest.
    slow = document()[:-1] + b',"more":[' + b'[{"":[0]}],' * 200_000 + b"NaN]}"
    url = await gateway(precall_budget_ms=600_000)
    delivery = asyncio.create_task(deliver(url, slow))
    answered = 0
    while not delivery.done():
        await client.get(f"{url}/schema/openapi.json")
        answered += 1

    assert (200, True) == ((await delivery).status_code, answered > 10)


async def test_budget(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Answers within the budget, whatever the cloner does."""
    never = asyncio.Event()

    async def hang(_context: Any) -> PrepareCallResponse:
        await never.wait()
        return PrepareCallResponse()

    cloner.reply = hang
    url = await gateway(precall_budget_ms=600)
    now = asyncio.get_running_loop().time

    async def delivered() -> tuple[bool, int, str]:
        began = now()
        answer = await deliver(url, document())
        return now() - began < 0.7, answer.status_code, answer.json()["reason"]

    # A busy machine makes an answer late now and then; it is not every time that it does.
    for _ in range(10):
        if (seen := await delivered())[0]:
            break

    assert (True, 504, "PROVIDER_TIMEOUT") == seen


async def test_client_hangs_up(
    gateway: Start, connected: Any, document: Document, sign: Any, cloner: Any, spans: Any
) -> None:
    """Gives the call up when the client does, and shows it in both spans."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(_context: Any) -> PrepareCallResponse:
        begun.set()
        await never.wait()
        return PrepareCallResponse()

    cloner.reply = hang
    body = document()
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"ElevenLabs-Signature: {sign(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with capture_logs() as logged:
        async with connected(await gateway()) as (_, writer):
            writer.write(head.encode() + body)
            await begun.wait()
        async with asyncio.timeout(60):
            await cloner.cancelled.wait()
            (server,) = await spans.wait(SERVER)
            (client,) = await spans.wait(CLIENT)

    assert StatusCode.ERROR is server.status.status_code
    assert "client_disconnected" == server.attributes["error.type"]
    assert "client_gone" == server.attributes["precall.reason"]
    assert "http.response.status_code" not in server.attributes
    assert StatusCode.ERROR is client.status.status_code
    assert "CANCELLED" == client.attributes["rpc.response.status_code"]
    assert ["delivery abandoned"] == [line["event"] for line in logged]


async def test_trace(gateway: Start, deliver: Deliver, document: Document, spans: Any) -> None:
    """Traces a delivery as one server span around one client span, with nothing private in it."""
    stranger = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await deliver(await gateway(), document(b"RIFF" * 64), traceparent=stranger)

    (server,) = await spans.wait(SERVER)
    client = spans.one(CLIENT)
    assert server.context.span_id == client.parent.span_id
    assert "0af7651916cd43dd8448eb211c80319c" not in (
        f"{server.context.trace_id:032x}",
        f"{client.context.trace_id:032x}",
    )
    assert {
        "http.request.method": "POST",
        "client.address": "127.0.0.1",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": "/webhook",
        "http.response.status_code": 200,
        "gen_ai.conversation.id": "conv_abc123xyz",
        "gen_ai.agent.id": "agent_def456uvw",
        "precall.sample.size": 256,
        "precall.outcome": "success",
        "precall.fallback": False,
        "precall.voice.id": "voice_1",
        "precall.call.id": "call_1",
        "precall.voice.reused": True,
        "precall.agent.updated": True,
        "url.path": "/webhook",
        "server.address": "127.0.0.1",
        "user_agent.original": f"python-httpx/{httpx.__version__}",
    } == {
        name: value
        for name, value in server.attributes.items()
        if not name.endswith("_ms") and name != "server.port"
    }


async def test_log(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Writes one line for each delivery, with nothing private in it."""
    with capture_logs() as logged:
        url = await gateway()
        await deliver(url, document())
        await deliver(url, document(agent_id=""))

    assert [
        ("delivery answered", "info", "success", None, 200),
        ("delivery answered", "info", "error", "FIELD_INVALID", 400),
    ] == [
        (line["event"], line["log_level"], line["outcome"], line.get("reason"), line["status"])
        for line in logged
    ]
    for private in (*CALLER.values(), "Ivan_Clone", "UklG"):
        assert private not in str(logged)


async def test_bodies_together(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Refuses a delivery that does not fit beside what is held of the others, and takes it when they are done.

    Of one that is being answered as much is held as was sent to the cloner, and gRPC's copy of it.
    """
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(context: Any) -> PrepareCallResponse:
        begun.set()
        await go_on.wait()
        reply: PrepareCallResponse = await cloner.prepared(context)
        return reply

    cloner.reply = wait
    url = await gateway(voice_clone_max_size_mb=1.0, post_call_held_mb=1.0, body_buffer_mb=2.2)
    large, small = document(bytes(1_000_000)), document(bytes(50_000))
    first = asyncio.create_task(deliver(url, large))
    await begun.wait()
    begun.clear()

    second = asyncio.create_task(deliver(url, small))
    await begun.wait()
    refused = await deliver(url, document(bytes(200_000)))
    go_on.set()
    taken = [await first, await second, await deliver(url, large)]

    assert (429, "RATE_LIMITED", "1") == (
        refused.status_code,
        refused.json()["reason"],
        refused.headers["Retry-After"],
    )
    assert [200, 200, 200] == [answer.status_code for answer in taken]


async def test_description(gateway: Start, client: httpx.AsyncClient) -> None:
    """Describes the webhook's header, both bodies and its answers, at both addresses."""
    url = await gateway()

    described = (await client.get(f"{url}/schema/openapi.json")).json()

    assert described == (await client.get(f"{url}/schema")).json()
    assert {
        "/webhook", "/webhook/conversation-init", "/webhook/post-call", "/health", "/health/live",
        "/health/ready",
    } == described["paths"].keys()  # fmt: skip
    webhook = described["paths"]["/webhook"]["post"]
    assert ["ElevenLabs-Signature"] == [parameter["name"] for parameter in webhook["parameters"]]
    assert {"application/json", "multipart/form-data"} == webhook["requestBody"]["content"].keys()
    assert {
        "200",
        "400",
        "401",
        "403",
        "408",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "502",
        "503",
        "504",
    } == webhook["responses"].keys()
    assert {"PreparedCall", "FallbackCall", "Problem"} <= described["components"]["schemas"].keys()


async def test_description_of_a_delivery(gateway: Start, client: httpx.AsyncClient) -> None:
    """Says of each field what its parser takes, and which must be sent, in both forms."""
    described = (await client.get(f"{await gateway()}/schema/openapi.json")).json()
    content = described["paths"]["/webhook"]["post"]["requestBody"]["content"]
    event = content["application/json"]["schema"]
    form = content["multipart/form-data"]["schema"]

    assert {
        "type", "event_timestamp", "conversation_id", "agent_id", "caller_metadata", "voice_sample",
    } == event["properties"].keys()  # fmt: skip
    assert ["type", "conversation_id", "agent_id", "voice_sample"] == event["required"]
    assert {"name", "date_of_birth", "phone_number", "consent"} == event["properties"]["caller_metadata"][
        "properties"
    ].keys()
    assert 200 == event["properties"]["caller_metadata"]["properties"]["name"]["maxLength"]
    assert "^[A-Za-z0-9_-]{1,128}$" == event["properties"]["agent_id"]["pattern"]
    sample = event["properties"]["voice_sample"]
    assert (["data"], "base64", "string") == (
        sample["required"], sample["properties"]["data"]["contentEncoding"], sample["properties"]["data"]["type"],
    )  # fmt: skip
    assert ["metadata", "voice_sample"] == form["required"]
    assert ["type", "conversation_id", "agent_id"] == form["properties"]["metadata"]["required"]
    assert "voice_sample" not in form["properties"]["metadata"]["properties"]


async def test_one_connection(
    gateway: Start, document: Document, sign: Any, connected: Any, spans: Any
) -> None:
    """Of a delivery nothing is told on the request that a stranger sends behind it on its connection."""
    url, body = await gateway(), document()

    def request(content: bytes, *headers: str) -> bytes:
        head = ("POST /webhook HTTP/1.1", "Host: t", f"Content-Length: {len(content)}", *headers)
        return "\r\n".join((*head, "Content-Type: application/json", "", "")).encode() + content

    signed = request(body, f"ElevenLabs-Signature: {sign(body)}")
    async with connected(url) as (reader, writer):
        writer.write(signed + request(b"{}", "Connection: close"))
        await reader.read()

    known, stranger = await spans.wait("POST /webhook", 2)
    assert "conv_abc123xyz" == known.attributes["gen_ai.conversation.id"]
    assert "SIGNATURE_MISSING" == stranger.attributes["precall.reason"]
    assert [] == [name for name in stranger.attributes if name.startswith("gen_ai.")]
