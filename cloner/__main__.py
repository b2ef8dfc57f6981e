"""`python -m cloner`: environment in, process out."""

import asyncio
import os
import signal
import sys

import structlog
import uvloop
from opentelemetry.sdk.trace import TracerProvider

from cloner.audio import InspectionUnavailable
from cloner.key import KeyUnavailable
from cloner.registry import RegistryUnavailable
from cloner.server import AddressInUse, serving
from cloner.settings import Settings
from environment import EnvironmentInvalid, read
from environment.memory import keep_large_blocks
from telemetry import logs
from telemetry.tracing import tracing


def main() -> int:
    """The exit status: 0 after SIGTERM or SIGINT, 2 for a faulty setting, 1 if nothing can be served."""
    try:
        settings = read(Settings, os.environ)
        logs.configure("cloner", level=settings.log_level, form=settings.log_format)
        keep_large_blocks()
        with tracing("cloner", os.environ) as provider:
            return uvloop.run(_serve(settings, provider))
    except EnvironmentInvalid as fault:
        print(f"cloner: {fault}", file=sys.stderr)
        return 2


async def _serve(settings: Settings, provider: TracerProvider) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    address = f"{settings.cloner_host}:{settings.cloner_port}"
    try:
        async with serving(settings, provider) as port:
            structlog.get_logger().info("speaking to", url=settings.elevenlabs_base_url)
            print(f"cloner ready on {settings.cloner_host}:{port}", flush=True)
            await stopped.wait()
    except AddressInUse:
        print(f"cloner: cannot serve on {address}; is it in use?", file=sys.stderr)
        return 1
    except (InspectionUnavailable, KeyUnavailable, RegistryUnavailable) as failure:
        print(f"cloner: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
