"""Which voices are ours."""

from cloner.registry import voices
from cloner.registry.agent import AgentRow
from cloner.registry.store import Store

__all__ = ["is_ours"]


async def is_ours(store: Store, voice_id: str | None, row: AgentRow | None) -> bool:
    """Whether we made the voice that an agent has, even if this row did not give it to the agent.

    The registry is read only for a voice that the row does not name. Raises RegistryUnavailable.
    """
    if voice_id is None:
        return False
    if row is not None and row.gave_voice(voice_id):
        return True
    return await store.read(voices.marker_of, voice_id) is not None
