"""Starts the gateway: environment in, process out."""

import asyncio
import os
import resource
import signal
import sys

import structlog
import uvloop
from msgspec import structs
from opentelemetry.sdk.trace import TracerProvider

import environment
from environment.memory import keep_large_blocks
from gateway.app import listening, serving
from gateway.settings import Settings
from telemetry import logs
from telemetry.tracing import tracing

# Descriptors that no client's connection needs: files, the cloner, traces, and those on their way out.
RESERVED_DESCRIPTORS = 128

log = structlog.get_logger()


def with_descriptors(settings: Settings) -> Settings:
    """The settings with no more connections than this process may have open; it is let have all it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.precall_max_connections + RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return settings
    most = max(1, allowed - RESERVED_DESCRIPTORS)
    log.warning("fewer connections than set, raise the limit of open files", most=most, open_files=allowed)
    return structs.replace(settings, precall_max_connections=most)


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
            return uvloop.run(run(with_descriptors(settings), provider))
    except environment.EnvironmentInvalid as fault:
        print(f"gateway: {fault}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
