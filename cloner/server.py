"""Builds the cloner: everything is opened here, in order, and closed in reverse."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, NamedTuple

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.sdk.trace import TracerProvider
from precall.v1 import cloning_pb2
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server

from cloner.admission import Admission
from cloner.agents import Agents
from cloner.api_key import check_api_key
from cloner.audio import Inspector
from cloner.callers import Identities
from cloner.creation import Creation
from cloner.elevenlabs import ElevenLabs
from cloner.erasure import Erasure
from cloner.janitor import Janitor, Terms
from cloner.key import kept_beside
from cloner.overrides import Overrides
from cloner.preparation import Preparation
from cloner.refusals import ServiceUnknown
from cloner.registry import Store, opened
from cloner.removal import Removal
from cloner.room import Room
from cloner.samples import Limits, Samples
from cloner.service import CloningService
from cloner.settings import MEBIBYTE, Settings
from cloner.status import answer_failure
from cloner.token import TokenCheck
from cloner.transport import AiohttpTransport
from cloner.voices import Voices
from environment import address
from environment.memory import give_back
from telemetry.http_client import HttpClientTracing
from telemetry.rpc import RpcServerTracing

__all__ = ["AddressInUse", "checking_api_key", "serving"]

TRANSPORT = (
    # Else a second cloner on a taken port would start and take half of the calls.
    ("grpc.so_reuseport", 0),
    # What a sender may be ahead of us with a body that nobody has asked for. Measured on loopback with
    # 200 such streams: 64 KB each; with the probe of the bandwidth on, up to megabytes.
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_concurrent_streams", 256),
    # Headers beyond what Admission takes come this far, so that it is Admission that answers.
    ("grpc.max_metadata_size", 65_536),
    ("grpc.absolute_max_metadata_size", 65_536),
    # Clients ping every 10 seconds at the most, with or without a call under way, and are no nuisance.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients look up afresh where we are now and then; gRPC varies the age by a tenth. Calls take a minute.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 90_000),
    ("grpc.max_connection_idle_ms", 300_000),
)
SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name


class AddressInUse(Exception):
    """Nothing can be served at the address, most often because something else is."""


@asynccontextmanager
async def serving(
    settings: Settings, tracing: TracerProvider, *, now: Callable[[], float] = time.time
) -> AsyncIterator[int]:
    """Serves until the block ends, then finishes what is in flight. Yields the port.

    Raises AddressInUse, RegistryUnavailable, KeyUnavailable, and what the Inspector raises when its
    workers do not start.
    """
    # The workers come first, so that they hold no socket of the server.
    async with (
        Inspector(
            workers=settings.audio_workers,
            max_seconds=settings.voice_clone_max_duration,
            waiting=settings.cloner_max_requests,
        ) as inspector,
        opened(settings.database_url, name=settings.precall_deployment, now=now()) as store,
        _http(settings, tracing) as http,
    ):
        rooms = _rooms(settings, tracing, inspector=inspector, store=store, http=http, now=now)
        server, health_servicer, admission = _server(settings, tracing, rooms)
        try:
            port = server.add_insecure_port(address(settings.cloner_host, settings.cloner_port))
        except RuntimeError as failure:
            raise AddressInUse from failure
        janitor = asyncio.create_task(rooms.janitor.run())
        await server.start()
        for name in ("", SERVICE):
            await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        loop = asyncio.get_running_loop()
        try:
            yield port
        finally:
            ends = loop.time() + settings.shutdown_grace_seconds
            await health_servicer.enter_graceful_shutdown()
            # Whoever watches our health hears of it and sends calls elsewhere. The others hear of it by the
            # end of their connections, and send again what we have not begun.
            await asyncio.sleep(min(settings.drain_seconds, settings.shutdown_grace_seconds))
            admission.close()
            await server.stop(max(0.0, ends - loop.time()))
            # What the janitor has begun is claimed, and done by the next process.
            janitor.cancel()
            await asyncio.gather(janitor, return_exceptions=True)
            await rooms.voices.finish(max(0.0, ends - loop.time()))
            await rooms.overrides.close()


@asynccontextmanager
async def checking_api_key(settings: Settings, tracing: TracerProvider) -> AsyncIterator[None]:
    """Asks ElevenLabs beside the block whether it takes the key, and no longer than the block lasts."""
    async with _http(settings, tracing) as http:
        provider = ElevenLabs(http, attempts=settings.provider_attempts, concurrency=1, queue=1)
        asking = asyncio.create_task(check_api_key(provider))
        try:
            yield
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


class _Rooms(NamedTuple):
    service: CloningService
    memory: Room
    voices: Voices
    overrides: Overrides
    janitor: Janitor


def _rooms(
    settings: Settings,
    tracing: TracerProvider,
    *,
    inspector: Inspector,
    store: Store,
    http: httpx.AsyncClient,
    now: Callable[[], float],
) -> _Rooms:
    """Everything between the server and what is opened for it."""
    key = settings.caller_hash_key
    identities = Identities(
        key.reveal().encode() if key else kept_beside(settings.database_url),
        settings.voice_reuse,
        region=settings.default_region,
    )
    provider = ElevenLabs(
        http,
        attempts=settings.provider_attempts,
        concurrency=settings.provider_concurrency,
        queue=settings.provider_queue,
    )
    removal = Removal(provider, store, now=now)
    creation = Creation(
        provider,
        store,
        removal,
        name=store.name,
        timeout_seconds=settings.provider_timeout_seconds,
        attempts=settings.provider_attempts,
        call_seconds=settings.call_max_minutes * 60,
        now=now,
    )
    limits = Limits(
        max_bytes=settings.max_sample_bytes,
        min_seconds=settings.voice_clone_min_duration,
        max_seconds=settings.voice_clone_max_duration,
        min_sound_seconds=settings.voice_clone_min_sound,
        min_rate=settings.voice_clone_min_sample_rate,
    )
    memory = Room(int(settings.sample_buffer_mb * MEBIBYTE), left=give_back)
    samples = Samples(inspector, tracing, limits=limits)
    voices = Voices(
        creation, samples, store,
        identities=identities, room=memory,
        check_seconds=settings.voice_check_minutes * 60,
        keep_seconds=settings.enrolment_keep_days * 86_400,
        require_consent=settings.require_consent, now=now,
    )  # fmt: skip
    overrides = Overrides(provider, believed_seconds=settings.agent_check_seconds, now=now)
    agents = Agents(
        provider, store, overrides, mode=settings.agent_update,
        presumed_seconds=settings.call_presumed_minutes * 60, now=now,
    )  # fmt: skip
    terms = Terms(
        keep=settings.voice_clone_keep_hours * 3600 if settings.voice_clone_auto_delete else None,
        call=settings.call_max_minutes * 60,
        closed_rows=settings.registry_keep_days * 86_400,
        reconcile=settings.reconcile_seconds,
        grace=settings.reconcile_grace_seconds,
    )
    janitor = Janitor(
        store, provider, voices=voices, creation=creation, removal=removal, tracing=tracing,
        terms=terms, now=now,
    )  # fmt: skip
    preparation = Preparation(
        agents, voices, store, overrides,
        identities=identities,
        first_message=settings.default_first_message, require_consent=settings.require_consent,
        ended=janitor.wake, now=now,
    )  # fmt: skip
    erasure = Erasure(identities, store, removal, now=now)
    service = CloningService(preparation, voices, store, erasure, identities=identities)
    return _Rooms(service, memory, voices, overrides, janitor)


@cache
def _authorities() -> ssl.SSLContext:
    """Whom TLS trusts, read once: it takes 20 ms."""
    return httpx.create_ssl_context()


def _http(settings: Settings, tracing: TracerProvider) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=settings.elevenlabs_base_url,
        headers={"xi-api-key": settings.elevenlabs_api_key.reveal(), "User-Agent": "precall"},
        transport=HttpClientTracing(
            AiohttpTransport(_authorities()),
            tracing,
            captured=("x-trace-id",),
        ),
        # The environment's proxies would see every caller's voice without anybody having said so.
        trust_env=False,
    )


def _server(
    settings: Settings, tracing: TracerProvider, rooms: _Rooms
) -> tuple[grpc.aio.Server, "_Health", Admission]:
    tokens = settings.cloner_token
    admission = Admission(
        rooms.memory,
        most_calls=settings.cloner_max_requests,
        max_bytes=settings.max_message_bytes,
        body_seconds=settings.body_timeout_seconds,
        guarded=bool(tokens),
    )
    server = grpc.aio.server(
        interceptors=(RpcServerTracing(tracing), *([TokenCheck(tokens)] if tokens else []), admission),
        options=(
            ("grpc.max_receive_message_length", admission.hard_limit),
            *TRANSPORT,
        ),
    )
    add_CloningServiceServicer_to_server(rooms.service, server)
    health_servicer = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, health_servicer, admission


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, which answers a service that it does not know as all else is answered."""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        if request.service not in ("", SERVICE):
            answer_failure(context, ServiceUnknown())
            return health_pb2.HealthCheckResponse()
        return await super().Check(request, context)
