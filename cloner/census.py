"""Counts for metrics, now and then, what the registry and the account hold.

It runs only where metrics are exported. It asks the registry one cheap question every few seconds, and
ElevenLabs for the account every few minutes, as work that no call waits for.
"""

import asyncio
from collections.abc import Callable

import structlog

from cloner.measures import Measures
from cloner.provider.account import Account
from cloner.provider.turns import yielding_to_calls
from cloner.registry import RegistryUnavailable, Store
from cloner.registry import census as registry
from cloner.voices.postponed import pause_after
from telemetry.logs import exception_place

__all__ = ["CENSUS_SECONDS", "CensusTaker"]

log = structlog.get_logger()

CENSUS_SECONDS = 15.0
ACCOUNT_SECONDS = 300.0
# A key that may not read the account is not likely to get the permission soon.
NOT_TOLD_SECONDS = 3_600.0
ASKING_SECONDS = 10.0


class CensusTaker:
    """Counts every `seconds` until it is cancelled. `now` tells the time, in Unix seconds.

    Calls that began more than `call_seconds` ago count as over.
    """

    def __init__(
        self,
        store: Store,
        account: Account,
        measures: Measures,
        *,
        call_seconds: float,
        seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._account = account
        self._call_seconds = call_seconds
        self._seconds = seconds
        self._now = now
        self._found: registry.Census | None = None
        self._voices_since: dict[str, float] = {}
        """Since when each voice waits to be deleted, as far as that is known."""

        self._ask_account_at = 0.0
        measures.observe_registry(voices=self._voices, calls=self._calls, due=self._due, ages=self._ages)
        measures.observe_account(lambda: account.last)

    async def run(self) -> None:
        """Counts again and again. What cannot be counted is left out of the metrics."""
        with yielding_to_calls():
            while True:
                try:
                    await self._look()
                except RegistryUnavailable:  # logged by whatever else needs the registry
                    self._found = None
                except Exception as bug:  # noqa: BLE001 - the next time it may work
                    log.error("bug", exception=exception_place(bug))
                await asyncio.sleep(self._seconds)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, known = self._now(), self._voices_since
        found = await self._store.read(registry.count, busy_since=now - self._call_seconds)
        # Each try has moved the due time by its pause at least. So the due time without these pauses is not
        # before the moment since which the voice waits.
        self._voices_since = {
            marker: min(due_at - sum(map(pause_after, range(1, tries + 1))), known.get(marker, now))
            for marker, tries, due_at in found.deletions
        }
        self._found = found
        if loop.time() >= self._ask_account_at:
            account = await self._account.known(deadline=loop.time() + ASKING_SECONDS)
            pause = NOT_TOLD_SECONDS if account is None else ACCOUNT_SECONDS
            self._ask_account_at = loop.time() + pause

    def _voices(self) -> dict[str, float]:
        found = self._found
        if found is None:
            return {}
        return {"intended": found.intended, "ready": found.ready, "deleting": found.deleting}

    def _calls(self) -> int | None:
        return None if self._found is None else self._found.calls

    def _due(self) -> dict[str, float]:
        found = self._found
        if found is None:
            return {}
        return {"agent": found.agents, "voice": found.deleting}

    def _ages(self) -> dict[str, float]:
        found, now = self._found, self._now()
        if found is None:
            return {}
        agents = now if found.agents_since is None else found.agents_since
        voices = min(self._voices_since.values(), default=now)
        return {"agent": max(0.0, now - agents), "voice": max(0.0, now - voices)}
