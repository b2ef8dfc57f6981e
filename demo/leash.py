"""`python -m demo.leash PARENT PROGRAM ...`: becomes the program, which is told to stop when PARENT dies.

Whatever ends the demo, even SIGKILL, none of its processes stays behind.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Does not return."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # An exec keeps this, and a fork loses it: it is about this process alone.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be told that this is wanted
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - what whoever started this wants to run


if __name__ == "__main__":
    main()
