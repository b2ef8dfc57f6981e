import os

import pytest

from tests.kit.python import python

PROGRAM = """
import asyncio, os, signal, uvloop
os.close({closed})
from environment.streams import open_missing_streams
open_missing_streams()
async def serve():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
uvloop.run(serve())
"""


@pytest.mark.parametrize("closed", [0, 1, 2])
async def test_closed_stream(closed: int) -> None:
    """A process without one of its standard streams ends as well as any other."""
    async with python("-c", PROGRAM.format(closed=closed), env={"PATH": os.environ["PATH"]}) as started:
        _, errors = await started.communicate()

    assert (0, b"") == (started.returncode, errors)


@pytest.mark.parametrize("arguments", ["gateway", "cloner", "cli nonsense"])
async def test_errors_on_a_full_disk(arguments: str) -> None:
    """The exit status tells a faulty setting, or a wrong call, also if the line about it cannot be written."""
    async with python(
        "-m", *arguments.split(), env={"PATH": os.environ["PATH"]}, redirected="2>/dev/full"
    ) as started:
        await started.communicate()

    assert 2 == started.returncode
