"""What is known of the agents' own settings: which overrides of a conversation they refuse.

An override that is not switched on at the agent makes the conversation fail, so the settings are read. They
are cached for a while, because a call that starts must not wait for ElevenLabs.
"""

import asyncio
from collections.abc import Callable

import structlog
from cachetools import LRUCache

from cloner.agents.notices import Notices
from cloner.provider.awaited import Awaited
from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import ProviderFailure

__all__ = ["AgentSettings"]

log = structlog.get_logger()

AGENTS = 10_000
READ_SECONDS = 10.0
# How long to wait before an agent that could not be read is read again.
AGAIN_SECONDS = 5.0


class AgentSettings:
    """A cache of the settings of the agents that were read last. `now` tells the time, in Unix seconds."""

    def __init__(self, provider: ElevenLabs, *, believed_seconds: float, now: Callable[[], float]) -> None:
        self._provider = provider
        self._believed = believed_seconds
        self._now = now
        self._notices = Notices(now=now)
        self._refused_leaves: LRUCache[str, frozenset[str]] = LRUCache(AGENTS)
        self._until: LRUCache[str, float] = LRUCache(AGENTS)
        self._readings: dict[str, Awaited[None]] = {}

    def saw(self, agent_id: str, refused_leaves: frozenset[str]) -> None:
        """Caches what an agent's settings said just now."""
        self._refused_leaves[agent_id] = refused_leaves
        self._until[agent_id] = self._now() + self._believed

    def log_unread(self, agent_id: str, failure: ProviderFailure) -> None:
        """Logs, once in a while, that an agent cannot be read."""
        if facts := self._notices.facts(agent_id, failure, permission="convai_read"):
            log.warning("agent not read", **facts)

    def known(self, agent_id: str) -> frozenset[str] | None:
        """The overrides that the agent refuses; None where its settings were never read."""
        return self._refused_leaves.get(agent_id)

    def is_recent(self, agent_id: str) -> bool:
        """Whether what is known of an agent's settings counts without another look at ElevenLabs."""
        return self._until.get(agent_id, 0.0) > self._now()

    async def refused_leaves(self, agent_id: str, *, deadline: float) -> frozenset[str] | None:
        """As `known`, but first reads old settings anew, until the deadline. Raises no ProviderFailure."""
        if not self.is_recent(agent_id):
            reading = self._readings.get(agent_id)
            if reading is None or reading.over:
                reading = self._readings[agent_id] = Awaited(self._read(agent_id), until=deadline)
            await reading.result(until=deadline)
            if not reading.over:
                # The next call does not wait for this reading; its result is cached when it comes.
                self._until[agent_id] = self._now() + AGAIN_SECONDS
        return self.known(agent_id)

    async def close(self) -> None:
        """Cancels the readings under way."""
        readings = list(self._readings.values())
        for reading in readings:
            reading.cancel()
            await reading.ended()

    async def _read(self, agent_id: str) -> None:
        try:
            deadline = asyncio.get_running_loop().time() + READ_SECONDS
            self.saw(agent_id, (await self._provider.read_agent(agent_id, deadline=deadline)).refused_leaves)
        except ProviderFailure as failure:
            self._until[agent_id] = self._now() + AGAIN_SECONDS
            self.log_unread(agent_id, failure)
        finally:
            self._readings.pop(agent_id, None)
