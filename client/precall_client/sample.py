"""A recording, as bytes or as the path of a file."""

import asyncio
import os
from pathlib import Path
from typing import TypeAlias

from precall.v1 import cloning_pb2 as pb

__all__ = ["RequestWithSample", "Sample", "content_of", "wire_of"]

# The wire type of bytes, and where the number of the field begins in a tag.
BYTES, NUMBER = 2, 3

Sample: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""The recording itself, or the path of its file."""

RequestWithSample: TypeAlias = pb.PrepareCallRequest | pb.CloneVoiceRequest | pb.ReplaceVoiceRequest


async def content_of(sample: Sample) -> bytes:
    """The recording. Raises OSError for a file that cannot be read; the server judges the content."""
    if isinstance(sample, bytes):
        return sample
    if isinstance(sample, bytearray | memoryview):
        return bytes(sample)
    return await asyncio.to_thread(Path(sample).read_bytes)


def wire_of(request: RequestWithSample, sample: bytes) -> bytes:
    """The request with this sample, as it is sent.

    In the message itself the sample would be copied three times: into the message, into the output, and from
    there. On the wire fields may have any order, so this one is appended to all others.
    """
    if not sample:
        return request.SerializeToString()
    tag = request.DESCRIPTOR.fields_by_name["sample"].number << NUMBER | BYTES
    return b"".join((request.SerializeToString(), _varint(tag), _varint(len(sample)), sample))


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits in each byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))
