"""`precall-registry`, which is also `python -m cloner.backup`."""

import os
import sys

from environment.memory import importing
from telemetry.variables import drop_unusable

__all__ = ["main"]


def main() -> int:
    """The exit status: 0 if it was done, 1 if it cannot be as things are, 2 for what cannot be right."""
    # The registry imports OpenTelemetry, which would raise on these. Nothing is traced, so nothing is said.
    drop_unusable(os.environ)
    with importing():
        from cloner.backup.command import main as command
    return command()


if __name__ == "__main__":
    sys.exit(main())
