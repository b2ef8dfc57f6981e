"""Decides which calls are let in, by token, right and the client's limit, before their requests are read."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import grpc
import structlog

from cloner.clients import ANYBODY, Client, Clients, Right, calling
from cloner.measures import UNMEASURED, Measures
from cloner.refusals import ClientOverloaded, PermissionDenied, Refused, Unauthenticated
from cloner.rpc.contract import HEALTH, METHODS, Context, Handler, path, streamed
from cloner.rpc.status import CallEnding, ending_of_call, refuse
from cloner.rpc.usage import Quota, own_quota
from telemetry.facts import log_context
from telemetry.rpc import status_of

__all__ = ["AccessControl"]

log = structlog.get_logger()

OF_METHODS: Mapping[str, Right] = {
    "PrepareCall": "calls",
    "OpenCall": "calls",
    "CompleteCall": "calls",
    "CloneVoice": "voices",
    "ReplaceVoice": "voices",
    "SetConsent": "voices",
    "WatchVoice": "voices",
    "GetVoice": "read",
    "ListVoices": "read",
    "GetCall": "read",
    "ListCalls": "read",
    "GetLimits": "read",
    "GetUsage": "read",
    "DeleteVoice": "erase",
    "ForgetCaller": "erase",
}
# How often the client of an open stream is looked for among those that may call.
LOOK_SECONDS = 0.5
# This module cannot be imported unless every method of the service has its right.
RIGHTS: Mapping[str, Right] = {path(method.name): OF_METHODS[method.name] for method in METHODS}


class AccessControl(grpc.aio.ServerInterceptor):
    """Lets in the calls of known `clients`, each within its rights and its own limit.

    A call shows who it is by `authorization: Bearer <token>`. Where there are no clients at all,
    anybody may do everything.
    """

    def __init__(self, clients: Callable[[], Clients | None], measures: Measures = UNMEASURED) -> None:
        self._clients = clients
        self._measures = measures
        self._under_way: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        # A health check may come without a token; reflection may not.
        if handler is None or method.startswith(HEALTH):
            return handler
        call = self._judged(method, handler, handler_call_details.invocation_metadata)
        # Handled as a stream of requests that is never read, so that a stranger's body is not taken in.
        return streamed(call, handler)

    def knows(self, metadata: Any) -> bool:
        """Whether a call with such metadata is a client's."""
        return self._client(metadata) is not None

    def _client(self, metadata: Any) -> Client | None:
        clients = self._clients()
        if clients is None:
            return ANYBODY
        given = dict(metadata or ()).get("authorization", b"")
        if isinstance(given, str):
            given = given.encode()
        # The name of the scheme may be in any case (RFC 9110, section 11.1).
        scheme, _, token = given.strip().partition(b" ")
        found = clients.known_by(token.strip())
        return found if scheme.lower() == b"bearer" else None

    def _judged(self, method: str, handler: Handler, metadata: Any) -> Any:
        """Wraps a handler, so that only clients that have the right reach it."""
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
        client = self._client(metadata)
        right = RIGHTS.get(method)
        # A stranger chooses the name of a method that is not served, so it is not logged.
        about_call = {"method": method.lstrip("/")} if right is not None else {}
        if client is not None:
            about_call["client"] = client.name

        async def call(requests: Any, context: Context) -> Any:
            with (
                log_context(**about_call),
                self._measured(client, method.lstrip("/") if right is not None else "_OTHER"),
            ):
                try:
                    allowed = _allowed(client, right)
                    with (
                        self._place(allowed),
                        _erasure_logged(context) if right == "erase" else nullcontext(),
                    ):
                        calling.set(allowed)
                        if allowed.max_requests is not None:
                            others = self._under_way[allowed.name] - 1
                            own_quota.set(Quota(others, allowed.max_requests))
                        answering = behavior(requests, context)
                        if handler.response_streaming:
                            return await self._while_allowed(answering, metadata, right)
                        return await answering
                except Refused as failure:
                    # The token is never logged: one that is refused here may be good elsewhere.
                    refuse(context, failure, warn=True)
                    return None

        return call

    async def _while_allowed(self, answering: Any, metadata: Any, right: Right | None) -> Any:
        """Answers with a stream for as long as its client is known and has the right."""
        work = asyncio.ensure_future(answering)
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_SECONDS))[0]:
                _allowed(self._client(metadata), right)
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    @contextmanager
    def _measured(self, client: Client | None, method: str) -> Iterator[None]:
        """Measures a call by how it ends."""
        ending = CallEnding()
        token = ending_of_call.set(ending)
        try:
            yield
        except asyncio.CancelledError:
            ending.outcome = "abandoned"
            raise
        finally:
            ending_of_call.reset(token)
            name = None if client is None else client.name
            self._measures.request_ended(name, method, ending.outcome, ending.reason, parts=ending.parts)

    @contextmanager
    def _place(self, client: Client) -> Iterator[None]:
        """Takes one of the client's places for the block. Raises ClientOverloaded."""
        if client.max_requests is not None and self._under_way[client.name] >= client.max_requests:
            raise ClientOverloaded(limit=client.max_requests)
        self._under_way[client.name] += 1
        try:
            yield
        finally:
            self._under_way[client.name] -= 1


def _allowed(client: Client | None, right: Right | None) -> Client:
    """The client, if it is known and has the right. Raises Unauthenticated and PermissionDenied."""
    if client is None:
        raise Unauthenticated
    if right is not None and right not in client.may:
        raise PermissionDenied(client=client.name, right=right)
    return client


@contextmanager
def _erasure_logged(context: Context) -> Iterator[None]:
    """Logs an erasure, also if it fails: an erasure that was cancelled may have deleted some voices."""
    code = "CANCELLED"
    try:
        yield
        code = status_of(context).name
    finally:
        log.info("erasure", code=code)
