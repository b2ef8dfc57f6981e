"""Does what is due: ends calls, restores agents, deletes voices, and finds what the registry does not know.

Every replica runs a janitor. Each piece of work is claimed in the registry before it is begun, so that only
one does it. A claim runs out, so that another one does the work if the process dies.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import structlog
from opentelemetry.sdk.trace import TracerProvider

from cloner.measures import Measures
from cloner.provider.elevenlabs import ElevenLabs, ListedVoice
from cloner.provider.failures import ProviderFailure
from cloner.provider.turns import yielding_to_calls
from cloner.registry import (
    RegistryUnavailable,
    Store,
    VoiceRow,
    agents,
    calls,
    consents,
    departures,
    deployment,
    due,
    processes,
    reasons,
    requests,
)
from cloner.registry import voices as rows
from cloner.voices.alive import STALE_SECONDS
from cloner.voices.cloning import Cloning
from cloner.voices.marked import Marked, marker_in
from cloner.voices.postponed import ids_of, ids_of_agent, log_postponed, pause_after
from cloner.voices.removal import Removal, log_given_up
from telemetry.facts import log_context, note
from telemetry.logs import exception_place
from telemetry.parts import SCOPE, traced_by
from telemetry.tracing import linked, own_trace

__all__ = ["TICK_SECONDS", "Janitor", "Terms"]

log = structlog.get_logger()

TICK_SECONDS = 1.0
WORK_SECONDS = 30.0  # for one deletion, or one page of a list
# For one restoration. It is short, as other agents that have callers' voices wait for it.
RESTORE_SECONDS = 15.0
CLAIM_SECONDS = 60.0
LEFT_OVER_SECONDS = 60.0  # between two times that all agents with a voice are gone through
AT_ONCE = 3  # restorations, and deletions
PAGE_SIZE = 100
# A bound for lists without an end: no account has as many voices as these pages hold.
MOST_PAGES = 200
PAGE_SECONDS = 0.1  # between two pages


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How long things last, in seconds. `keep` is None if voices are not deleted automatically."""

    keep: float | None
    call: float
    closed_rows: float
    reconcile: float
    grace: float


class Janitor:
    """Works until it is cancelled. Set `woken` when something may be due now.

    It looks every `tick_seconds`, too. `now` tells the time, in Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        provider: ElevenLabs,
        *,
        cloning: Cloning,
        marked: Marked,
        removal: Removal,
        tracing: TracerProvider,
        terms: Terms,
        woken: asyncio.Event,
        tick_seconds: float,
        now: Callable[[], float],
        measures: Measures,
    ) -> None:
        self._store = store
        self._provider = provider
        self._cloning = cloning
        self._marked = marked
        self._removal = removal
        self._tracing = tracing
        self._tracer = tracing.get_tracer("precall.janitor")
        self._terms = terms
        self._now = now
        self._measures = measures
        self._woken = woken
        self._tick_seconds = tick_seconds
        self._found_left_over = -math.inf

    async def run(self) -> None:
        """Looks every tick, or when woken, and does what is due. No kind of work waits for another."""
        works = [
            ("close", self._close, asyncio.Event()),
            *(("restore", self._restore, asyncio.Event()) for _ in range(AT_ONCE)),
            *(("delete", self._delete, asyncio.Event()) for _ in range(AT_ONCE)),
            ("resume", self._resume, asyncio.Event()),
            ("reconcile", self._reconcile, asyncio.Event()),
            ("left_over", self._find_left_over, asyncio.Event()),
        ]
        with yielding_to_calls():
            await asyncio.gather(
                self._look([(kind, wanted) for kind, _, wanted in works]),
                *(self._repeat(work, wanted) for _, work, wanted in works),
            )

    async def _look(self, works: list[tuple[str, asyncio.Event]]) -> None:
        """Asks the registry what is due, in one query, and starts that work."""
        while True:
            self._woken.clear()
            now, terms = self._now(), self._terms
            try:
                found = await self._store.read(
                    due.what_is_due,
                    now=now,
                    busy_since=now - terms.call,
                    unused_since=None if terms.keep is None else now - terms.keep,
                    dropped_before=now - terms.closed_rows,
                    stale=now - STALE_SECONDS,
                )
            except RegistryUnavailable as failure:
                log.warning("put off", work="look", reason=failure.reason)
            except Exception as bug:  # noqa: BLE001 - the next time it may work
                log.error("bug", exception=exception_place(bug))
            else:
                if not 0 <= now - self._found_left_over < LEFT_OVER_SECONDS:  # also if the clock was set back
                    found.add("left_over")
                for kind, wanted in works:
                    if kind in found:
                        wanted.set()
            # Not wait_for: before Python 3.12 it can lose a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick_seconds):
                    await self._woken.wait()

    async def _repeat(self, work: Callable[[], Awaitable[None]], wanted: asyncio.Event) -> None:
        """Does one kind of work when it is wanted. What fails is logged, and is due again later."""
        while True:
            await wanted.wait()
            wanted.clear()
            try:
                await work()
            except (ProviderFailure, RegistryUnavailable) as failure:
                log.warning("put off", work=work.__name__.strip("_"), reason=failure.reason)
            except Exception as bug:  # noqa: BLE001 - the next time it may work
                log.error("bug", exception=exception_place(bug))

    async def _close(self) -> None:
        """Ends calls that never ended, gives up voices that nobody used for long, drops old rows."""
        now, terms = self._now(), self._terms
        # Each transaction takes a part of what there is, so that calls get their turn between two of them.
        while closed := await self._store.write(calls.close_old, before=now - terms.call, now=now):
            for call in closed:
                log.info("call ended", **ids_of(call, None), reason="presumed")
        await self._store.write(agents.plan_unsure_restores, now=now)
        if terms.keep is not None:
            while expired := await self._store.write(
                departures.expire, unused_since=now - terms.keep, busy_since=now - terms.call, now=now
            ):
                for row in expired:
                    log_given_up(row.voice_id, reasons.EXPIRED)
        await self._store.write(processes.drop_dead, before=now - terms.closed_rows)
        for drop in (calls.drop_ended, departures.drop_closed, consents.drop_unreachable):
            while await self._store.write(drop, before=now - terms.closed_rows):
                continue
        while await self._store.write(requests.drop_old, before=now - requests.KEPT_SECONDS):
            continue
        # The voices that were given up are due at once.
        self._woken.set()

    async def _find_left_over(self) -> None:
        """Finds agents whose voice is lost, and any that were not marked when their call ended.

        No index finds them: this goes through all agents that have a voice, and so is not done every tick.
        It begins with a look for which nobody waits: on SQLite, all who write would wait for the change.
        """
        now = self._now()
        found = await self._store.look_through(agents.any_left_over, now=now)
        if found:
            await self._store.write(agents.plan_left_over_restores, now=now)
            self._woken.set()
        self._found_left_over = now

    async def _restore(self) -> None:
        """Gives agents back what they had before a call that is over."""
        while (agent := await self._removal.claim()) is not None:
            call = await self._store.read(calls.latest, call_id=agent.call_id)
            ids = ids_of(call, None) | ids_of_agent(agent)
            with (
                self._span("restore agent", ids, agent.traceparent, "" if call is None else call.ended_by),
                # Logged already; the next agent does not wait for this one.
                contextlib.suppress(ProviderFailure),
            ):
                note(reason=await self._removal.restore(agent, deadline=_soon(RESTORE_SECONDS)))
            # A voice that the agent had may now be deleted.
            self._woken.set()

    async def _delete(self) -> None:
        """Deletes voices that were given up."""
        while True:
            now = self._now()
            row = await self._store.write(departures.claim_deletion, now=now, until=now + CLAIM_SECONDS)
            if row is None:
                return
            call = await self._store.read(calls.latest, marker=row.marker)
            ids = ids_of(call, row)
            # The request that had the voice made is linked only if no call has used the voice.
            origins = (row.traceparent,) if call is None else (call.traceparent, call.ended_by)
            with self._span("delete voice", ids, *origins, row.given_up_by):
                try:
                    if await self._removal.remove(row, deadline=_soon(WORK_SECONDS)):
                        note(reason=row.reason)
                        continue
                    # Somebody else has just taken the agent that speaks with it, and it is due after that.
                    await self._store.write(
                        departures.postpone_deletion, row.marker, due_at=self._now(), untried=1
                    )
                    note(outcome="error", reason="agent_has_voice")
                    return
                except ProviderFailure as refused:
                    failure = refused
                pause = pause_after(row.tries, failure)
                await self._store.write(departures.postpone_deletion, row.marker, due_at=self._now() + pause)
                log_postponed("voice not deleted yet", failure, ids, tries=row.tries, next_try_seconds=pause)

    async def _resume(self) -> None:
        """Finishes the intents of processes that died."""
        for row in await self._store.read(rows.abandoned, stale=self._now() - STALE_SECONDS):
            call = await self._store.read(calls.latest, marker=row.marker)
            with self._span("resume clone", ids_of(call, row), row.traceparent):
                await self._cloning.adopt(row)

    async def _reconcile(self) -> None:
        """Compares the registry with what ElevenLabs has, and makes the two agree."""
        now = self._now()
        if not await self._store.write(
            deployment.claim_reconciliation, now=now, until=now + self._terms.reconcile
        ):
            return
        with self._span("reconcile", {}):
            listed = await self._listed()
            known = await self._store.look_through(rows.known, sorted({marker for marker, _ in listed}))
            done = Counter(
                [await self._judged(marker, known.get(marker), voice, now) for marker, voice in listed]
            )
            lost = 0
            present = {voice.voice_id for _, voice in listed}
            ready = await self._store.look_through(rows.ready)
            for row in ready:
                old_enough = row.checked_at < now - self._terms.grace
                if row.voice_id not in present and old_enough and not await self._is_there(row):
                    if await self._store.write(departures.note_gone, row.marker, now=now):
                        log.warning("voice lost", voice_id=row.voice_id)
                        lost += 1
                    await self._store.write(agents.plan_restore, marker=row.marker)
            if lost == len(ready) > 1:
                log.error(
                    "every voice of the registry is lost, is ELEVENLABS_API_KEY of another workspace?",
                    lost=lost,
                )
            await self._reopen_month(now)
            self._measures.reconciled()
            log.info(
                "reconciled", voices=len(listed), removed=done["removed"], adopted=done["adopted"], lost=lost
            )

    async def _reopen_month(self, now: float) -> None:
        """Lets voices be made again before the month is over, where a larger plan has room for them."""
        if await self._store.read(deployment.month_resets_at) <= now:
            return
        with contextlib.suppress(ProviderFailure):
            account = await self._provider.subscription(deadline=_soon(WORK_SECONDS))
            used, limit = account.month_used, account.month_limit
            if used is not None and limit is not None and used < limit:
                await self._store.write(deployment.close_month_until, now)

    async def _listed(self) -> list[tuple[str, ListedVoice]]:
        """The voices of this deployment at ElevenLabs, each with its marker.

        Two have one marker if something on the way to ElevenLabs has sent a create twice.
        """
        found: list[tuple[str, ListedVoice]] = []
        tokens: set[str | None] = set()
        token: str | None = None
        while token not in tokens and len(tokens) < MOST_PAGES:
            if tokens:
                await asyncio.sleep(PAGE_SECONDS)
            tokens.add(token)
            page = await self._provider.search_voices(
                self._store.name, page_size=PAGE_SIZE, page_token=token, deadline=_soon(WORK_SECONDS)
            )
            for voice in page.voices:
                if marker := marker_in(voice, self._store.name):
                    # The other fields are not needed here, and may be as long as a whole page.
                    short = msgspec.structs.replace(voice, labels=None, description=None)
                    found.append((marker, short))
            token = page.next_page_token
            if not page.has_more or not token:
                return found
        # A voice that is not in the list is asked for by itself, so nothing is lost.
        log.warning("the list of voices has no end", pages=len(tokens), voices=len(found))
        return found

    async def _judged(self, marker: str, row: VoiceRow | None, voice: ListedVoice, now: float) -> str | None:
        """Adopts a voice that a create without an answer made, or that was lost; removes one of no use."""
        # ElevenLabs need not say when a voice was made; an intent is stored just before.
        made = row.created_at if voice.created_at_unix is None and row is not None else voice.created_at_unix
        if made is None:
            log.warning("voice of unknown age", voice_id=voice.voice_id)
        if made is None or made < int(self._store.created_at) or made > now - self._terms.grace:
            return None
        under_way = row is not None and row.state == "intended"
        if (
            _has(row, voice)
            or under_way
            or await self._marked.belongs_elsewhere(voice.voice_id, marker)
            or (row is not None and row.is_lost and not await self._is_there(row, unknown=False))
        ):
            return None
        # With a key of another workspace all voices count as lost, until it is the right one again.
        returns = row is not None and (row.state == "failed" or row.is_lost)
        ids = ids_of(await self._store.read(calls.latest, marker=marker), row) | {"voice_id": voice.voice_id}
        if row is not None and returns and not voice.requires_verification:
            with self._span("adopt voice", ids, row.traceparent):
                if await self._store.write(rows.record, row.marker, voice.voice_id, now=now):
                    return "adopted"
                note(outcome="abandoned")
                if _has(await self._store.read(rows.get, marker), voice):
                    # Its maker has recorded it meanwhile, so an agent may have it.
                    return None
        with self._span("delete voice", ids, "" if row is None else row.traceparent):
            try:
                await self._provider.delete_voice(voice.voice_id, deadline=_soon(WORK_SECONDS))
            except ProviderFailure as failure:
                log_postponed("orphan not deleted yet", failure, ids, next_try_seconds=self._terms.reconcile)
                return None
            note(reason="orphan")
            log.info("voice deleted", voice_id=voice.voice_id, reason="orphan")
        return "removed"

    async def _is_there(self, row: VoiceRow, *, unknown: bool = True) -> bool:
        """Asks for one voice, because a list may lag behind. `unknown` where there is no answer."""
        try:
            return await self._marked.is_there(row, deadline=_soon(WORK_SECONDS))
        except ProviderFailure:
            return unknown

    @contextlib.contextmanager
    def _span(self, name: str, ids: dict[str, str], *origins: str) -> Iterator[None]:
        """A trace of its own, with the ids, which links to the requests that the work is done for."""
        with (
            traced_by(self._tracing.get_tracer(SCOPE)),
            own_trace(self._tracer, name, linked(*origins)),
            log_context(**ids),
        ):
            yield


def _has(row: VoiceRow | None, voice: ListedVoice) -> bool:
    """Whether the row is of this voice, which it uses or deletes."""
    return row is not None and row.voice_id == voice.voice_id and row.state in ("ready", "deleting")


def _soon(seconds: float) -> float:
    """A deadline on the event loop's clock."""
    return asyncio.get_running_loop().time() + seconds
