"""What spans and metrics have in common when they are sent over OTLP.

A collector is spoken to directly: a proxy that `HTTP_PROXY` names is for the internet, and would see
everything that is sent.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import grpc

if TYPE_CHECKING:
    import requests

__all__ = ["DIRECTLY", "Signal", "compression", "is_over_grpc", "names_endpoint", "session"]

Signal = Literal["TRACES", "METRICS"]

# The SDK's type of the options does not allow numbers.
DIRECTLY = cast("tuple[tuple[str, str]]", (("grpc.enable_http_proxy", 0),))


def names_endpoint(environ: Mapping[str, str], signal: Signal) -> bool:
    """Whether the environment says where the signal goes."""
    return _named(environ, signal, "ENDPOINT") is not None


def is_over_grpc(environ: Mapping[str, str], signal: Signal) -> bool:
    """Whether the signal goes over gRPC, and not over HTTP."""
    return _named(environ, signal, "PROTOCOL") == "grpc"


def compression(environ: Mapping[str, str], signal: Signal) -> grpc.Compression:
    """How it is compressed on its way over gRPC."""
    gzip = _named(environ, signal, "COMPRESSION") == "gzip"
    return grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression


def session() -> "requests.Session":
    """How it is sent over HTTP."""
    import requests

    made = requests.Session()
    made.trust_env = False
    return made


def _named(environ: Mapping[str, str], signal: Signal, name: str) -> str | None:
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}")
