import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from precall.v1.cloning_pb2 import OpenCallResponse, Speech
from precall_client import Precall, connect

from environment import Rate
from gateway.conversation.overrides import Overrides
from gateway.conversation.overrides import Speech as Spoken
from gateway.precall.questions import ANSWER_SECONDS, AgentQuestions
from tests.kit.patterns import UNKNOWN_CALL

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Awaitable[httpx.Response]]
Document = Callable[..., bytes]

AGENT = "agent_def456uvw"
ONE = Rate("1/day")
OWN = {"agent": {"first_message": "Hello!"}, "tts": {"voice_id": "voice_0"}}


async def with_a_callers_voice(_context: Any) -> OpenCallResponse:
    """What a cloner says of a call at an agent that speaks with another caller's voice."""
    before = Speech(voice_id="voice_0", first_message="Hello!")
    return OpenCallResponse(call_id="call_2", agent_before=before, settings_seen=True)


async def failing(context: Any) -> Any:
    """A cloner that has no answer."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def started(answer: httpx.Response) -> dict[str, Any]:
    """What the answer says for the start of the conversation."""
    data: dict[str, Any] = answer.json()["conversation_initiation_client_data"]
    return data


def opened(cloner: Any) -> list[tuple[str, str]]:
    """The agents and conversations that were asked about."""
    return [(request.agent_id, request.conversation_id) for request in cloner.opened]


def ended(cloner: Any) -> list[tuple[str, str]]:
    """The agents and conversations whose end was told."""
    return [(request.agent_id, request.conversation_id) for request in cloner.ended]


@pytest.fixture
async def asker(cloner_target: str) -> AsyncIterator[Precall]:
    """A client of the cloner."""
    async with connect(cloner_target) as client:
        yield client


async def test_over_the_limit(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """A call that is over its agent's limit is not heard in the voice that another gateway gave the agent."""
    url = await gateway(rate_limit_agent=ONE, precall_fallback="default_voice")
    cloner.opening = with_a_callers_voice
    cloner.reply = failing
    await deliver(url, document())

    answer = await deliver(url, document(conversation_id="conv_2"))

    assert ("fallback", "RATE_LIMITED") == (answer.json()["status"], answer.json()["reason"])
    assert OWN == started(answer).get("conversation_config_override")
    assert UNKNOWN_CALL == started(answer)["dynamic_variables"]["precall_call_id"]
    assert [AGENT] == [request.agent_id for request in cloner.opened]


async def test_error(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """Where calls do not go on, nobody is asked about one that is over the limit."""
    url = await gateway(rate_limit_agent=ONE)
    await deliver(url, document())

    answer = await deliver(url, document())

    assert (429, []) == (answer.status_code, cloner.opened)


async def test_cloner_was_asked(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """A cloner that failed is not asked again."""
    url = await gateway(precall_fallback="default_voice")
    cloner.reply = failing

    answer = await deliver(url, document())

    assert ("CLONER_UNAVAILABLE", []) == (answer.json()["reason"], cloner.opened)


@pytest.mark.parametrize("says", ["nothing", "failure"])
async def test_no_answer(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any, says: str
) -> None:
    """A cloner that hangs or fails keeps no call from going on."""

    async def hang(_context: Any) -> OpenCallResponse:
        await asyncio.Event().wait()
        raise AssertionError

    url = await gateway(rate_limit_agent=ONE, precall_fallback="default_voice")
    cloner.opening = hang if says == "nothing" else failing
    await deliver(url, document())

    answer = await deliver(url, document())

    assert ("fallback", "RATE_LIMITED") == (answer.json()["status"], answer.json()["reason"])
    assert UNKNOWN_CALL == started(answer)["dynamic_variables"]["precall_call_id"]
    assert set(ended(cloner)) == set(opened(cloner))  # gRPC itself repeats what a cloner left unanswered


async def test_own_conversation(asker: Precall, cloner: Any) -> None:
    """The conversation of the questions is over before each, one for them all, and nobody's but this process's."""
    known_then: list[list[tuple[str, str]]] = []

    async def opening(_context: Any) -> OpenCallResponse:
        known_then.append(ended(cloner))
        return OpenCallResponse()

    time = 0.0
    questions = AgentQuestions(asker, Overrides(()), lambda: time)
    cloner.opening = opening
    await questions.ask(AGENT, seconds=20)
    time = 2 * ANSWER_SECONDS
    await questions.ask(AGENT, seconds=20)
    await AgentQuestions(asker, Overrides(())).ask(AGENT, seconds=20)

    first, second, of_another = opened(cloner)
    assert (True, True) == (first == second, first != of_another)
    assert [[first], [first] * 2, [first, first, of_another]] == known_then


async def test_end_that_was_not_told(asker: Precall, cloner: Any) -> None:
    """No call is opened whose end the cloner may not know."""
    cloner.completed = failing

    await AgentQuestions(asker, Overrides(())).ask(AGENT, seconds=20)

    assert (1, []) == (len(set(ended(cloner))), opened(cloner))


async def test_slow(asker: Precall, cloner: Any) -> None:
    """Nobody asks about an agent while a question about it is under way, however long that takes."""
    asked, answers = asyncio.Event(), asyncio.Event()

    async def slow(_context: Any) -> OpenCallResponse:
        asked.set()
        await answers.wait()
        return OpenCallResponse()

    time = 0.0
    questions = AgentQuestions(asker, Overrides(()), lambda: time)
    cloner.opening = slow
    first = asyncio.create_task(questions.ask(AGENT, seconds=20))
    await asked.wait()
    time = 2 * ANSWER_SECONDS
    second = asyncio.create_task(questions.ask(AGENT, seconds=20))
    await asyncio.sleep(0)
    answers.set()
    await asyncio.gather(first, second)

    assert 1 == len(cloner.opened)


async def test_bounded(asker: Precall, cloner: Any) -> None:
    """However many ask about an agent, there is one question in a second."""
    time = 0.0
    overrides = Overrides(("tts.voice_id",))
    questions = AgentQuestions(asker, overrides, lambda: time)
    cloner.opening = with_a_callers_voice

    await asyncio.gather(*(questions.ask(AGENT, seconds=20) for _ in range(6)))
    await questions.ask(AGENT, seconds=20)
    before, within = overrides.speech_before(AGENT), len(cloner.opened)
    time = 2 * ANSWER_SECONDS
    await questions.ask(AGENT, seconds=20)

    assert Spoken(voice_id="voice_0", first_message="Hello!") == before
    assert (1, 2) == (within, len(cloner.opened))
