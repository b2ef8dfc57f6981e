"""`python -m cloner`: environment in, process out."""

import gc
import os
import sys

# Otherwise gRPC writes a line to the standard error for each connection that is no client of ours. It reads
# this variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cloner.settings import Settings
from environment import EnvironmentInvalid, read, remarks
from telemetry.variables import drop_unusable


def main() -> int:
    """The exit status: 0 after SIGTERM or SIGINT, 1 if nothing can be served.

    2 for a faulty setting, or a database of another release.
    """
    try:
        settings = read(Settings, os.environ)
    except EnvironmentInvalid as fault:
        print(f"cloner: {fault}", file=sys.stderr)
        return 2
    odd = [*remarks(settings, os.environ), *drop_unusable(os.environ)]

    # Imports make no garbage, and looking for it took a tenth of the time to start.
    gc.disable()
    # httpx 0.28 and structlog 26.1 import rich if it is installed, for a command line and for tracebacks that
    # no process here shows: that was another tenth. When they no longer do, this line can go.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # Only now, as OpenTelemetry reads some of its variables while it is imported.
    from cloner.process import run
    from environment.memory import collect_seldom, keep_large_blocks, spare_modules
    from telemetry import logs
    from telemetry.metrics import observing

    logs.configure("cloner", level=settings.log_level, form=settings.log_format)
    logs.log_remarks(odd)
    keep_large_blocks()
    collect_seldom()
    spare_modules()
    gc.enable()
    with observing("cloner", os.environ) as (tracers, meters):
        return run(settings, tracers, meters)


if __name__ == "__main__":
    sys.exit(main())
