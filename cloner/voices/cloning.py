"""The clones of this process: begins them, takes over those of processes that died, and waits for them."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog
from opentelemetry.sdk.trace import TracerProvider

from cloner.background import Background
from cloner.measures import Measures
from cloner.memory_budget import MemoryBudget
from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import ProviderFailure
from cloner.registry import Store, VoiceRow
from cloner.voices.alive import STALE_SECONDS, SignsOfLife
from cloner.voices.clone import Clone, Superseded, Workshop
from cloner.voices.intent import Intents, Wanted
from cloner.voices.marked import Marked, VoiceNeedsVerification
from cloner.voices.removal import Removal
from cloner.voices.samples import Recording
from telemetry.facts import note
from telemetry.tracing import outliving

__all__ = ["Cloning"]

log = structlog.get_logger()


class Cloning:
    """Makes voices for the deployment of the store. `now` tells the time, in Unix seconds.

    All `attempts` of a create together take `timeout_seconds` at most. A voice that is made ahead of time is
    kept for `keep_seconds` at least.
    """

    def __init__(
        self,
        provider: ElevenLabs,
        store: Store,
        marked: Marked,
        removal: Removal,
        *,
        memory: MemoryBudget,
        tracing: TracerProvider,
        measures: Measures,
        timeout_seconds: float,
        attempts: int,
        keep_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._background = Background()
        self._under_way: set[Clone] = set()
        self._intents = Intents(store, keep_seconds=keep_seconds, now=now)
        self._alive = SignsOfLife(store, self._under_way, owner=self._intents.owner, now=now)
        self._workshop = Workshop(
            provider=provider, store=store, marked=marked, removal=removal, intents=self._intents,
            memory=memory, measures=measures, background=self._background,
            late=partial(outliving, tracing.get_tracer("precall.cloning"), "finish clone"),
            attempts=attempts, timeout_seconds=timeout_seconds, now=now, under_way=self._under_way,
        )  # fmt: skip

    def clone_under_way(self, marker: str) -> Clone | None:
        """The clone that this process makes under the marker."""
        return next((clone for clone in self._under_way if clone.row.marker == marker), None)

    def clone_of(self, caller: str) -> Clone | None:
        """The clone that this process makes for the caller, unless it replaces a voice."""
        return next((clone for clone in self._under_way if clone.row.caller == caller), None)

    async def begin(self, wanted: Wanted, recording: Recording) -> tuple[VoiceRow, Clone | None]:
        """Stores the intent and begins the clone, unless the caller has a voice or a clone by now.

        Returns the row that counts, and the clone if there is a new one. Raises what `Intents.store` raises.
        If the call is cancelled meanwhile, the clone still starts: a stored intent without a worker would
        block the next call.
        """
        beginning = self._background.begin(self._intend_and_start(wanted, recording))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_leave_begun)
            raise
        finally:
            # A failure refers to this call, and its task to the failure: such a cycle would keep the sample.
            del beginning

    async def _intend_and_start(self, wanted: Wanted, recording: Recording) -> tuple[VoiceRow, Clone | None]:
        # Counted here too, because the call that counts the sample may be gone before the intent is stored.
        with self._memory.holding(len(recording.sample)):
            row, new = await self._intents.store(wanted)
            if not new:
                return row, None
            return row, self._begun(row, wanted, recording)

    async def adopt(self, row: VoiceRow) -> None:
        """Finishes an intent whose process died, unless another process does.

        If this process itself works at the intent, it goes on: it was only too busy to give a sign of life.
        """
        taken = await self._intents.take_over(row, stale_seconds=STALE_SECONDS)
        if taken and not self.clone_under_way(row.marker):
            try:
                await self._begun(row, None, None).made()
            except Superseded:
                note(outcome="abandoned")
            except (ProviderFailure, VoiceNeedsVerification) as failure:
                note(outcome="error", reason=failure.reason)

    def _begun(self, row: VoiceRow, wanted: Wanted | None, recording: Recording | None) -> Clone:
        clone = Clone(self._workshop, row, wanted, recording)
        clone.begin()
        self._alive.begin()
        return clone

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what is under way, and abandons what is left after the grace.

        An abandoned intent is found by its marker, by another process or at the next start.
        """
        await self._background.wait(grace_seconds)
        if self._under_way:
            log.warning("stopped with clones under way at the provider", clones=len(self._under_way))
        await self._background.finish(0.0)
        await self._alive.stop()


def _leave_begun(beginning: "asyncio.Task[tuple[VoiceRow, Clone | None]]") -> None:
    if not beginning.cancelled() and beginning.exception() is None and (clone := beginning.result()[1]):
        clone.leave()
