"""Says to the cloner who we are."""

# Some of grpc's generics are generic in its type stubs alone.
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from environment import Secret

__all__ = ["Credential"]


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
        given = client_call_details.metadata or ()
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout,
            metadata=grpc.aio.Metadata(*given, ("authorization", f"Bearer {self._token.reveal()}")),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request)
