"""Limits the calls that are handled at once: their number, their bytes, and the time a body may take.

gRPC reads a unary request to its end before any of our code runs. On the wire such a request is a stream of
one message, so it is registered as a stream here and read when its turn comes. Until then flow control stops
the sender after some 64 KB.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cloner.memory_budget import MemoryBudget, Share
from cloner.provider.failures import FAIR_SECONDS, DeadlineTooShort
from cloner.refusals import (
    BodyTimeout,
    BodyTooLarge,
    MalformedMessage,
    MetadataTooLarge,
    MethodUnknown,
    Overloaded,
    Refused,
    Stopping,
    TooManyWatchers,
)
from cloner.rpc.answering import HEADROOM_SECONDS
from cloner.rpc.contract import HEALTH, METHODS, Context, Handler, path
from cloner.rpc.late import extended_if_late
from cloner.rpc.status import refuse
from cloner.rpc.usage import Quota

__all__ = ["Admission"]

WITH_SAMPLE = frozenset(
    path(method.name) for method in METHODS if "sample" in method.input_type.fields_by_name
)
# Everything else may take neither all places nor all memory: some are left for calls.
OF_CALLS = frozenset(map(path, ("PrepareCall", "OpenCall", "CompleteCall")))
WATCH_VOICE = path("WatchVoice")

# How long a request waits for room in memory before it is refused.
ROOM_SECONDS = 2.0
# How much longer a body may take if this process stood still as its time ended: enough to read what came
# meanwhile, and what its sender could not send then.
STOOD_STILL_SECONDS = 0.5
# How many requests without a sample are read at once, and how many streams are open.
SMALL_READS = 4
MOST_STREAMS = 64
# How many clients may watch the health, as each client does that balances its calls. Watching needs no token,
# so watchers have a limit of their own and keep no calls out.
MOST_WATCHES = 256
MAX_METADATA_BYTES = 16_384


class Places:
    """Counts the calls of one kind that are under way, `most` at once.

    A refusal states the limit, under the name of the kind.
    """

    def __init__(self, most: int, full: type[Refused] = Overloaded, *, kind: str = "requests") -> None:
        self.most = most
        self._free = most
        self._full = full
        self._kind = kind

    @property
    def taken(self) -> int:
        """How many are under way."""
        return self.most - self._free

    @contextmanager
    def one(self) -> Iterator[None]:
        """Takes a place for as long as the block lasts. Raises Overloaded, or `full`, if none is free."""
        if self._free <= 0:
            raise self._full(**{f"limit_{self._kind}": str(self.most)})
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Admission(grpc.aio.ServerInterceptor):
    """Lets in as many calls as the limits allow. `memory` is the budget of their bodies.

    At most `most_calls` with a sample are under way, and as many without one, which so never wait for
    samples; both leave room to what calls need. Beside them at most `most_watches` streams watch voices. A
    body may have `max_bytes` and must arrive within `body_seconds`. If calls are `guarded` by tokens,
    strangers can still ask for the health, and get an answer without their bodies being read.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        *,
        most_calls: int,
        most_watches: int,
        max_bytes: int,
        body_seconds: float,
        guarded: bool,
    ) -> None:
        self._memory = memory
        # The size from which gRPC itself breaks off a message, with a status of its own.
        self.hard_limit = 2 * max_bytes
        self._max_bytes = max_bytes
        self._body_seconds = body_seconds
        self._guarded = guarded
        self._small_memory = MemoryBudget(
            SMALL_READS * self.hard_limit, for_others=(SMALL_READS - 1) * self.hard_limit
        )
        self._samples = Places(most_calls)
        self._small = Places(most_calls)
        left = max(1, most_calls - max(1, most_calls // 16))
        self._samples_of_others, self._small_of_others = Places(left), Places(left)
        self._health = Places(most_calls)
        self._streams = Places(MOST_STREAMS, kind="streams")
        self._watches = Places(MOST_WATCHES, TooManyWatchers, kind="streams")
        self._voice_watches = Places(most_watches, kind="streams")
        self._closed = asyncio.Event()

    @property
    def quota(self) -> Quota:
        """How many calls with a sample are under way, and how many may be."""
        return Quota(self._samples.taken, self._samples.most)

    def close(self) -> None:
        """Ends the open streams, which would otherwise end only when their callers leave.

        Calls that have come in are served. The server itself takes no more calls: it sends GOAWAY, after
        which clients send elsewhere, by themselves, the calls that nobody has begun to handle.
        """
        self._closed.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        size = sum(len(key) + len(value) for key, value in handler_call_details.invocation_metadata or ())
        if handler is None:
            return grpc.stream_unary_rpc_method_handler(_refusing(MethodUnknown()))
        if size > MAX_METADATA_BYTES:
            too_large = _refusing(MetadataTooLarge(limit=MAX_METADATA_BYTES, actual=size))
            if handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(too_large)
            return grpc.stream_unary_rpc_method_handler(too_large)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(method, handler),
                request_deserializer=handler.request_deserializer if handler.request_streaming else None,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(method, handler), response_serializer=handler.response_serializer
        )

    def _unary(self, method: str, handler: Handler) -> Any:
        places, memory = self._places(method), self._memory if method in WITH_SAMPLE else self._small_memory

        async def call(_requests: Any, context: Context) -> Any:
            share = None
            try:
                with ExitStack() as taken:
                    for kind in places:
                        taken.enter_context(kind.one())
                    request, share = await self._received(method, handler, context, memory)
                    return await handler.unary_unary(request.pop(), context)
            except Exception as failure:  # noqa: BLE001 - the outermost boundary: whatever it is, it ends here
                refuse(context, failure)
                return None
            finally:
                if share is not None:
                    share.give_back()

        return call

    def _streaming(self, method: str, handler: Handler) -> Any:
        async def call(requests: Any, context: Context) -> None:
            try:
                self._open()
                with self._kind_of_stream(method).one():
                    if handler.request_streaming:
                        await self._piped(handler.stream_stream(requests, context), context)
                        return
                    request, share = await self._received(method, handler, context, self._small_memory)
                    share.give_back()
                    await self._piped(handler.unary_stream(request.pop(), context), context)
            except DecodeError:
                # A stream's messages are read by its behavior.
                refuse(context, MalformedMessage())
            except Exception as failure:  # noqa: BLE001 - as above
                refuse(context, failure)

        return call

    async def _piped(self, answers: Any, context: Context) -> None:
        """Passes on the answers of a behavior until it ends, or until this process stops."""

        async def hand_on() -> None:
            if inspect.isasyncgen(answers):
                async for answer in answers:
                    await context.write(answer)
            else:
                await answers

        work, closed = asyncio.create_task(hand_on()), asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((work, closed), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Stopping
            await work
        finally:
            closed.cancel()
            work.cancel()
            await asyncio.gather(work, closed, return_exceptions=True)

    def _open(self) -> None:
        if self._closed.is_set():
            raise Stopping

    def _kind_of_stream(self, method: str) -> Places:
        if method == WATCH_VOICE:
            return self._voice_watches
        return self._watches if method.startswith(HEALTH) else self._streams

    def _places(self, method: str) -> tuple[Places, ...]:
        """The places that a call of this method takes."""
        if method.startswith(HEALTH):
            return (self._health,)
        if method in WITH_SAMPLE:
            return (self._samples,) if method in OF_CALLS else (self._samples, self._samples_of_others)
        return (self._small,) if method in OF_CALLS else (self._small, self._small_of_others)

    async def _received(
        self, method: str, handler: Handler, context: Context, memory: MemoryBudget
    ) -> tuple[list[Any], Share]:
        """The request, and the memory that it takes.

        The request is returned in a list, so that nothing here keeps it alive: its handler takes the sample
        from it and frees the message, which is as large again.
        """
        if self._guarded and method.startswith(HEALTH):
            return [handler.request_deserializer(b"")], Share(memory, 0)
        left = context.time_remaining()
        patience = ROOM_SECONDS if left is None else min(ROOM_SECONDS, left / 2)
        try:
            share = await memory.wait(self.hard_limit, call=method in OF_CALLS, seconds=patience)
        except Overloaded:
            # As for a late answer: if a client gave less time than any answer takes, that is at fault.
            if left is not None and left < FAIR_SECONDS:
                raise DeadlineTooShort from None
            raise
        try:
            raw = await self._read(context)
            share.resize(len(raw))
            try:
                return [handler.request_deserializer(raw)], share
            except DecodeError:
                raise MalformedMessage from None
        except BaseException:
            share.give_back()
            raise

    async def _read(self, context: Context) -> bytes:
        left = context.time_remaining()
        # Whoever gave less time than a body may take is answered before that time is up.
        short = left is not None and left - HEADROOM_SECONDS < self._body_seconds
        seconds = self._body_seconds if left is None or not short else max(left / 2, left - HEADROOM_SECONDS)
        try:
            async with (
                asyncio.timeout(seconds) as clock,
                extended_if_late(clock, HEADROOM_SECONDS / 4 if short else STOOD_STILL_SECONDS),
            ):
                raw = await context.read()
        except TimeoutError:
            raise (DeadlineTooShort() if short else BodyTimeout()) from None
        if not isinstance(raw, bytes):  # the end of a stream that held no message
            raise MalformedMessage
        if len(raw) > self._max_bytes:
            raise BodyTooLarge(limit=self._max_bytes, actual=len(raw))
        return raw


def _refusing(failure: Exception) -> Any:
    async def call(_requests: Any, context: Context) -> None:
        refuse(context, failure)

    return call
