"""Where tests keep what they write: in memory, where there is some to be had."""

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ENOUGH = 2 << 30  # bytes; containers often have 64 MB there


def keep_in_memory() -> None:
    """Makes temporary files of this process and its children land in memory, unless TMPDIR says where."""
    if "TMPDIR" not in os.environ and _is_usable():
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def _is_usable() -> bool:
    # Root runs Postgres from a copy of its programs.
    return (
        os.access(MEMORY, os.W_OK)
        and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(MEMORY).free > ENOUGH
    )
