"""The gRPC services that are served here, by their names on the wire, and what handles their calls."""

from typing import Any, TypeAlias

import grpc
from precall.v1 import cloning_pb2

__all__ = ["HEALTH", "METHODS", "SERVICE", "Context", "Handler", "path", "streamed"]

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# The type stubs of grpc's handlers leave out aio.
Handler: TypeAlias = Any

DESCRIPTION = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"]
SERVICE: str = DESCRIPTION.full_name
METHODS = tuple(DESCRIPTION.methods)
"""The descriptions of its methods."""

# How the path of a health check begins.
HEALTH = "/grpc.health.v1.Health/"


def path(method: str) -> str:
    """The path of a method of ours, as a call names it."""
    return f"/{SERVICE}/{method}"


def streamed(behavior: Any, like: Handler) -> Handler:
    """A handler for the same messages as `like`, whose requests come as a stream."""
    made = (
        grpc.stream_stream_rpc_method_handler
        if like.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return made(
        behavior,
        request_deserializer=like.request_deserializer,
        response_serializer=like.response_serializer,
    )
