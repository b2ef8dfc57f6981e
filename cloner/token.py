"""The token that every call must carry, where the server has one."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from cloner.status import Unauthenticated, answer_failure
from environment import Secret

__all__ = ["TokenCheck"]

# Whoever asks for its health may not know the token; whoever asks what it serves must.
OPEN = "/grpc.health.v1.Health/"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer <token>`, before anything of them is looked at.

    Any of the tokens will do, so that one can take the place of another while both are in use.
    """

    def __init__(self, tokens: Sequence[Secret]) -> None:
        self._expected = tuple(f"Bearer {token.reveal()}".encode() for token in tokens)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", b"")
        if isinstance(given, str):
            given = given.encode()
        # Each is compared, so that the time tells nothing of which one fits.
        allowed = sum(hmac.compare_digest(given, expected) for expected in self._expected) > 0
        if handler is None or allowed or str(handler_call_details.method).startswith(OPEN):
            return handler

        # The request stays bytes: nobody unknown gets anything parsed.
        if handler.response_streaming or handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse_stream)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_request: Any, context: Any) -> bytes:
    answer_failure(context, Unauthenticated())
    return b""


async def _refuse_stream(_requests: Any, context: Any) -> None:
    answer_failure(context, Unauthenticated())
