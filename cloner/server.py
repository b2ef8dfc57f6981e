"""Builds the cloner: everything is opened here, in order, and closed in reverse."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.sdk.trace import TracerProvider
from precall.v1 import cloning_pb2
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server

from cloner.agents import Agents
from cloner.audio import Inspector
from cloner.callers import Identities
from cloner.creation import Creation
from cloner.elevenlabs import ElevenLabs
from cloner.erasure import Erasure
from cloner.janitor import Janitor, Terms
from cloner.key import kept_beside
from cloner.overrides import Overrides
from cloner.preparation import Preparation
from cloner.registry import Agents as AgentRows
from cloner.registry import Calls, Deployment, Registry, opened
from cloner.registry import Voices as VoiceRows
from cloner.removal import Removal
from cloner.samples import Limits, Samples
from cloner.service import CloningService
from cloner.settings import MEBIBYTE, Settings
from cloner.token import TokenCheck
from cloner.voices import Voices
from telemetry.http_client import HttpClientTracing
from telemetry.rpc import RpcServerTracing

__all__ = ["AddressInUse", "serving"]

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
            waiting=1_000,  # their memory is bounded by SAMPLE_BUFFER_MB
        ) as inspector,
        opened(settings.database_url, name=settings.precall_deployment, now=now()) as registry,
        _http(settings, tracing) as http,
    ):
        rooms = _rooms(settings, tracing, inspector=inspector, registry=registry, http=http, now=now)
        server, health_servicer = _server(settings, tracing, rooms.service)
        try:
            port = server.add_insecure_port(f"{settings.cloner_host}:{settings.cloner_port}")
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
            await server.stop(settings.shutdown_grace_seconds)
            # What the janitor has begun is claimed, and done by the next process.
            janitor.cancel()
            await asyncio.gather(janitor, return_exceptions=True)
            await rooms.voices.finish(max(0.0, ends - loop.time()))
            await rooms.overrides.close()


class _Rooms(NamedTuple):
    service: CloningService
    voices: Voices
    overrides: Overrides
    janitor: Janitor


def _rooms(
    settings: Settings,
    tracing: TracerProvider,
    *,
    inspector: Inspector,
    registry: Registry,
    http: httpx.AsyncClient,
    now: Callable[[], float],
) -> _Rooms:
    """Everything between the server and what is opened for it."""
    key = settings.caller_hash_key
    identities = Identities(
        key.reveal().encode() if key else kept_beside(settings.database_url), settings.voice_reuse
    )
    voice_rows, agent_rows, calls = VoiceRows(registry), AgentRows(registry), Calls(registry)
    shared = Deployment(registry)
    provider = ElevenLabs(
        http,
        attempts=settings.provider_attempts,
        concurrency=settings.provider_concurrency,
        queue=settings.provider_queue,
    )
    removal = Removal(provider, voice_rows, agent_rows, calls, now=now)
    creation = Creation(
        provider,
        voice_rows,
        shared,
        removal,
        deployment=registry.name,
        timeout_seconds=settings.provider_timeout_seconds,
        attempts=settings.provider_attempts,
        call_seconds=settings.call_max_minutes * 60,
        now=now,
    )
    limits = Limits(
        max_bytes=settings.max_sample_bytes,
        min_seconds=settings.voice_clone_min_duration,
        max_seconds=settings.voice_clone_max_duration,
        min_rate=settings.voice_clone_min_sample_rate,
    )
    samples = Samples(
        inspector, tracing, limits=limits, max_held_bytes=int(settings.sample_buffer_mb * MEBIBYTE)
    )
    voices = Voices(
        creation, samples, voice_rows, calls, shared,
        identities=identities,
        check_seconds=settings.voice_check_minutes * 60,
        keep_seconds=settings.enrolment_keep_days * 86_400,
        require_consent=settings.require_consent, now=now,
    )  # fmt: skip
    overrides = Overrides(provider, believed_seconds=settings.agent_check_seconds, now=now)
    agents = Agents(
        provider, agent_rows, voice_rows, overrides, mode=settings.agent_update,
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
        registry, provider, voices=voices, creation=creation, removal=removal, tracing=tracing,
        terms=terms, now=now,
    )  # fmt: skip
    preparation = Preparation(
        agents, voices, calls, agent_rows, overrides,
        identities=identities,
        first_message=settings.default_first_message, require_consent=settings.require_consent,
        ended=janitor.wake, now=now,
    )  # fmt: skip
    erasure = Erasure(identities, voice_rows, calls, removal, now=now)
    service = CloningService(preparation, voices, voice_rows, erasure)
    return _Rooms(service, voices, overrides, janitor)


@cache
def _authorities() -> ssl.SSLContext:
    """Whom TLS trusts, read once: it takes 20 ms."""
    return httpx.create_ssl_context()


def _http(settings: Settings, tracing: TracerProvider) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=settings.elevenlabs_base_url,
        headers={"xi-api-key": settings.elevenlabs_api_key.reveal(), "User-Agent": "precall"},
        transport=HttpClientTracing(
            httpx.AsyncHTTPTransport(
                verify=_authorities(),
                limits=httpx.Limits(max_connections=settings.provider_concurrency),
            ),
            tracing,
            captured=("x-trace-id",),
        ),
        # A cookie of theirs would be kept, and sent along, for as long as the process lives.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        # The environment's proxies would see every caller's voice without anybody having said so.
        trust_env=False,
    )


def _server(
    settings: Settings, tracing: TracerProvider, service: CloningService
) -> tuple[grpc.aio.Server, Any]:
    token = settings.cloner_token
    server = grpc.aio.server(
        interceptors=(RpcServerTracing(tracing), *([TokenCheck(token)] if token else [])),
        options=(
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # Else a second cloner on a taken port would start and take half of the calls.
            ("grpc.so_reuseport", 0),
        ),
    )
    add_CloningServiceServicer_to_server(service, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, health_servicer
