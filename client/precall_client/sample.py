"""A recording, as bytes or as the path of a file."""

import asyncio
import os
from pathlib import Path
from typing import TypeAlias

__all__ = ["Sample", "content_of"]

Sample: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""The recording itself, or the path of its file."""


async def content_of(sample: Sample) -> bytes:
    """The recording. Raises OSError for a file that cannot be read; the server judges the content."""
    if isinstance(sample, bytes):
        return sample
    if isinstance(sample, bytearray | memoryview):
        return bytes(sample)
    return await asyncio.to_thread(Path(sample).read_bytes)
