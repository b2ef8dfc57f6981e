"""The gateway as a process: it serves until it is told to stop."""

import asyncio
import signal
import sys

import uvloop
from opentelemetry.sdk.trace import TracerProvider

from environment import address
from gateway.app import listening, serving
from gateway.settings import Settings
from telemetry import logs

__all__ = ["run"]


def run(settings: Settings, provider: TracerProvider) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    return uvloop.run(_serve(settings, provider))


async def _serve(settings: Settings, provider: TracerProvider) -> int:
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    try:
        listener = listening(settings)
    except OSError as failure:
        where = address(settings.precall_webhook_host, settings.precall_webhook_port)
        why = str(failure.strerror).partition(" (")[0]
        print(f"gateway: cannot listen on {where}: {why}", file=sys.stderr)
        return 1
    async with serving(settings, provider, listener) as url:
        logs.tell_ready("gateway", url, form=settings.log_format)
        await stopped.wait()
    return 0
