"""Limits how many deliveries are taken for an agent, and from a source.

Sliding windows: the previous window counts in proportion to how much of it lies within the last period.
This takes two numbers for each agent, however high the limit; a moving window would keep the time of each
delivery. The clock is that of the storage, so that gateways whose clocks differ count alike. A delivery that
is refused is not counted.

Counting holds no call up for long: if the storage fails or is slow, the delivery goes on uncounted, and so
do later ones until the storage answers again.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import limits
import structlog
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from environment import Address, CountStorage, Rate
from gateway.edge.source import network

__all__ = ["COUNT_SECONDS", "COUNT_SHARE", "Limits", "OverLimit", "counting"]

log = structlog.get_logger()

T = TypeVar("T")
Whose = Literal["agent", "source"]

# How long a delivery waits for the storage, and how long no delivery asks a storage that failed.
COUNT_SECONDS = 0.5
REST_SECONDS = 5.0
# The share of the time that a delivery has left for which it waits at most: the rest is for its call.
COUNT_SHARE = 1 / 3
CONNECTIONS = 32
# How many counts one process keeps, of agents and as many of sources: one of this period for each, and one of
# the last. And how often it drops expired counts.
MOST_KEYS = 10_000
TIDY_SECONDS = 1.0


class OverLimit(Exception):
    """More deliveries came than are allowed; `retry_after` is in whole seconds, and at least one."""

    reason = "RATE_LIMITED"

    def __init__(self, whose: Whose, retry_after: int) -> None:
        super().__init__(whose)
        self.whose: Whose = whose
        what = {"agent": "for this agent", "source": "from this address"}[whose]
        self.message = f"Too many deliveries {what}. Try again after {retry_after} s."
        self.retry_after = retry_after


class Memory(MemoryStorage):
    """Counts in this process. When there are too many keys it forgets all of them, and refuses nobody."""

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if len(self.storage) >= MOST_KEYS:
            await self.reset()
        if self.timer is None or self.timer.done():
            # While this task runs, the library does not look through all of its keys for each one it counts.
            self.timer = asyncio.create_task(self._tidied_up())
        return await super().acquire_sliding_window_entry(key, limit, expiry, amount)

    async def _tidied_up(self) -> None:
        """Waits for a moment, then forgets the counts that have expired."""
        await asyncio.sleep(TIDY_SECONDS)
        now = time.time()
        for key in [key for key, expires in self.expirations.items() if expires <= now]:
            await self.clear(key)


class Limits:
    """Counts deliveries. Both storages of counts may be one and the same.

    If a storage does not answer within `seconds`, the delivery is not counted.
    """

    def __init__(
        self,
        agent_rate: Rate,
        source_rate: Rate,
        agent_counts: Storage,
        source_counts: Storage,
        *,
        seconds: float,
    ) -> None:
        self._seconds = seconds
        self._rates = {
            "agent": None if agent_rate.is_off else limits.parse(agent_rate),
            "source": None if source_rate.is_off else limits.parse(source_rate),
        }
        self._windows = {
            "agent": SlidingWindowCounterRateLimiter(agent_counts),
            "source": SlidingWindowCounterRateLimiter(source_counts),
        }
        self._failing = False
        self._rests_until = 0.0

    async def count_agent(self, agent_id: str, *, left: float) -> None:
        """Counts a delivery for an agent; its sender must be known. Raises OverLimit.

        Waits for no more than a share of the seconds that are left for the delivery.
        """
        await self._count("agent", agent_id, left * COUNT_SHARE)

    async def count_source(self, address: Address | None, *, left: float) -> None:
        """Counts a delivery from an address, as long as count_agent waits. Raises OverLimit."""
        await self._count("source", network(address), left * COUNT_SHARE)

    async def _count(self, whose: Whose, key: str, most: float) -> None:
        rate, window = self._rates[whose], self._windows[whose]
        if rate is None:
            return
        until = asyncio.get_running_loop().time() + most
        if await self._waited(lambda: window.hit(rate, whose, key), until) is not False:
            return
        stats = await self._waited(lambda: window.get_window_stats(rate, whose, key), until)
        seconds = 0.0 if stats is None else stats.reset_time - time.time()
        raise OverLimit(whose, max(1, math.ceil(seconds)))

    async def _waited(self, ask: Callable[[], Awaitable[T]], until: float) -> T | None:
        """What the storage answers until then; None if it has not answered by then.

        It is asked to the end, so that a connection to it is made, and a storage that hangs is noticed,
        however little time each delivery has.
        """
        asking = asyncio.create_task(self._asked(ask))
        await asyncio.wait({asking}, timeout=until - asyncio.get_running_loop().time())
        return asking.result() if asking.done() else None

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the storage answers; None if it does not answer, or did not a moment ago."""
        now = time.monotonic()
        if self._failing:
            if now < self._rests_until:
                return None
            self._rests_until = now + REST_SECONDS  # this delivery finds out for all others
        try:
            async with asyncio.timeout(self._seconds):
                answer = await ask()
        except Exception as failure:  # noqa: BLE001 - whatever it is about counting that fails, the call goes on
            self._rests_until = time.monotonic() + REST_SECONDS
            if not self._failing:
                self._failing = True
                log.warning("deliveries are not counted: RATE_LIMIT_STORAGE", failure=type(failure).__name__)
            return None
        if self._failing:
            self._failing = False
            log.info("deliveries are counted again")
        return answer


@asynccontextmanager
async def counting(
    agent: Rate, source: Rate, storage: CountStorage, *, seconds: float = COUNT_SECONDS
) -> AsyncIterator[Limits]:
    """Opens the storage for as long as the block lasts. It need not answer, now or later."""
    if storage.is_in_memory:
        # Two memories, so that a flood of sources does not make the agents' counts go.
        yield Limits(agent, source, Memory(), Memory(), seconds=seconds)
        return
    from valkey.asyncio import BlockingConnectionPool

    pool = BlockingConnectionPool.from_url(
        storage.reveal(),
        max_connections=CONNECTIONS,
        timeout=None,  # `seconds` bounds all of it
        client_name="precall",
    )
    try:
        redis = RedisStorage(
            "async+valkey://",  # which client to use, for servers of Redis as well; the pool says where
            key_prefix="precall",
            connection_pool=pool,  # type: ignore[arg-type]  # a parameter that the annotation forgets
        )
        yield Limits(agent, source, redis, redis, seconds=seconds)
    finally:
        await pool.disconnect()
