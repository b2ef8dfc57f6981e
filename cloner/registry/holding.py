"""The lock of an agent: it lasts for as long as a process works at the agent, and not for much longer.

An update that got no answer may still be done at ElevenLabs when its lock has ended. So whoever puts such an
agent back looks at it once more, `LANDS_SECONDS` later.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import Context

from cloner.registry.statement import Statement
from cloner.registry.store import Store
from cloner.registry.transaction import Transaction

__all__ = ["HELD_SECONDS", "LANDS_SECONDS", "LATE_SECONDS", "renew", "renewing"]

# A lock ends so long after it was last renewed: its holder is dead by then, and what the dead one had sent
# has most likely arrived.
HELD_SECONDS, RENEW_SECONDS = 12.0, 2.0
# How much longer an agent is locked after an update that may have been done all the same.
LATE_SECONDS = 3.0
# An update that got no answer is done within this time, or never.
LANDS_SECONDS = 30.0

RENEWED = Statement("UPDATE agents SET held_until = :until WHERE agent_id = :agent_id AND holder = :holder")


def renew(tx: Transaction, agent_id: str, *, holder: str, now: float) -> None:
    """Renews the lock of an agent, if the holder still has it."""
    tx.run(RENEWED, agent_id=agent_id, holder=holder, until=now + HELD_SECONDS)


@contextlib.contextmanager
def renewing(store: Store, agent_id: str, *, holder: str, now: Callable[[], float]) -> Iterator[None]:
    """Renews the lock of an agent for as long as the block lasts. Most blocks end before the first time."""

    async def renew_each_time() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with contextlib.suppress(Exception):  # logged by whatever else needs the registry
                await store.write(renew, agent_id, holder=holder, now=now())

    # Of no request's trace.
    task = asyncio.create_task(renew_each_time(), context=Context())
    try:
        yield
    finally:
        task.cancel()
