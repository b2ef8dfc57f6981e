"""Sends a delivery to the cloner, and holds no byte of it longer than that takes.

On the wire a request is a stream of one message. Sent as a stream, it is let go as soon as it has left;
sent as one, gRPC keeps it until there is an answer, and the cloner works for seconds.
"""

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from precall.v1 import cloning_pb2
from precall.v1.cloning_pb2 import PrepareCallRequest, PrepareCallResponse

from gateway.body import Share

__all__ = ["Upload", "uploaded", "uploading"]

Upload: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[bytes, PrepareCallResponse]"

SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name
# What is sent, and gRPC's own copy of it.
COPIES = 2


def uploading(channel: grpc.aio.Channel) -> Upload:
    """The method PrepareCall, whose request comes in bytes."""
    return channel.stream_unary(
        f"/{SERVICE}/PrepareCall", response_deserializer=PrepareCallResponse.FromString
    )


def uploaded(request: PrepareCallRequest, share: Share) -> AsyncIterator[bytes]:
    """The request, on its way; `share` is what is held of it. Raises BodyError where that does not fit."""
    wire = [request.SerializeToString()]
    share.hold(COPIES * len(wire[0]))

    async def once() -> AsyncIterator[bytes]:
        yield wire.pop()
        share.end()

    return once()
