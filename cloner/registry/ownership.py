"""Which voices are ours, and still those of their callers."""

import asyncio

from cloner.registry import agents, voices
from cloner.registry.agent import AgentRow, Obstacle
from cloner.registry.store import Store
from cloner.registry.transaction import RegistryUnavailable

__all__ = ["is_ours", "was_given_up"]

LOOK_SECONDS = 0.5


async def is_ours(store: Store, voice_id: str | None, row: AgentRow | None) -> bool:
    """Whether we made the voice that an agent has, even if this row did not give it to the agent.

    The registry is read only for a voice that the row does not name. Raises RegistryUnavailable.
    """
    if voice_id is None:
        return False
    if row is not None and row.gave_voice(voice_id):
        return True
    return await store.read(voices.marker_of, voice_id) is not None


async def was_given_up(
    store: Store, marker: str, *, call_id: str, stated: str | None, deadline: float
) -> bool:
    """Whether a voice was given up since it was found for the `stated` caller's call.

    Takes LOOK_SECONDS at most: a registry that does not answer is no reason to withhold a voice. Raises
    CallerForgotten.
    """
    try:
        async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + LOOK_SECONDS)):
            obstacle = await store.read(agents.obstacle_for, call_id=call_id, marker=marker, stated=stated)
    except (RegistryUnavailable, TimeoutError):
        return False
    return obstacle is Obstacle.VOICE
