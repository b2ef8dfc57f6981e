"""Sends a delivery to the cloner, and counts what is held of it meanwhile."""

from typing import TypeAlias

import grpc
from precall.v1 import cloning_pb2
from precall.v1.cloning_pb2 import PrepareCallRequest, PrepareCallResponse

from gateway.edge.body import Share

__all__ = ["Upload", "outgoing", "uploading"]

Upload: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, PrepareCallResponse]"

SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name
# What is sent, and gRPC's own copy of it.
COPIES = 2


def uploading(channel: grpc.aio.Channel) -> Upload:
    """The method PrepareCall, whose request comes in bytes.

    gRPC keeps a message for as long as a call lasts. As a message there would be a third copy.
    """
    return channel.unary_unary(
        f"/{SERVICE}/PrepareCall", response_deserializer=PrepareCallResponse.FromString
    )


def outgoing(request: PrepareCallRequest, share: Share) -> bytes:
    """The request as it is sent; `share` is what is held of it. Raises BodyError where that does not fit."""
    wire = request.SerializeToString()
    share.hold(COPIES * len(wire))
    return wire
