"""Builds the cloner: everything is opened here, in order, and closed in reverse."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import NamedTuple

import structlog
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from precall.v1 import cloning_pb2 as pb

from cloner.agents.agent_settings import AgentSettings
from cloner.agents.giving import Agents
from cloner.audio.inspector import Inspector
from cloner.calls import Calls
from cloner.census import CENSUS_SECONDS, CensusTaker
from cloner.janitor import TICK_SECONDS, Janitor, Terms
from cloner.listener import access_of, health_beside, listen, server_of
from cloner.measures import Measures
from cloner.memory_budget import MemoryBudget
from cloner.openings import Openings
from cloner.provider.account import Account
from cloner.provider.api_key import check_api_key
from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.exchange import Api
from cloner.provider.failures import word_of
from cloner.provider.transport import AiohttpTransport, authorities
from cloner.registry import Store, opened, requests
from cloner.rpc import pages
from cloner.rpc.admission import Admission
from cloner.rpc.draining import STILL_SECONDS, Draining
from cloner.rpc.messages import duration
from cloner.rpc.readiness import Readiness
from cloner.rpc.rooms import Rooms
from cloner.rpc.service import CloningService
from cloner.rpc.usage import Usage
from cloner.settings import Settings
from cloner.voices.callers import Identities
from cloner.voices.cloning import Cloning
from cloner.voices.consenting import Consenting
from cloner.voices.erasure import Erasure
from cloner.voices.finding import Voices
from cloner.voices.hash_key import settled
from cloner.voices.looking import Looking
from cloner.voices.marked import Marked
from cloner.voices.removal import Removal
from cloner.voices.samples import SampleLimits, Samples
from environment.memory import give_back
from telemetry.http_client import HttpClientTracing
from telemetry.metrics import NOWHERE

__all__ = ["ASKING_SECONDS", "AddressInUse", "checking_api_key", "serving"]

log = structlog.get_logger()

# How long a call waits for what ElevenLabs says of its agent or its voice, before it goes on without.
ASKING_SECONDS = 1.0
# A voice that is made ahead of time is kept for this long at least: if it were deleted before its answer
# arrived, it would be made again.
LEAST_KEPT_SECONDS = 60.0

# Once no call is under way, clients have so long to take their answers and to leave. Nobody listens at a
# connection that is still there then: gRPC itself would wait for it for twenty seconds.
FAREWELL_SECONDS = 1.0


class AddressInUse(Exception):
    """Nothing can be served at the address, most often because something else is."""


@asynccontextmanager
async def serving(
    settings: Settings,
    tracing: TracerProvider,
    *,
    now: Callable[[], float] = time.time,
    inspector: Inspector | None = None,
    tick_seconds: float = TICK_SECONDS,
    census_seconds: float = CENSUS_SECONDS,
    still_seconds: float = STILL_SECONDS,
    asking_seconds: float = ASKING_SECONDS,
    meters: MeterProvider = NOWHERE,
) -> AsyncIterator[int]:
    """Serves until the block ends, then finishes what is in flight. Yields the port.

    Every `tick_seconds` it looks for what has become due. If `meters` export metrics, it counts every
    `census_seconds` what there is. It stops when no new call came for `still_seconds`. A call waits
    `asking_seconds` for ElevenLabs' word on its agent or its voice, and one without a sample twice that for
    its answer.

    An `inspector` that is passed must be open and is not closed here, so that several cloners, one after the
    other, can share its workers. Raises AddressInUse, RegistryUnavailable, KeyUnavailable, KeyDiffers, and
    what the Inspector raises when its workers do not start.
    """
    measures = Measures(meters)
    # The workers come first, so that they hold no socket of the server.
    async with (
        nullcontext(inspector) if inspector else _inspector(settings) as opened_inspector,
        opened(settings.database_url, name=settings.precall_deployment, now=now()) as store,
        _api(settings, tracing, meters) as api,
        access_of(settings) as (clients, certificate),
        AsyncExitStack() as beside,
    ):
        store.measures = measures
        if settings.precall_deployment not in (None, store.name):
            log.warning("PRECALL_DEPLOYMENT does nothing, the database has a name", deployment=store.name)
        parts = _parts(
            settings,
            tracing,
            key=await settled(store, settings.database_url, settings.caller_hash_key),
            measures=measures,
            inspector=opened_inspector,
            store=store,
            api=api,
            tick_seconds=tick_seconds,
            census_seconds=census_seconds,
            asking_seconds=asking_seconds,
            now=now,
        )
        draining = Draining(still_seconds=still_seconds)
        server, health_servicer = server_of(
            settings,
            tracing,
            service=parts.service,
            admission=parts.admission,
            clients=clients,
            draining=draining,
            measures=measures,
            meters=meters,
        )
        try:
            port = listen(server, settings, certificate)
        except RuntimeError as failure:
            raise AddressInUse from failure
        readiness = Readiness(store, health_servicer, patience_seconds=settings.registry_patience_seconds)
        loop = asyncio.get_running_loop()
        beside_calls = [asyncio.create_task(parts.janitor.run())]
        # From here on, a cancellation runs the orderly stop below.
        try:
            await readiness.look()
            measures.observe_serving(lambda: readiness.serving)
            await server.start()
            beside_calls.append(asyncio.create_task(readiness.run()))
            if measures.enabled:
                beside_calls.append(asyncio.create_task(parts.census.run()))
            await beside.enter_async_context(health_beside(settings, port, health_servicer))
            yield port
        finally:
            ends = loop.time() + settings.shutdown_grace_seconds
            await readiness.stop()
            # A client that watches our health sends its calls elsewhere now. The others notice the end of
            # their connections, and send again what we have not begun.
            await asyncio.sleep(min(settings.drain_seconds, settings.shutdown_grace_seconds))
            await draining.hold(seconds=max(0.0, ends - loop.time()))
            # The next cloner at this address may start before this one ends, and needs the same socket for
            # its health.
            await beside.aclose()
            stopping = asyncio.create_task(server.stop(max(0.0, ends - loop.time())))
            await asyncio.sleep(0)  # stopping has begun: GOAWAY is on its way
            draining.release()
            parts.admission.close()
            await draining.finish(seconds=max(0.0, ends - loop.time()))
            await asyncio.wait([stopping], timeout=max(0.0, min(FAREWELL_SECONDS, ends - loop.time())))
            # One after the other: gRPC reads freed memory if it is told to stop twice at the same time.
            stopping.cancel()
            await asyncio.wait([stopping])
            await server.stop(None)
            # Work that the janitor has claimed and not finished is done by another process once the claim
            # runs out.
            for task in beside_calls:
                task.cancel()
            await asyncio.gather(*beside_calls, return_exceptions=True)
            left = max(0.0, ends - loop.time())
            await asyncio.gather(parts.calls.finish(left), parts.cloning.finish(left))
            for close in parts.closing:
                await close()


def _inspector(settings: Settings) -> Inspector:
    return Inspector(
        workers=settings.audio_workers,
        max_seconds=settings.voice_clone_max_duration,
        enough_sound=settings.voice_clone_min_sound,
        waiting=settings.cloner_max_requests,
    )


@asynccontextmanager
async def checking_api_key(settings: Settings, tracing: TracerProvider) -> AsyncIterator[None]:
    """While the block runs, asks ElevenLabs whether it accepts the key."""
    async with _api(settings, tracing) as api:
        provider = ElevenLabs(api, attempts=settings.provider_attempts, concurrency=1, queue=1)
        asking = asyncio.create_task(check_api_key(provider))
        try:
            yield
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


class _Parts(NamedTuple):
    service: CloningService
    admission: Admission
    calls: Calls
    cloning: Cloning
    janitor: Janitor
    census: CensusTaker
    closing: tuple[Callable[[], Awaitable[None]], ...]


def _parts(
    settings: Settings,
    tracing: TracerProvider,
    *,
    key: bytes,
    measures: Measures,
    inspector: Inspector,
    store: Store,
    api: Api,
    tick_seconds: float,
    asking_seconds: float,
    census_seconds: float,
    now: Callable[[], float],
) -> _Parts:
    """Everything between the server and what is opened for it."""
    identities = Identities(key, settings.voice_reuse, region=settings.default_region)
    provider = ElevenLabs(
        api,
        attempts=settings.provider_attempts,
        concurrency=settings.provider_concurrency,
        queue=settings.provider_queue,
        measures=measures,
    )
    measures.observe_queue(lambda: provider.queue.waiting)
    # A clone counts its sample once more, so that voices ahead of time leave a quarter to calls.
    memory = MemoryBudget(
        settings.sample_buffer_bytes, for_others=settings.sample_buffer_bytes * 3 // 8, left=give_back
    )
    measures.observe_samples(lambda: memory.taken, settings.sample_buffer_bytes)
    marked = Marked(provider, store)
    removal = Removal(provider, store, marked, call_seconds=settings.call_max_minutes * 60, now=now)
    kept_ahead = max(LEAST_KEPT_SECONDS, settings.enrolment_keep_days * 86_400)
    cloning = Cloning(
        provider, store, marked, removal,
        memory=memory,
        tracing=tracing,
        measures=measures,
        timeout_seconds=settings.provider_timeout_seconds,
        attempts=settings.provider_attempts,
        keep_seconds=kept_ahead,
        now=now,
    )  # fmt: skip
    limits = SampleLimits(
        max_bytes=settings.max_sample_bytes,
        min_seconds=settings.voice_clone_min_duration,
        max_seconds=settings.voice_clone_max_duration,
        min_sound_seconds=settings.voice_clone_min_sound,
        min_rate=settings.voice_clone_min_sample_rate,
    )
    samples = Samples(inspector, tracing, limits=limits)
    voices = Voices(
        cloning, marked, samples, store,
        identities=identities,
        check_seconds=settings.voice_check_minutes * 60,
        asking_seconds=asking_seconds,
        keep_seconds=kept_ahead,
        require_consent=settings.require_consent, now=now,
    )  # fmt: skip
    agent_settings = AgentSettings(provider, believed_seconds=settings.agent_check_seconds, now=now)
    agents = Agents(
        provider, store, agent_settings, mode=settings.agent_update,
        presumed_seconds=settings.call_presumed_minutes * 60, asking_seconds=asking_seconds, now=now,
    )  # fmt: skip
    terms = Terms(
        keep=settings.voice_clone_keep_hours * 3600 if settings.voice_clone_auto_delete else None,
        call=settings.call_max_minutes * 60,
        closed_rows=settings.registry_keep_days * 86_400,
        reconcile=settings.reconcile_seconds,
        grace=settings.reconcile_grace_seconds,
    )
    due = asyncio.Event()
    janitor = Janitor(
        store, provider, cloning=cloning, marked=marked, removal=removal, tracing=tracing,
        terms=terms, woken=due, tick_seconds=tick_seconds, now=now, measures=measures,
    )  # fmt: skip
    calls = Calls(
        agents, voices, samples, store, agent_settings,
        identities=identities, first_message=settings.default_first_message, due=due,
        asking_seconds=asking_seconds, now=now,
    )  # fmt: skip
    openings = Openings(
        voices, store, agent_settings,
        identities=identities, first_message=settings.default_first_message,
        require_consent=settings.require_consent, now=now,
    )  # fmt: skip
    erasure = Erasure(identities, store, removal, now=now)
    looking = Looking(store, identities, keep_seconds=terms.keep, call_seconds=terms.call, now=now)
    consenting = Consenting(identities, store, looking, removal, now=now)
    account = Account(provider, now=now)
    census = CensusTaker(store, account, measures, call_seconds=terms.call, seconds=census_seconds, now=now)
    admission = Admission(
        memory,
        most_calls=settings.cloner_max_requests,
        most_watches=settings.watch_max,
        max_bytes=settings.max_message_bytes,
        body_seconds=settings.body_timeout_seconds,
        guarded=bool(settings.cloner_token) or settings.cloner_clients is not None,
    )
    usage = Usage(account, provider, store, quota=lambda: admission.quota, now=now)
    service = CloningService(
        Rooms(
            calls=calls, openings=openings, voices=voices, store=store, erasure=erasure, looking=looking,
            consenting=consenting, usage=usage, identities=identities,
            limits=_limits(settings, limits, terms), watch_seconds=settings.watch_seconds,
            opening_seconds=2 * asking_seconds,
        )
    )  # fmt: skip
    return _Parts(
        service, admission, calls, cloning, janitor, census,
        closing=(account.close, looking.close, voices.close, agents.close, agent_settings.close),
    )  # fmt: skip


def _limits(settings: Settings, sample: SampleLimits, terms: Terms) -> pb.GetLimitsResponse:
    """What GetLimits answers for as long as this process runs."""
    return pb.GetLimitsResponse(
        sample=pb.SampleLimits(
            max_bytes=sample.max_bytes,
            min_duration=duration(sample.min_seconds),
            max_duration=duration(sample.max_seconds),
            min_sound_duration=duration(sample.min_sound_seconds),
            min_sample_rate_hertz=sample.min_rate,
        ),
        retention=pb.Retention(
            unused_voice=None if terms.keep is None else duration(terms.keep),
            enrolled_voice=duration(settings.enrolment_keep_days * 86_400),
            longest_call=duration(terms.call),
            past=duration(terms.closed_rows),
            request_id=duration(requests.KEPT_SECONDS),
        ),
        consent_required=settings.require_consent,
        max_request_bytes=settings.max_message_bytes,
        max_page_size=pages.MOST,
        max_watch_duration=duration(settings.watch_seconds),
        max_watches=settings.watch_max,
    )


@asynccontextmanager
async def _api(
    settings: Settings, tracing: TracerProvider, meters: MeterProvider = NOWHERE
) -> AsyncIterator[Api]:
    async with HttpClientTracing(
        AiohttpTransport(authorities()),
        tracing,
        meters=meters,
        explain=word_of,
    ) as transport:
        yield Api(
            transport,
            base_url=settings.elevenlabs_base_url,
            api_key=settings.elevenlabs_api_key.reveal(),
        )
