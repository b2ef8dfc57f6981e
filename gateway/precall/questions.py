"""Asks how an agent speaks, for a delivery that is refused here before the cloner hears of it.

The agent may have another caller's voice by then, which another gateway was told. OpenCall is asked, which
makes nothing and changes no agent. The call that it notes is ended at once: the event after the telephone
call would not find it, and as long as it lasted the agent would be given nobody's voice. What is asked is
bounded: one question about an agent at a time, and one a second, however many deliveries are refused.
"""

import asyncio
import time
from collections.abc import Callable

from cachetools import TTLCache
from precall_client import Precall, PrecallError

from gateway.conversation.overrides import AGENTS, Overrides, remember

__all__ = ["AgentQuestions"]

# How long an answer counts, and how long the cloner may take for one.
ANSWER_SECONDS = 1.0


class AgentQuestions:
    """Asks the cloner how agents speak, and has it remembered in `overrides`. `now` tells the seconds."""

    def __init__(
        self, cloner: Precall, overrides: Overrides, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._cloner = cloner
        self._overrides = overrides
        self._asked: TTLCache[str, asyncio.Task[None]] = TTLCache(AGENTS, ANSWER_SECONDS, now)

    async def ask(self, agent_id: str, conversation_id: str, *, seconds: float) -> None:
        """Waits for so long until it is known how the agent speaks, if nobody asked a moment ago."""
        asking = self._asked.get(agent_id)
        if asking is None:
            asking = asyncio.create_task(self._ask(agent_id, conversation_id))
            self._asked[agent_id] = asking
        await asyncio.wait({asking}, timeout=seconds)

    async def _ask(self, agent_id: str, conversation_id: str) -> None:
        try:
            # Not as a conversation, whose own call this must not end.
            response = await self._cloner.open_call(
                agent_id=agent_id, call_sid=conversation_id, seconds=ANSWER_SECONDS
            )
            remember(self._overrides, agent_id, response)
            await self._cloner.complete_call(
                agent_id=agent_id, call_id=response.call_id, seconds=ANSWER_SECONDS
            )
        except PrecallError:
            return
