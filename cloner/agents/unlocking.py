"""The end of an agent's lock, which is stored once the call that gave it a voice has its answer."""

import asyncio
from collections.abc import Callable

import structlog
from cachetools import LRUCache

from cloner.registry import AgentUpdate, RegistryUnavailable, Store, agents, late_updates
from cloner.registry.holding import LATE_SECONDS

__all__ = ["Unlocking"]

log = structlog.get_logger()

# How many agents' changes are cached, so that whoever reads an agent knows whether its lock has ended since.
AGENTS = 10_000


class Unlocking:
    """Ends the locks of agents. No answer waits for it; whoever reads the agent next does."""

    def __init__(self, store: Store, *, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._under_way: dict[str, asyncio.Task[None]] = {}
        # How often each agent had been changed when its last lock ended.
        self._changes: LRUCache[str, int] = LRUCache(AGENTS)

    def begin(self, update: AgentUpdate, *, late: bool, given: bool, unanswered: bool) -> None:
        """Ends the lock of an update that has ended.

        After one that may be done `late` the agent stays locked for a while, and is put back.
        """
        agent_id = update.row.agent_id
        task = asyncio.create_task(self._unlock(update, late=late, given=given, unanswered=unanswered))
        self._under_way[agent_id] = task
        task.add_done_callback(lambda done: self._forget(agent_id, done))

    async def has_ended_since(self, agent_id: str, changes: int) -> bool:
        """Whether a lock has ended since the agent was changed so often. Waits for one that is ending."""
        if (earlier := self._under_way.get(agent_id)) is not None:
            await asyncio.shield(earlier)
        return earlier is not None or changes < self._changes.get(agent_id, 0)

    async def close(self) -> None:
        """Waits until every end is stored."""
        await asyncio.gather(*self._under_way.values())

    async def _unlock(self, update: AgentUpdate, *, late: bool, given: bool, unanswered: bool) -> None:
        row = update.row
        until = self._now() + LATE_SECONDS if late else 0.0
        try:
            held = await self._store.write(
                agents.unlock,
                row.agent_id,
                holder=update.holder,
                until=until,
                given=given,
                unanswered=unanswered,
            )
            if held:
                self._changes[row.agent_id] = update.changes_unlocked
            elif given or late:
                # The lock has expired, because this process stood still.
                log.warning("agent updated too late", agent_id=row.agent_id)
                await self._store.write(late_updates.note, row, unanswered=unanswered)
        except RegistryUnavailable as failure:
            # The lock expires by itself; then an agent whose state nobody knows is put back.
            log.warning("agent still held", agent_id=row.agent_id, reason=failure.reason)

    def _forget(self, agent_id: str, done: "asyncio.Task[None]") -> None:
        if self._under_way.get(agent_id) is done:
            del self._under_way[agent_id]
