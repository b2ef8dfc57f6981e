"""What spans and metrics have in common when they are sent over OTLP.

A collector is spoken to directly: a proxy that `HTTP_PROXY` names is for the internet, and would see
everything that is sent.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import grpc
from msgspec import Struct

if TYPE_CHECKING:
    import requests

__all__ = [
    "DIRECTLY",
    "NOT_TRIED",
    "LastTry",
    "NotingGrpc",
    "Signal",
    "compression",
    "is_over_grpc",
    "names_endpoint",
    "session",
]

Signal = Literal["TRACES", "METRICS"]

NOT_TRIED = "not tried"
"""Why something was not sent for which there was no try, such as a batch that is too large."""

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


class LastTry(Struct):
    """How the last try to send something ended, in a word that holds no URL and no text of an exception."""

    why: str = NOT_TRIED
    """A status of HTTP or gRPC, or the type of what was raised."""


def session(last: LastTry) -> "requests.Session":
    """How it is sent over HTTP."""
    import requests

    class Noting(requests.Session):
        """Notes how each try ended."""

        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            try:
                answer = super().request(*args, **kwargs)
            except Exception as failure:
                last.why = type(failure).__qualname__
                raise
            last.why = str(answer.status_code)
            return answer

    made = Noting()
    made.trust_env = False
    return made


class NotingGrpc:
    """A mixin that stands before an SDK exporter over gRPC, and notes how each try ended."""

    last: LastTry
    _client: Any

    def _initialize_channel_and_stub(self) -> None:
        # The exporter, which has it, calls it as it is made, and for each new connection.
        super()._initialize_channel_and_stub()  # type: ignore[misc]
        self._client = _Noting(self._client, self.last)


class _Noting:
    def __init__(self, client: Any, last: LastTry) -> None:
        self._client = client
        self._last = last

    def Export(self, **request: Any) -> Any:  # noqa: N802 - its name in the protocol
        try:
            return self._client.Export(**request)
        except grpc.RpcError as failure:
            self._last.why = failure.code().name
            raise


def _named(environ: Mapping[str, str], signal: Signal, name: str) -> str | None:
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}")
