"""The gateway as a process: it serves until it is told to stop."""

import asyncio
import signal

import uvloop
from msgspec import structs
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from environment import address, complain
from environment.open_files import connections_allowed, too_few_files
from gateway.app import listening, serving
from gateway.settings import Settings
from telemetry import logs
from telemetry.output import Output

__all__ = ["run"]

# Descriptors that are kept free of clients' connections: for files, the cloner, traces, and connections that
# are being closed.
RESERVED_DESCRIPTORS = 128


def run(settings: Settings, tracers: TracerProvider, meters: MeterProvider, output: Output) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status: 2 if too few files may be open to serve."""
    if fault := too_few_files():
        complain(f"gateway: {fault}")
        return 2
    most = connections_allowed(settings.precall_max_connections, reserved=RESERVED_DESCRIPTORS)
    settings = structs.replace(settings, precall_max_connections=most)
    return uvloop.run(_serve(settings, tracers, meters, output))


async def _serve(settings: Settings, tracers: TracerProvider, meters: MeterProvider, output: Output) -> int:
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    try:
        listener = listening(settings)
    except OSError as failure:
        where = address(settings.precall_webhook_host, settings.precall_webhook_port)
        why = str(failure.strerror).partition(" (")[0]
        complain(f"gateway: cannot listen on {where}: {why}")
        return 1
    async with serving(settings, tracers, listener, meters=meters) as url:
        logs.log_ready("gateway", url, form=settings.log_format, output=output)
        await stopped.wait()
    return 0
