from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from structlog.testing import capture_logs

from environment import Secret

Start = Callable[..., Awaitable[str]]
TOKEN = "t0ken-of-the-cloner"
EVENT = b'{"type":"post_call_transcription","data":{"conversation_id":"conv_y"}}'


@pytest.fixture
def both(
    client: httpx.AsyncClient, deliver: Any, document: Callable[..., bytes], sign: Any
) -> Callable[[str], Awaitable[list[httpx.Response]]]:
    """The answers to one delivery of each kind."""

    async def send(url: str) -> list[httpx.Response]:
        headers = {"ElevenLabs-Signature": sign(EVENT)}
        return [
            await deliver(url, document()),
            await client.post(f"{url}/webhook/post-call", content=EVENT, headers=headers),
        ]

    return send


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((), [None, None]),
        ((Secret(TOKEN),), [f"Bearer {TOKEN}"] * 2),
        ((Secret(TOKEN), Secret("t0ken-of-the-past")), [f"Bearer {TOKEN}"] * 2),
    ],
)
async def test_sent(gateway: Start, both: Any, cloner: Any, spans: Any, tokens: Any, expected: Any) -> None:
    """Every call to the cloner carries the token, the first of several; nothing else does."""
    with capture_logs() as logged:
        answers = await both(await gateway(cloner_token=tokens))

    assert [200, 200] == [answer.status_code for answer in answers]
    assert expected == cloner.credentials
    told = str(logged) + "".join(span.to_json() for span in spans.finished())
    assert TOKEN not in told + "".join(answer.text + str(answer.headers) for answer in answers)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_refused(gateway: Start, both: Any, cloner: Any, code: grpc.StatusCode) -> None:
    """A token that the cloner does not take is no fault of the sender's, and the log says where to look."""

    async def refuse(context: Any) -> Any:
        await context.abort(code, "secret text")

    cloner.reply = cloner.completed = refuse
    with capture_logs() as logged:
        answers = await both(await gateway(cloner_token=(Secret(TOKEN),)))

    assert [(503, "PROVIDER_ERROR", "CLONER_UNAVAILABLE")] * 2 == [
        (answer.status_code, answer.json()["error_code"], answer.json()["reason"]) for answer in answers
    ]
    errors = [line["event"] for line in logged if line["log_level"] == "error"]
    assert ["cloner refuses us, check CLONER_TOKEN"] * 2 == errors
    assert TOKEN not in str(logged)
    assert "secret text" not in str(logged) + "".join(answer.text for answer in answers)
