"""Says to the cloner who we are."""

# Some of grpc's generics are generic in its type stubs alone.
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from environment import Secret

__all__ = ["Credential", "UploadCredential"]


class Credential(grpc.aio.UnaryUnaryClientInterceptor):
    """Puts `authorization: Bearer <token>` into the metadata of every call."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, Any], Awaitable[grpc.aio.UnaryUnaryCall[Any, Any]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> grpc.aio.UnaryUnaryCall[Any, Any]:
        return await continuation(_shown(client_call_details, self._token), request)


class UploadCredential(grpc.aio.StreamUnaryClientInterceptor):
    """The same for calls whose request is a stream: gRPC takes an interceptor for one kind alone."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    async def intercept_stream_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, Any], Awaitable[grpc.aio.StreamUnaryCall[Any, Any]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> grpc.aio.StreamUnaryCall[Any, Any]:
        return await continuation(_shown(client_call_details, self._token), request_iterator)


def _shown(details: grpc.aio.ClientCallDetails, token: Secret) -> grpc.aio.ClientCallDetails:
    given = details.metadata or ()
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=grpc.aio.Metadata(*given, ("authorization", f"Bearer {token.reveal()}")),
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )
