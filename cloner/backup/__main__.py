"""`precall-registry`, which is also `python -m cloner.backup`."""

import os
import sys

from environment import drop_errors
from environment.memory import importing
from environment.streams import open_missing_streams
from telemetry.variables import drop_unusable

__all__ = ["main"]


def main() -> int:
    """The exit status: 0 if it was done, 1 if it cannot be as things are, 2 for what cannot be right."""
    open_missing_streams()
    # The registry imports OpenTelemetry, which would raise on these. Nothing is traced, so nothing is said.
    drop_unusable(os.environ)
    with importing():
        from cloner.backup.command import main as command
    try:
        return command()
    finally:
        drop_errors()


if __name__ == "__main__":
    sys.exit(main())
