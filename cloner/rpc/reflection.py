"""Server reflection: what is served here, for tools that know only the address."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

__all__ = ["serve_reflection"]

# The two versions have the same messages and differ only in the name of the package. Tools ask for this one
# first, and some never ask for the other.
V1 = "grpc.reflection.v1.ServerReflection"
KNOWN = descriptor_pool.Default()


class Symbols:
    """The descriptor pool, extended to find methods, which protobuf's pool does not."""

    def __getattr__(self, name: str) -> Any:
        return getattr(KNOWN, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - as the pool names it
        """The file that describes something. Raises KeyError."""
        try:
            return KNOWN.FindFileContainingSymbol(symbol)
        except KeyError:
            return KNOWN.FindMethodByName(symbol).containing_service.file


def serve_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serves reflection of these services, as v1 and as v1alpha."""
    names, symbols = (*services, reflection.SERVICE_NAME), Symbols()
    reflection.enable_server_reflection(names, server, pool=symbols)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names, pool=symbols).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler}),)
    )
