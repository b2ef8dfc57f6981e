import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.trace import StatusCode
from precall.v1.cloning_pb2 import FallbackInfo, PrepareCallResponse, Speech
from structlog.testing import capture_logs

from tests.kit.patterns import UNKNOWN_CALL

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Coroutine[Any, Any, httpx.Response]]
Document = Callable[..., bytes]

OWN = {"agent": {"first_message": "Hello!"}, "tts": {"voice_id": "voice_0"}}
BEFORE = Speech(voice_id="voice_0", first_message="Hello!")


@pytest.fixture
def start(gateway: Start) -> Start:
    """Starts a gateway that lets calls go on without the caller's voice."""

    async def run(**fields: Any) -> str:
        variables = {"who": "{name}", "voice": "{voice_id|none}"}
        return await gateway(**{"precall_fallback": "default_voice", "dynamic_variables": variables} | fields)

    return run


def failing(code: grpc.StatusCode, reason: str, info: FallbackInfo | None = None) -> Any:
    """A cloner that fails so, and tells this for the fallback."""

    async def fail(context: Any) -> PrepareCallResponse:
        status = status_pb2.Status(code=code.value[0], message="told to")
        for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="precall"), info):
            if detail is not None:
                packed = any_pb2.Any()
                packed.Pack(detail)
                status.details.append(packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.set_code(code)
        return PrepareCallResponse()

    return fail


def expected(reason: str, *, call_id: object = UNKNOWN_CALL) -> dict[str, Any]:
    """The JSON of the fallback of Ivan's call, without the time that it took."""
    return {
        "status": "fallback",
        "reason": reason,
        "conversation_id": "conv_abc123xyz",
        "voice_id": None,
        "voice_name": None,
        "agent_updated": False,
        "caller_info": {"Name": "Ivan", "DateOfBirth": "11.12.2007"},
        "voice_reused": False,
        "conversation_initiation_client_data": {
            "type": "conversation_initiation_client_data",
            "dynamic_variables": {"who": "Ivan", "voice": "none", "precall_call_id": call_id},
        },
    }


def timed(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer, without the time that it took."""
    body = answer.json()
    assert isinstance(body.pop("processing_time_ms"), int)
    return body


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "SAMPLE_TOO_SHORT"),
        (grpc.StatusCode.FAILED_PRECONDITION, "SAMPLE_REJECTED"),
        (grpc.StatusCode.FAILED_PRECONDITION, "CONSENT_MISSING"),
        (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        (grpc.StatusCode.FAILED_PRECONDITION, "VOICE_SLOTS_EXHAUSTED"),
        (grpc.StatusCode.UNAVAILABLE, "PROVIDER_BUSY"),
        (grpc.StatusCode.UNAVAILABLE, "REGISTRY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_falls_back(
    start: Start,
    deliver: Deliver,
    document: Document,
    cloner: Any,
    spans: Any,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    """A call whose voice cannot be had goes on with the agent's own; the trace tells why."""
    cloner.reply = failing(code, reason)
    answer = await deliver(await start(), document())

    assert (200, expected(reason)) == (answer.status_code, timed(answer))
    (server,) = await spans.wait("POST /webhook")
    assert (reason, StatusCode.UNSET) == (server.attributes["precall.reason"], server.status.status_code)
    assert StatusCode.ERROR is spans.one("precall.v1.CloningService/PrepareCall").status.status_code


async def test_error_by_default(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Without the setting, a failure is answered as one."""
    cloner.reply = failing(grpc.StatusCode.UNAVAILABLE, "PROVIDER_BUSY")
    answer = await deliver(await gateway(), document())

    assert (503, "error") == (answer.status_code, answer.json()["status"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"agent_id": ""}, 400),
        ({"type": "post_call"}, 400),
        ({"voice_sample": {"data": "%"}}, 400),
    ],
)
async def test_senders_fault(
    start: Start, deliver: Deliver, document: Document, changes: dict[str, Any], status: int
) -> None:
    """What the sender has to mend is a failure all the same."""
    answer = await deliver(await start(), document(**changes))

    assert (status, "error") == (answer.status_code, answer.json()["status"])


async def test_stranger(start: Start, client: httpx.AsyncClient, document: Document, cloner: Any) -> None:
    """Who does not sign gets no fallback."""
    answer = await client.post(f"{await start()}/webhook", content=document())

    assert (401, []) == (answer.status_code, cloner.asked)


async def test_cloner_is_not_there(start: Start, deliver: Deliver, document: Document) -> None:
    """Nobody at the cloner's address is no reason for the call not to start."""
    answer = await deliver(await start(cloner_target="127.0.0.1:1"), document())

    assert (200, expected("CLONER_UNAVAILABLE")) == (answer.status_code, timed(answer))


async def test_cloner_hangs(start: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """A cloner that says nothing costs the budget and no more."""

    async def hang(_context: Any) -> PrepareCallResponse:
        await asyncio.Event().wait()
        raise AssertionError

    cloner.reply = hang
    answer = await deliver(await start(precall_budget_ms=2_000), document())

    assert (200, expected("PROVIDER_TIMEOUT")) == (answer.status_code, timed(answer))
    assert answer.elapsed.total_seconds() < 10.0, "unless told otherwise, the budget is fifteen seconds"


async def test_agent_with_a_voice_of_somebody(
    start: Start, deliver: Deliver, document: Document, cloner: Any
) -> None:
    """Where the agent has another caller's voice, the fallback overrides it with what it had before."""
    url = await start()
    cloner.reply = failing(grpc.StatusCode.UNAVAILABLE, "PROVIDER_BUSY", FallbackInfo(agent_before=BEFORE))
    told = await deliver(url, document())
    cloner.reply = failing(
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_BUSY",
        FallbackInfo(agent_before=BEFORE, refused_leaves=["tts.voice_id"], settings_seen=True),
    )
    refused = await deliver(url, document())
    cloner.reply = failing(grpc.StatusCode.UNAVAILABLE, "PROVIDER_BUSY", FallbackInfo(settings_seen=True))
    itself = await deliver(url, document())

    assert [OWN, {"agent": OWN["agent"]}, None] == [
        answer.json()["conversation_initiation_client_data"].get("conversation_config_override")
        for answer in (told, refused, itself)
    ]


async def test_agent_is_remembered(start: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """What an answer told of the agent holds for the next one that has to do without the cloner."""
    url = await start()

    async def prepared(context: Any) -> PrepareCallResponse:
        response = await cloner.prepared(context)
        response.agent_before.CopyFrom(BEFORE)
        return response

    async def gone(context: Any) -> PrepareCallResponse:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    cloner.reply = prepared
    await deliver(url, document())
    cloner.reply = gone
    answer = await deliver(url, document())

    assert OWN == answer.json()["conversation_initiation_client_data"]["conversation_config_override"]


async def test_agent_of_a_mismatch_is_remembered(
    start: Start, deliver: Deliver, document: Document, cloner: Any
) -> None:
    """What was told of the agent holds for the next answer also where the delivery itself was refused."""
    url = await start()
    info = FallbackInfo(agent_before=BEFORE)
    cloner.reply = failing(grpc.StatusCode.ALREADY_EXISTS, "CONVERSATION_MISMATCH", info)
    mismatch = await deliver(url, document())
    cloner.reply = failing(grpc.StatusCode.UNAVAILABLE, "CLONER_UNAVAILABLE")
    answer = await deliver(url, document())

    data = answer.json()["conversation_initiation_client_data"]
    assert (409, OWN) == (mismatch.status_code, data.get("conversation_config_override"))


@pytest.mark.parametrize("mode", ["error", "default_voice"])
@pytest.mark.parametrize(
    ("refused", "leaves"),
    [(["tts.voice_id"], None), ([], ("agent.first_message",))],
    ids=["agent", "operator"],
)
async def test_voice_that_nothing_carries(
    start: Start,
    deliver: Deliver,
    document: Document,
    cloner: Any,
    mode: str,
    refused: list[str],
    leaves: Any,
) -> None:
    """Where neither agent nor override may carry the voice, the answer names the call, and no voice."""

    async def prepared(context: Any) -> PrepareCallResponse:
        response = await cloner.prepared(context)
        response.agent_updated = False
        response.refused_leaves.extend(refused)
        response.settings_seen = True
        return response

    cloner.reply = prepared
    own = {} if leaves is None else {"override_leaves": leaves}
    with capture_logs() as lines:
        answer = await deliver(await start(precall_fallback=mode, **own), document())

    assert (200, expected("VOICE_NOT_ACTIVATED", call_id="call_1")) == (answer.status_code, timed(answer))
    said = [line["leaf"] for line in lines if line["event"] == "override left out"]
    assert refused == said
    assert ["VOICE_NOT_ACTIVATED"] == [
        line["reason"] for line in lines if line["event"] == "delivery answered"
    ]


async def test_voice_that_the_agent_carries(
    start: Start, deliver: Deliver, document: Document, cloner: Any
) -> None:
    """An agent that was updated carries the voice without an override."""

    async def prepared(context: Any) -> PrepareCallResponse:
        response = await cloner.prepared(context)
        response.refused_leaves.extend(["tts.voice_id", "agent.first_message"])
        response.settings_seen = True
        return response

    cloner.reply = prepared
    answer = await deliver(await start(), document())

    assert ("success", "voice_1") == (answer.json()["status"], answer.json()["voice_id"])
    assert "conversation_config_override" not in answer.json()["conversation_initiation_client_data"]


async def test_consent(start: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """The reference of the consent reaches the cloner, and no answer."""
    caller = {"name": "Ivan", "date_of_birth": "11.12.2007", "consent": " form-17 "}
    answer = await deliver(await start(), document(caller_metadata=caller))

    assert ["form-17"] == [request.consent for request in cloner.asked]
    assert "form-17" not in answer.text
