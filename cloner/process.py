"""The cloner as a process: it serves until it is told to stop."""

import asyncio
import signal
import socket

import structlog
import uvloop
from msgspec import structs
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from cloner.audio.inspector import InspectionUnavailable
from cloner.registry import RegistryOfOtherRelease, RegistryUnavailable
from cloner.server import AddressInUse, checking_api_key, serving
from cloner.settings import Settings
from cloner.voices.hash_key import KeyDiffers, KeyUnavailable
from environment import address, complain
from environment.open_files import connections_allowed, too_few_files
from telemetry import logs
from telemetry.output import Output

__all__ = ["run"]

# Descriptors that are kept free of clients' connections: for files, the registry, traces, and connections
# that are being closed. Beside them ElevenLabs has one for each request, and a worker its pipes.
RESERVED_DESCRIPTORS, PER_WORKER = 128, 8


def run(settings: Settings, tracers: TracerProvider, meters: MeterProvider, output: Output) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status.

    2 if the database is another release's or another key's, or if too few files may be open to serve; 1 if
    nothing can be served.
    """
    if fault := too_few_files():
        complain(f"cloner: {fault}")
        return 2
    reserved = RESERVED_DESCRIPTORS + settings.provider_concurrency + PER_WORKER * settings.audio_workers
    most = connections_allowed(settings.cloner_max_connections, reserved=reserved)
    settings = structs.replace(settings, cloner_max_connections=most)
    return uvloop.run(_serve(settings, tracers, meters, output))


async def _serve(settings: Settings, tracers: TracerProvider, meters: MeterProvider, output: Output) -> int:
    opened, stopped = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    served = loop.create_task(_served(settings, tracers, meters, output, opened=opened, stopped=stopped))

    def stop() -> None:
        # To open may take long: another process migrates the database, or its server does not answer.
        if not opened.is_set() and not stopped.is_set():
            served.cancel()
        stopped.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    try:
        return await served
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        return 0


async def _served(
    settings: Settings,
    tracers: TracerProvider,
    meters: MeterProvider,
    output: Output,
    *,
    opened: asyncio.Event,
    stopped: asyncio.Event,
) -> int:
    try:
        async with (
            serving(settings, tracers, meters=meters) as port,
            checking_api_key(settings, tracers),
        ):
            opened.set()
            structlog.get_logger().info("speaking to", url=settings.elevenlabs_base_url)
            logs.log_ready(
                "cloner", address(settings.cloner_host, port), form=settings.log_format, output=output
            )
            await stopped.wait()
    except AddressInUse:
        where = address(settings.cloner_host, settings.cloner_port)
        why = await asyncio.to_thread(_why_not, settings.cloner_host, settings.cloner_port)
        complain(f"cloner: cannot serve on {where}: {why}")
        return 1
    except (InspectionUnavailable, KeyDiffers, KeyUnavailable, RegistryUnavailable) as failure:
        complain(f"cloner: {failure}")
        return 2 if isinstance(failure, (KeyDiffers, RegistryOfOtherRelease)) else 1
    return 0


def _why_not(host: str, port: int) -> str:
    """Finds out why the address cannot be served, which gRPC does not report."""
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as tried:
                tried.bind(place)
    except OSError as failure:
        return failure.strerror or "it cannot be used"
    return "it was in use"
