import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from elevenlabs import types
from opentelemetry.trace import StatusCode
from precall.v1.cloning_pb2 import OpenCallRequest, OpenCallResponse, Speech
from pydantic import BaseModel

from environment import Secret
from tests.kit.patterns import UNKNOWN_CALL

Start = Callable[..., Awaitable[str]]

TOKEN = "token-of-the-initiation-webhook"
PATH = "/webhook/conversation-init"
REQUEST = {
    "caller_id": "+31612345678",
    "called_number": "+31201234567",
    "agent_id": "agent_def456uvw",
    "call_sid": "CA0123456789abcdef0123456789abcdef",
    "conversation_id": "conv_abc123xyz",
}
VARIABLES = {"customer_name": "{name|friend}", "number": "{phone_number}", "visits": 3, "voice": "{voice_id}"}
GREETED = {
    "type": "conversation_initiation_client_data",
    "dynamic_variables": {
        "customer_name": "Ivan", "number": "+31612345678", "visits": 3, "voice": "voice_1",
        "precall_call_id": "call_1",
    },
    "conversation_config_override": {
        "agent": {"first_message": "Hallo Ivan, fijn dat je belt!"},
        "tts": {"voice_id": "voice_1"},
    },
}  # fmt: skip
NOBODY = {
    "type": "conversation_initiation_client_data",
    "dynamic_variables": {
        "customer_name": "friend", "number": "+31612345678", "visits": 3, "voice": "unknown",
        "precall_call_id": UNKNOWN_CALL,
    },
}  # fmt: skip


@pytest.fixture
def start(gateway: Start) -> Start:
    """Starts a gateway that knows the token."""

    async def run(**fields: Any) -> str:
        whole = {"conversation_init_token": (Secret(TOKEN),), "dynamic_variables": VARIABLES} | fields
        return await gateway(**whole)

    return run


@pytest.fixture
def ask(client: httpx.AsyncClient) -> Callable[..., Awaitable[httpx.Response]]:
    """Asks as ElevenLabs does."""

    async def send(url: str, body: Any = REQUEST, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"} | headers
        return await client.post(f"{url}{PATH}", content=content, headers=given)

    return send


def undocumented(model: BaseModel) -> list[str]:
    """What a model of the vendor's holds that it does not name, at any depth."""
    found = list(model.model_extra or {})
    for value in vars(model).values():
        found += undocumented(value) if isinstance(value, BaseModel) else []
    return found


async def test_known_caller(start: Start, ask: Any, cloner: Any) -> None:
    """Greets the caller who is known, in their own voice."""
    answer = await ask(await start())

    assert (200, GREETED) == (answer.status_code, answer.json())
    assert [
        OpenCallRequest(
            agent_id="agent_def456uvw", conversation_id="conv_abc123xyz", phone_number="+31612345678"
        )
    ] == cloner.opened


async def test_nobody_known(start: Start, ask: Any, cloner: Any) -> None:
    """Gives every variable and nobody's voice where no caller is known."""

    async def unknown(_context: Any) -> OpenCallResponse:
        return OpenCallResponse(call_id="call_0123456789abcdef01234567")

    cloner.opening = unknown
    answer = await ask(await start())

    assert (200, NOBODY) == (answer.status_code, answer.json())


async def test_agent_with_a_voice_of_somebody(start: Start, ask: Any, cloner: Any) -> None:
    """Gives the agent's own voice where it has another caller's, also when the cloner is gone after that."""

    async def unknown(_context: Any) -> OpenCallResponse:
        before = Speech(voice_id="voice_0", first_message="Hello!")
        return OpenCallResponse(call_id="call_0123456789abcdef01234567", agent_before=before)

    async def gone(context: Any) -> OpenCallResponse:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    url = await start()
    cloner.opening = unknown
    first = await ask(url)
    cloner.opening = gone
    second = await ask(url)

    own = {"agent": {"first_message": "Hello!"}, "tts": {"voice_id": "voice_0"}}
    assert [NOBODY | {"conversation_config_override": own}] * 2 == [first.json(), second.json()]


@pytest.mark.parametrize(
    ("refused", "leaves", "override", "voice"),
    [
        (["tts.voice_id"], None, {"agent": {"first_message": "Hallo Ivan, fijn dat je belt!"}}, "unknown"),
        (["agent.first_message"], None, {"tts": {"voice_id": "voice_1"}}, "voice_1"),
        (["tts.voice_id", "agent.first_message"], None, None, "unknown"),
        ([], ("tts.voice_id",), {"tts": {"voice_id": "voice_1"}}, "voice_1"),
        ([], (), None, "unknown"),
    ],
    ids=str,
)
async def test_leaves(
    start: Start, ask: Any, cloner: Any, refused: list[str], leaves: Any, override: Any, voice: str
) -> None:
    """Overrides what operator and agent both allow, and names no voice that will not be heard."""

    async def known(context: Any) -> OpenCallResponse:
        response = await cloner.known(context)
        response.refused_leaves.extend(refused)
        response.settings_seen = True
        return response

    cloner.opening = known
    answer = await ask(await start(**({} if leaves is None else {"override_leaves": leaves})))

    body = answer.json()
    assert (override, voice) == (
        body.get("conversation_config_override"), body["dynamic_variables"]["voice"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "updated", "greeting"),
    [
        (True, False, "Hello!"),
        (False, False, "Hallo Ivan, fijn dat je belt!"),
        (True, True, "Hallo Ivan, fijn dat je belt!"),
    ],
    ids=["another's voice", "its own voice", "the caller's voice"],
)
async def test_greeting_without_the_voice(
    start: Start, ask: Any, cloner: Any, given: bool, updated: bool, greeting: str
) -> None:
    """Where no override carries the voice, nobody is greeted by name in the voice of another caller."""

    async def known(context: Any) -> OpenCallResponse:
        response = await cloner.known(context)
        response.agent_updated = updated
        if given:
            response.agent_before.CopyFrom(Speech(voice_id="voice_0", first_message="Hello!"))
        return response

    cloner.opening = known
    answer = await ask(await start(override_leaves=("agent.first_message",)))

    assert {"agent": {"first_message": greeting}} == answer.json()["conversation_config_override"]


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST,
        REQUEST | {"call_id": "sip-1", "sip_headers": {"X-Desk": "3"}, "call_sid": ""},
        {name: value for name, value in REQUEST.items() if name != "conversation_id"},
        REQUEST | {"caller_id": "wa-user", "called_number": "wa-line", "call_sid": ""},
    ],
    ids=["twilio", "sip", "older", "whatsapp"],
)
async def test_vendors_types(start: Start, ask: Any, request_: dict[str, Any]) -> None:
    """Each shape is answered with what the vendor's own types name, and nothing else."""
    answer = await ask(await start(), request_)

    data = answer.json()
    assert "conversation_initiation_client_data" == data.pop("type")
    model = types.ConversationInitiationClientDataRequestInput.model_validate(data)
    assert [] == undocumented(model)
    assert "voice_1" == model.conversation_config_override.tts.voice_id
    assert "Hallo Ivan, fijn dat je belt!" == model.conversation_config_override.agent.first_message
    assert VARIABLES.keys() | {"precall_call_id"} == model.dynamic_variables.keys()


async def test_without_conversation(start: Start, ask: Any, cloner: Any) -> None:
    """A call without a conversation is known by its `call_sid`, or by a name of our own."""
    url = await start()
    older = {name: value for name, value in REQUEST.items() if name != "conversation_id"}
    answers = [
        await ask(url, body) for body in (older, older, older | {"call_sid": ""}, older | {"call_sid": ""})
    ]

    assert [200] * 4 == [answer.status_code for answer in answers]
    asked = [(request.conversation_id, request.call_sid) for request in cloner.opened]
    assert [("", REQUEST["call_sid"])] * 2 == asked[:2]
    assert all(call_sid and not conversation for conversation, call_sid in asked[2:])
    assert 3 == len(set(asked))


async def test_without_anything_but_a_sip_call(start: Start, ask: Any, cloner: Any) -> None:
    """What a SIP trunk calls a call is told as just that."""
    older = REQUEST | {"conversation_id": "", "call_sid": "", "call_id": "conv_ivan"}
    await ask(await start(), older)

    assert [("", "", "conv_ivan")] == [
        (request.conversation_id, request.call_sid, request.sip_call_id) for request in cloner.opened
    ]


async def test_outbound(start: Start, ask: Any, cloner: Any) -> None:
    """On a call that we make, the person is the one who is called."""
    url = await start(own_numbers=("+31 20 1234567",))
    swapped = REQUEST | {"caller_id": REQUEST["called_number"], "called_number": REQUEST["caller_id"]}
    await ask(url, swapped)
    await ask(url, REQUEST)

    assert ["+31612345678"] * 2 == [request.phone_number for request in cloner.opened]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"\xff", b"{}", b'{"agent_id": null}', b"x" * 300_000,
        json.dumps({"agent_id": 5, "caller_id": []}).encode(),
    ],
    ids=["empty", "cut", "array", "bytes", "nothing", "null", "large", "types"],
)  # fmt: skip
async def test_nothing_to_go_by(start: Start, ask: Any, cloner: Any, body: bytes) -> None:
    """Whatever is sent by who is known, the conversation can start."""
    answer = await ask(await start(), body)

    data = answer.json()
    assert 200 == answer.status_code
    assert {"customer_name": "friend", "number": "unknown", "visits": 3, "voice": "unknown"}.items() <= data[
        "dynamic_variables"
    ].items()
    assert {"type", "dynamic_variables"} == data.keys()
    assert [] == cloner.opened


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, "CLONER_UNAVAILABLE"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
        (grpc.StatusCode.UNAUTHENTICATED, "CLONER_UNAVAILABLE"),
    ],
)
async def test_cloner_fails(
    start: Start, ask: Any, cloner: Any, spans: Any, code: grpc.StatusCode, reason: str
) -> None:
    """Whatever the cloner answers, the conversation can start; the trace tells what it was."""

    async def fail(context: Any) -> OpenCallResponse:
        await context.abort(code, "told to")

    cloner.opening = fail
    answer = await ask(await start())

    assert (200, NOBODY) == (answer.status_code, answer.json())
    (server,) = await spans.wait(f"POST {PATH}")
    assert (reason, StatusCode.UNSET) == (server.attributes["precall.reason"], server.status.status_code)
    assert StatusCode.ERROR is spans.one("precall.v1.CloningService/OpenCall").status.status_code


async def test_cloner_is_not_there(start: Start, ask: Any) -> None:
    """Nobody at the cloner's address is no reason not to answer."""
    answer = await ask(await start(cloner_target="127.0.0.1:1"))

    assert (200, NOBODY) == (answer.status_code, answer.json())


async def test_cloner_hangs(start: Start, ask: Any, cloner: Any) -> None:
    """A cloner that says nothing costs the budget and no more."""

    async def hang(_context: Any) -> OpenCallResponse:
        await asyncio.Event().wait()
        raise AssertionError

    cloner.opening = hang
    url = await start(conversation_init_budget_ms=600)
    while not cloner.remaining:  # on a busy machine, the budget may be over before the cloner is asked
        answer = await ask(url)

    assert (200, NOBODY) == (answer.status_code, answer.json())
    assert 0.0 < cloner.remaining[0] <= 0.5


async def test_body_that_does_not_come(start: Start, connected: Any) -> None:
    """A body that stops in the middle is not waited for longer than the budget."""
    url = await start(conversation_init_budget_ms=600)
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    async with connected(url) as (reader, writer):
        began = asyncio.get_running_loop().time()
        writer.write(head.encode() + b'{"agent_id":')
        status = await reader.readline()
        took = asyncio.get_running_loop().time() - began

    assert b"HTTP/1.1 200 OK\r\n" == status
    assert took < 4.5, "whatever the budget, a body that stalls is ended after five seconds"


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        (None, TOKEN),
        ("", TOKEN),
        (TOKEN, TOKEN),
        ("Bearer", TOKEN),
        (f"Basic {TOKEN}", TOKEN),
        (f"Bearer {TOKEN}x", TOKEN),
        (f"Bearer {TOKEN[:-1]}", TOKEN),
        (f"Bearer {TOKEN.upper()}", TOKEN),
        ("Bearer t\xf6ken", TOKEN),
        (f"Bearer {TOKEN}", None),
        ("Bearer None", None),
    ],
)
async def test_stranger(
    start: Start, client: httpx.AsyncClient, cloner: Any, authorization: str | None, token: str | None
) -> None:
    """Who shows no token of ours is refused, and nothing is done."""
    url = await start(conversation_init_token=(Secret(token),) if token else ())
    headers = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
    answer = await client.post(f"{url}{PATH}", json=REQUEST, headers=headers)

    assert (401, "UNAUTHENTICATED", "INVALID_SIGNATURE", "Bearer") == (
        answer.status_code,
        answer.json()["reason"],
        answer.json()["error_code"],
        answer.headers["WWW-Authenticate"],
    )
    assert [] == cloner.opened


async def test_token_twice(start: Start, client: httpx.AsyncClient) -> None:
    """Of two headers nobody knows which counts."""
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    answer = await client.post(f"{await start()}{PATH}", json=REQUEST, headers=headers)

    assert 401 == answer.status_code


async def test_token_that_takes_the_place_of_another(start: Start, ask: Any) -> None:
    """While both are set, either lets the same in."""
    url = await start(conversation_init_token=(Secret("another-token-of-ours"), Secret(TOKEN)))
    answers = [
        await ask(url, Authorization=f"Bearer {token}")
        for token in (TOKEN, "another-token-of-ours", "neither")
    ]

    assert [200, 200, 401] == [answer.status_code for answer in answers]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_scheme(start: Start, ask: Any, scheme: str) -> None:
    """The name of the scheme may be written in any case, as HTTP has it."""
    answer = await ask(await start(), Authorization=f"{scheme} {TOKEN}")

    assert GREETED == answer.json()


@pytest.mark.parametrize("token", [(), (Secret(TOKEN),)])
async def test_signed(start: Start, client: httpx.AsyncClient, sign: Any, token: tuple[Secret, ...]) -> None:
    """A valid signature does instead of the token."""
    url = await start(conversation_init_token=token)
    body = json.dumps(REQUEST).encode()
    answer = await client.post(f"{url}{PATH}", content=body, headers={"ElevenLabs-Signature": sign(body)})

    assert (200, GREETED) == (answer.status_code, answer.json())


async def test_signed_wrongly(start: Start, client: httpx.AsyncClient, sign: Any, cloner: Any) -> None:
    """A signature that does not fit says so, and nothing is done."""
    body = json.dumps(REQUEST).encode()
    headers = {"ElevenLabs-Signature": sign(b"another body")}
    answer = await client.post(f"{await start()}{PATH}", content=body, headers=headers)

    assert (401, "SIGNATURE_MISMATCH") == (answer.status_code, answer.json()["reason"])
    assert [] == cloner.opened


async def test_many_bodies(start: Start, ask: Any) -> None:
    """Where no body fits any more, the conversation can start."""
    url = await start(voice_clone_max_size_mb=0.1, post_call_held_mb=0.1, body_buffer_mb=0.27)
    large = REQUEST | {"padding": "x" * 200_000}
    answers = await asyncio.gather(*(ask(url, large) for _ in range(20)))

    assert {200} == {answer.status_code for answer in answers}
