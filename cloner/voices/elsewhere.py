"""Waits for voices that other processes make, and finishes those of processes that died."""

import asyncio
from collections.abc import Callable

from cloner.background import Background
from cloner.provider import failures
from cloner.provider.failures import TimedOut
from cloner.registry import Store, VoiceRow, deployment, processes, voices
from cloner.voices.alive import STALE_SECONDS
from cloner.voices.cloning import Cloning
from cloner.voices.marked import VoiceNeedsVerification
from cloner.voices.monthly_limit import monthly_limit
from telemetry.parts import part
from telemetry.tracing import linked

__all__ = ["Elsewhere"]

LOOK_SECONDS = 0.2

# The failures that are raised again for a request that waited for another process's clone, by reason.
JOINED_FAILURES: dict[str, type[Exception]] = {
    kind.reason: kind
    for kind in (
        failures.Unauthorized, failures.PlanLimit, failures.SlotsExhausted, failures.MonthlyLimit,
        failures.SampleRejected, failures.ProtocolBroken, failures.Busy, failures.Unavailable,
        failures.TimedOut, VoiceNeedsVerification,
    )
}  # fmt: skip


class Elsewhere:
    """Looks at the intents of other processes; each once, however many wait for it."""

    def __init__(self, cloning: Cloning, store: Store, *, now: Callable[[], float]) -> None:
        self._cloning = cloning
        self._store = store
        self._now = now
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._background = Background()

    async def close(self) -> None:
        """Stops looking."""
        await self._background.finish(0.0)

    async def settled(self, row: VoiceRow, deadline: float) -> None:
        """Waits for another process's clone. Raises the failure with which it ended."""
        watch = self._watches.get(row.marker)
        if watch is None:
            watch = self._watches[row.marker] = self._background.begin(self._watch(row.marker))
            watch.add_done_callback(lambda _: self._watches.pop(row.marker, None))
        try:
            with part("another_clone", links=linked(row.traceparent)):
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(watch)
        except TimeoutError:
            raise TimedOut from None
        settled = await self._store.read(voices.get, row.marker)
        if settled is not None and settled.state == "failed" and settled.reason in JOINED_FAILURES:
            if settled.reason == failures.MonthlyLimit.reason:
                raise monthly_limit(await self._store.read(deployment.month_resets_at), self._now())
            raise JOINED_FAILURES[settled.reason]

    async def _watch(self, marker: str) -> None:
        """Returns when another process's intent is settled, by that process or in its place."""
        while (row := await self._store.read(voices.get, marker)) is not None and row.state == "intended":
            if processes.is_alive(row.alive_at, stale=self._now() - STALE_SECONDS):
                await asyncio.sleep(LOOK_SECONDS)
            else:
                await self._cloning.adopt(row)
