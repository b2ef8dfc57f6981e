"""The clones under way in this process: their tasks, and the signs of life that their intents need."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from opentelemetry.trace import get_current_span

from cloner.failures import ProviderFailure
from cloner.registry import Store, processes
from cloner.registry import voices as voice_rows
from cloner.turns import as_urgent_as, urgency
from cloner.voice import Voice

__all__ = ["STALE_SECONDS", "Clone", "Clones"]

log = structlog.get_logger()

ALIVE_SECONDS = 2.0  # between two signs of life of a process that is at intents
STALE_SECONDS = 8.0  # without one, whoever was at an intent is taken to be dead


class Clone:
    """A clone under way in this process. Its task outlives the request that began it."""

    task: "asyncio.Task[Voice]"

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self.trace = get_current_span().get_span_context()
        # What to tell those whose time runs out: what went wrong last, or Busy while it waits for its turn.
        self.failure: ProviderFailure | None = None
        self.asked = False  # whether ElevenLabs was
        # A clone that was begun ahead of time hurries when a call comes to need it.
        self.urgency = urgency()


class Clones:
    """Does what outlives requests. `owner` names this process in the registry; `now` tells Unix seconds."""

    def __init__(self, store: Store, *, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self.owner = secrets.token_hex(8)
        self._clones: dict[str, Clone] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._heart: asyncio.Task[None] | None = None

    def get(self, marker: str) -> Clone | None:
        """The clone that is under way under this marker."""
        return self._clones.get(marker)

    def start(self, clone: Clone, work: Coroutine[Any, Any, Voice]) -> None:
        """Begins a clone. Its intent is closed if nothing comes of it."""
        self._clones[clone.marker] = clone
        clone.task = self.begin(self._told(clone, work))
        if self._heart is None or self._heart.done():
            self._heart = asyncio.create_task(self._beat())

    def move(self, clone: Clone, marker: str) -> None:
        """Goes on with a clone under another marker."""
        self._clones[marker] = self._clones.pop(clone.marker, clone)
        clone.marker = marker

    def begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Begins work that nobody need wait for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        # Whoever waits is told by the task; nobody waiting is no reason for a complaint at exit.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what is under way, and gives up what is left after the grace.

        An intent that is given up is found by its marker, by another process or at the next start.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                while self._background:
                    await asyncio.wait(self._background)
        left = [*self._background, *([self._heart] if self._heart else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._clones:
            log.warning("stopped with clones under way at the provider", clones=len(self._clones))

    async def _told(self, clone: Clone, work: Coroutine[Any, Any, Voice]) -> Voice:
        try:
            with as_urgent_as(clone.urgency):
                return await work
        except Exception as failure:
            await self._store.write(voice_rows.fail, clone.marker, type(failure).__name__, now=self._now())
            raise
        finally:
            self._clones.pop(clone.marker, None)

    async def _beat(self) -> None:
        """Gives signs of life, for whatever intents this process is at."""
        while self._clones:
            await asyncio.sleep(ALIVE_SECONDS)
            with contextlib.suppress(Exception):  # told by whatever else needs the registry
                await self._store.write(processes.alive, self.owner, now=self._now())
