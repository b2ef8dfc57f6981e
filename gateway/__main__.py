"""Starts the gateway: environment in, process out."""

import asyncio
import os
import signal
import sys

import uvloop
from opentelemetry.sdk.trace import TracerProvider

import environment
from environment.memory import keep_large_blocks
from gateway.app import listening, serving
from gateway.settings import Settings
from telemetry import logs
from telemetry.tracing import tracing


async def run(settings: Settings, provider: TracerProvider) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    try:
        listener = listening(settings)
    except OSError as failure:
        where = f"{settings.precall_webhook_host}:{settings.precall_webhook_port}"
        why = str(failure.strerror).partition(" (")[0]
        print(f"gateway: cannot listen on {where}: {why}", file=sys.stderr)
        return 1
    async with serving(settings, provider, listener) as address:
        print(f"gateway ready on {address}", flush=True)
        await stopped.wait()
    return 0


def main() -> int:
    """Returns the exit status: 2 where a setting is missing or malformed."""
    try:
        settings = environment.read(Settings, os.environ)
        logs.configure("gateway", level=settings.log_level, form=settings.log_format)
        keep_large_blocks()
        with tracing("gateway", os.environ) as provider:
            return uvloop.run(run(settings, provider))
    except environment.EnvironmentInvalid as fault:
        print(f"gateway: {fault}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
