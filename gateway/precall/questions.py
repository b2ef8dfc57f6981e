"""Asks how an agent speaks, for a delivery that is refused here before the cloner hears of it.

Another gateway may have learnt meanwhile that the agent has a caller's voice. So OpenCall, which clones
nothing and changes no agent, is called for a conversation that only this process uses. CompleteCall goes
first, so that this conversation never counts as a call in progress, which would keep the agent from being
given a voice. What is asked is bounded: one question about an agent at a time, and one a second, however many
deliveries are refused. The cloner keeps one call for all questions of a process about an agent.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

from cachetools import TTLCache
from precall_client import Precall, PrecallError

from gateway.conversation.overrides import AGENTS, Overrides, remember

__all__ = ["AgentQuestions"]

# How long an answer counts, and how long the cloner may take for one.
ANSWER_SECONDS = 1.0
# What the conversation of the questions is called in the cloner's log lines and spans.
CONVERSATION = "question_{}"


class AgentQuestions:
    """Asks the cloner how agents speak, and has it remembered in `overrides`. `now` tells the seconds."""

    def __init__(
        self, cloner: Precall, overrides: Overrides, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._cloner = cloner
        self._overrides = overrides
        self._conversation = CONVERSATION.format(secrets.token_hex(16))
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked: TTLCache[str, bool] = TTLCache(AGENTS, ANSWER_SECONDS, now)

    async def ask(self, agent_id: str, *, seconds: float) -> None:
        """Waits for so long until it is known how the agent speaks, if nobody asked a moment ago."""
        asking = self._asking.get(agent_id)
        if asking is None:
            if agent_id in self._asked:
                return
            asking = self._asking[agent_id] = asyncio.create_task(self._ask(agent_id))
        await asyncio.wait({asking}, timeout=seconds)

    async def _ask(self, agent_id: str) -> None:
        ends = asyncio.get_running_loop().time() + ANSWER_SECONDS
        try:
            # First, because after OpenCall it might never be sent: an answer can be late or lost, and this
            # process can stop. Each time, because the cloner drops old calls.
            await self._cloner.complete_call(
                agent_id=agent_id, conversation_id=self._conversation, seconds=ANSWER_SECONDS
            )
            response = await self._cloner.open_call(
                agent_id=agent_id,
                conversation_id=self._conversation,
                seconds=ends - asyncio.get_running_loop().time(),
            )
            remember(self._overrides, agent_id, response)
        except PrecallError:
            return
        finally:
            self._asked[agent_id] = True
            del self._asking[agent_id]
