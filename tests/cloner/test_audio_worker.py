"""The file in which a sample is handed over to an audio worker."""

import os
import resource
from collections.abc import Iterator

import pytest

from cloner.audio.worker import SampleFile


@pytest.fixture
def file() -> Iterator[SampleFile]:
    """A file that holds nothing yet."""
    file = SampleFile()
    yield file
    file.close()


def content(file: SampleFile) -> bytes:
    """What a worker would read."""
    return os.pread(file.descriptor, 1 << 20, 0)


def test_shorter_sample(file: SampleFile) -> None:
    """Nothing is left of a sample behind a shorter one."""
    file.hold(b"the first sample")
    file.hold(b"the second")

    assert b"the second" == content(file)


def test_longer_sample(file: SampleFile) -> None:
    """A sample may be longer than the one before."""
    file.hold(b"the first")
    file.hold(b"the second sample")

    assert b"the second sample" == content(file)


def test_forgotten(file: SampleFile) -> None:
    """A sample that is forgotten takes no memory."""
    file.hold(bytes(1 << 20))
    file.forget()

    assert (0, 0) == (os.fstat(file.descriptor).st_size, os.fstat(file.descriptor).st_blocks)


def test_no_room(file: SampleFile) -> None:
    """Where there is no room for a whole sample, none of it is held."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.hold(bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert 0 == os.fstat(file.descriptor).st_size
