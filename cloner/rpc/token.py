"""The token that every call must carry, where the server has one."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from cloner.rpc.status import Unauthenticated, answer_failure
from environment import Secret

__all__ = ["TokenCheck"]

# Whoever asks for its health may not know the token; whoever asks what it serves must.
OPEN = "/grpc.health.v1.Health/"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer <token>`, before anything of them is looked at.

    Any of the tokens will do, so that one can take the place of another while both are in use.
    """

    def __init__(self, tokens: Sequence[Secret]) -> None:
        self._expected = tuple(token.reveal().encode() for token in tokens)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", b"")
        if isinstance(given, str):
            given = given.encode()
        # The name of the scheme is written as one likes (RFC 9110, section 11.1).
        scheme, _, credential = given.strip().partition(b" ")
        credential = credential.strip()
        # Each is compared, so that the time tells nothing of which one fits.
        fitting = sum(hmac.compare_digest(credential, expected) for expected in self._expected)
        allowed = scheme.lower() == b"bearer" and fitting > 0
        if handler is None or allowed or str(handler_call_details.method).startswith(OPEN):
            return handler

        # A stream of requests, of which none is asked for: of a stranger only headers are taken in.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return grpc.stream_unary_rpc_method_handler(_refuse)


async def _refuse(_requests: Any, context: Any) -> None:
    answer_failure(context, Unauthenticated())
