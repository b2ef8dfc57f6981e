"""`python -m gateway`: environment in, process out."""

import gc
import os
import sys

from environment import EnvironmentInvalid, read, remarks
from gateway.settings import Settings
from telemetry.variables import drop_unusable


def main() -> int:
    """The exit status: 0 after SIGTERM or SIGINT, 2 for a faulty setting, 1 if nothing can be served."""
    try:
        settings = read(Settings, os.environ)
    except EnvironmentInvalid as fault:
        print(f"gateway: {fault}", file=sys.stderr)
        return 2
    odd = [*remarks(settings, os.environ), *drop_unusable(os.environ)]

    # Imports make no garbage, and looking for it took a tenth of the time to start.
    gc.disable()
    # httpx 0.28 and structlog 26.1 import rich if it is installed, for a command line and for tracebacks that
    # no process here shows: that was another tenth. When they no longer do, this line can go.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # Only now, as OpenTelemetry reads some of its variables while it is imported.
    from environment.memory import collect_seldom, keep_large_blocks, spare_modules
    from gateway.process import run
    from telemetry import logs
    from telemetry.metrics import observing

    logs.configure("gateway", level=settings.log_level, form=settings.log_format)
    logs.log_remarks(odd)
    keep_large_blocks()
    collect_seldom()
    spare_modules()
    gc.enable()
    with observing("gateway", os.environ) as (tracers, meters):
        return run(settings, tracers, meters)


if __name__ == "__main__":
    sys.exit(main())
