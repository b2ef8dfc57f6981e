"""`python -m cloner`: environment in, process out."""

import os
import sys

# Otherwise gRPC writes a line to the standard error for each connection that is no client of ours. It reads
# this variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cloner.settings import Settings
from environment import EnvironmentInvalid, complain, read, remarks
from environment.memory import importing, keep_large_blocks
from environment.streams import open_missing_streams
from telemetry.variables import drop_unusable


def main() -> int:
    """The exit status: 0 after SIGTERM or SIGINT, 1 if nothing can be served.

    2 for a faulty setting, or a database of another release or another key.
    """
    open_missing_streams()
    try:
        settings = read(Settings, os.environ)
    except EnvironmentInvalid as fault:
        complain(f"cloner: {fault}")
        return 2
    odd = [*remarks(settings, os.environ), *drop_unusable(os.environ)]

    # Only now, as OpenTelemetry reads some of its variables while it is imported.
    with importing():
        from cloner.process import run
        from telemetry import logs
        from telemetry.metrics import observing
        from telemetry.output import Output
        from telemetry.tracing import service_name

    with Output() as output:
        called = service_name("cloner", os.environ)
        logs.configure(called, level=settings.log_level, form=settings.log_format, output=output)
        logs.log_remarks(odd)
        keep_large_blocks()
        with observing("cloner", os.environ) as (tracers, meters):
            return run(settings, tracers, meters, output)


if __name__ == "__main__":
    sys.exit(main())
