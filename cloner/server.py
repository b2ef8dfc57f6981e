"""Builds the cloner: everything is opened here, in order, and closed in reverse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.sdk.trace import TracerProvider
from voice.v1 import cloning_pb2
from voice.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server

from cloner.agents import Agents
from cloner.audio import Inspector
from cloner.elevenlabs import ElevenLabs
from cloner.preparation import Preparation
from cloner.samples import Limits
from cloner.service import CloningService
from cloner.settings import MEBIBYTE, Settings
from cloner.voices import Voices
from telemetry.http_client import HttpClientTracing
from telemetry.rpc import RpcServerTracing

__all__ = ["AddressInUse", "serving"]

SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name


class AddressInUse(Exception):
    """Nothing can be served at the address, most often because something else is."""


@asynccontextmanager
async def serving(settings: Settings, tracing: TracerProvider) -> AsyncIterator[int]:
    """Serves until the block ends, then finishes what is in flight. Yields the port.

    Raises AddressInUse, and what the Inspector raises when its workers do not start.
    """
    # The workers come first, so that they hold no socket of the server.
    async with (
        Inspector(
            workers=settings.audio_workers,
            max_seconds=settings.voice_clone_max_duration,
            waiting=1_000,  # their memory is bounded by SAMPLE_BUFFER_MB
        ) as inspector,
        httpx.AsyncClient(
            base_url=settings.elevenlabs_base_url,
            headers={"xi-api-key": settings.elevenlabs_api_key.reveal(), "User-Agent": "precall"},
            transport=HttpClientTracing(
                httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=settings.provider_concurrency)),
                tracing,
                captured=("x-trace-id",),
            ),
            # The environment's proxies would see every caller's voice without anybody having said so.
            trust_env=False,
        ) as http,
    ):
        provider = ElevenLabs(http, attempts=settings.provider_attempts)
        voices = Voices(
            provider,
            inspector,
            tracing,
            limits=Limits(
                max_bytes=settings.max_sample_bytes,
                min_seconds=settings.voice_clone_min_duration,
                max_seconds=settings.voice_clone_max_duration,
                min_rate=settings.voice_clone_min_sample_rate,
            ),
            timeout_seconds=settings.provider_timeout_seconds,
            attempts=settings.provider_attempts,
            max_held_bytes=int(settings.sample_buffer_mb * MEBIBYTE),
            now=lambda: datetime.now(UTC),
        )
        agents = Agents(provider, mode=settings.agent_update, presumed_minutes=settings.call_presumed_minutes)
        preparation = Preparation(agents, voices, first_message=settings.default_first_message)

        server = grpc.aio.server(
            interceptors=(RpcServerTracing(tracing),),
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # Else a second cloner on a taken port would start and take half of the calls.
                ("grpc.so_reuseport", 0),
            ),
        )
        add_CloningServiceServicer_to_server(CloningService(preparation, voices), server)
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            port = server.add_insecure_port(f"{settings.cloner_host}:{settings.cloner_port}")
        except RuntimeError as failure:
            raise AddressInUse from failure
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
            await voices.finish(max(0.0, ends - loop.time()))
