"""Takes a voice away again: from the agents that speak with it first, then from ElevenLabs."""

import secrets
from collections.abc import Callable

import structlog

from cloner import failures
from cloner.elevenlabs import AgentVoice, ElevenLabs
from cloner.registry import AgentRow, Store, VoiceRow, agents, voices

__all__ = ["FORGOTTEN", "Removal"]

log = structlog.get_logger()

# How long an agent that is being put back is nobody else's to change.
HOLD_SECONDS = 30.0
AGAIN_SECONDS = 1.0
FORGOTTEN = "forgotten"


class Removal:
    """Removes voices and restores agents. `now` tells the time, in Unix seconds."""

    def __init__(self, provider: ElevenLabs, store: Store, *, now: Callable[[], float]) -> None:
        self._provider = provider
        self._store = store
        self._now = now
        self._holder = secrets.token_hex(8)

    async def remove(self, row: VoiceRow, *, deadline: float) -> bool:
        """Deletes a voice that was given up; False if an agent is in other hands at the moment.

        May be repeated after any failure. Raises a ProviderFailure or RegistryUnavailable.
        """
        await self._store.write(agents.withdraw, marker=row.marker)
        while (agent := await self.claim(marker=row.marker)) is not None:
            await self.restore(agent, deadline=deadline)
        if await self._store.read(agents.speaking, row.marker):
            return False
        if row.voice_id is not None:
            await self._provider.delete_voice(row.voice_id, deadline=deadline)
        log.info("voice deleted", voice_id=row.voice_id, why=row.reason)
        await self._store.write(voices.lost, row.marker, now=self._now(), reason=row.reason or "deleted")
        if row.reason == FORGOTTEN:
            await self._store.write(voices.erase, row.marker)
        return True

    async def claim(self, *, marker: str | None = None) -> AgentRow | None:
        """An agent that is to be put back, ours to do for a while; None if there is none."""
        now = self._now()
        return await self._store.write(
            agents.claim, holder=self._holder, now=now, until=now + HOLD_SECONDS, marker=marker
        )

    async def restore(self, row: AgentRow, *, deadline: float) -> None:
        """Puts an agent back that was claimed.

        Raises a ProviderFailure, after which the agent is due again in a while.
        """
        try:
            await self._restore(row, deadline)
        except failures.ProviderFailure:
            await self._store.write(
                agents.let_go, row.agent_id, holder=self._holder, until=self._now() + AGAIN_SECONDS
            )
            raise
        await self._store.write(agents.restored, row.agent_id, holder=self._holder)

    async def _restore(self, row: AgentRow, deadline: float) -> None:
        """Gives each leaf back what it had, where our value still stands."""
        try:
            current = (await self._provider.read_agent(row.agent_id, deadline=deadline)).voice
        except failures.AgentNotFound:
            return
        voice_id = row.before_voice_id if row.gave_voice(current.voice_id) else None
        first_message = row.before_first_message if row.gave_message(current.first_message) else None
        if voice_id is None and first_message is None:
            return
        await self._provider.update_agent(
            row.agent_id, AgentVoice(voice_id, first_message), deadline=deadline
        )
        log.info("agent restored", agent_id=row.agent_id)
