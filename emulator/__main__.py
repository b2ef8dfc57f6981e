"""Environment in, process out: `python -m emulator`.

| variable | default | meaning |
| --- | --- | --- |
| `EMULATOR_HOST`, `EMULATOR_PORT` | 127.0.0.1, 8090 | where to listen; port 0 is any free one |
| `EMULATOR_API_KEY` | emulator-key | what `xi-api-key` must say |
| `EMULATOR_CREATE_LATENCY_SECONDS` | 2-5 | how long making a voice takes; one number or a range |
| `EMULATOR_LATENCY_SECONDS` | 0.05-0.2 | how long every other call takes |
| `EMULATOR_VOICE_LIMIT` | 30 | voice slots |
| `EMULATOR_MONTHLY_LIMIT` | 95 | voices added or edited in a month, or `none` |
| `LOG_LEVEL` | INFO | to standard error |

One line on standard output says that it serves, and where. SIGTERM and SIGINT end it with exit status 0, a
malformed variable with 2, an address that cannot be had with 1.
"""

import asyncio
import gc
import logging
import os
import signal
import sys

from emulator.server import Emulator
from emulator.settings import Settings, SettingsError, from_environ, oddities


async def serve(settings: Settings) -> None:
    """Serve until a signal comes."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with Emulator(settings).listening(settings.host, settings.port) as url:
        print(f"emulator ready on {url}", flush=True)
        await stop.wait()


def main() -> int:
    """Run the process, and say how it ended."""
    try:
        settings = from_environ(os.environ)
    except SettingsError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("uvicorn", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for told in oddities(os.environ):
        logging.getLogger("emulator").warning(told)
    # Modules stay: the collector need not go through them, not even when the process ends.
    gc.freeze()
    try:
        asyncio.run(serve(settings))
    except OSError as error:
        print(
            f"emulator: cannot listen on {settings.host}:{settings.port}: {error.strerror}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
