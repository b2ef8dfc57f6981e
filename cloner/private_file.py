"""Writes files that nobody but their owner may read, whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["publishing"]


@contextmanager
def publishing(path: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """A file that only its owner may read. It gets its name when the block is over and all is on the disk.

    Until then, and after a failure, the name is as it was. Raises FileExistsError if the name is taken and
    `replace` is not set, and any other OSError.
    """
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as failure:
        raise OSError(failure.errno, failure.strerror, str(path)) from None
    fresh = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - by its descriptor
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            fresh.replace(path)
        else:
            _name(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        fresh.unlink(missing_ok=True)


def _name(fresh: Path, path: Path) -> None:
    """Gives a file its name, unless another has it by now."""
    try:
        os.link(fresh, path)
    except OSError as failure:
        if failure.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise OSError(failure.errno, failure.strerror, str(path)) from None
        # The file system has no hard links.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        fresh.rename(path)
