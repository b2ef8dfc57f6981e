"""Asks how an agent speaks, for a delivery that is refused here before the cloner hears of it.

The agent may have another caller's voice by then, which another gateway was told. OpenCall is asked, which
makes nothing and changes no agent. It notes that a call is about to start, as it is, so that the agent is
given nobody's voice meanwhile. What is asked is bounded: one question about an agent at a time, and one a
second, however many deliveries are refused.
"""

import asyncio
import time
from collections.abc import Callable

from cachetools import TTLCache
from msgspec import Struct
from precall_client import Precall, PrecallError

from gateway.conversation.overrides import AGENTS, Overrides, remember

__all__ = ["AgentQuestions"]

# How long an answer counts, and how long the cloner may take for one.
ANSWER_SECONDS = 1.0


class Question(Struct, frozen=True):
    """A question that was asked for one conversation, and the id of its call; "" if there was no answer."""

    conversation_id: str
    call_id: asyncio.Task[str]


class AgentQuestions:
    """Asks the cloner how agents speak, and has it remembered in `overrides`. `now` tells the seconds."""

    def __init__(
        self, cloner: Precall, overrides: Overrides, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._cloner = cloner
        self._overrides = overrides
        self._asked: TTLCache[str, Question] = TTLCache(AGENTS, ANSWER_SECONDS, now)

    async def ask(self, agent_id: str, conversation_id: str, *, seconds: float) -> str | None:
        """Waits for so long until it is known how the agent speaks, if nobody asked a moment ago.

        Returns the id of the call if the cloner knows it now.
        """
        question = self._asked.get(agent_id)
        if question is None:
            question = Question(conversation_id, asyncio.create_task(self._ask(agent_id, conversation_id)))
            self._asked[agent_id] = question
        await asyncio.wait({question.call_id}, timeout=max(0.0, seconds))
        if not question.call_id.done() or question.conversation_id != conversation_id:
            return None
        return question.call_id.result() or None

    async def _ask(self, agent_id: str, conversation_id: str) -> str:
        try:
            # Not as a conversation: ElevenLabs need not use the id under which a delivery announces a call.
            response = await self._cloner.open_call(
                agent_id=agent_id, call_sid=conversation_id, seconds=ANSWER_SECONDS
            )
        except PrecallError:
            return ""
        remember(self._overrides, agent_id, response)
        return response.call_id
