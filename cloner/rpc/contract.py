"""The gRPC services that are served here, by their names on the wire."""

from precall.v1 import cloning_pb2

__all__ = ["HEALTH", "METHODS", "SERVICE", "path"]

DESCRIPTION = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"]
SERVICE: str = DESCRIPTION.full_name
METHODS = tuple(DESCRIPTION.methods)
"""The descriptions of its methods."""

# How the path of a health check begins.
HEALTH = "/grpc.health.v1.Health/"


def path(method: str) -> str:
    """The path of a method of ours, as a call names it."""
    return f"/{SERVICE}/{method}"
