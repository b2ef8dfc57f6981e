"""The connection to the cloners: its channels, which call uses which, and certificates that change."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from precall.v1 import cloning_pb2 as pb

from precall_client.transport import KEPT_BYTES, Contents, Tls, TlsInvalid, opened
from precall_client.upload import uploaded

__all__ = ["SERVICE", "Connection"]

log = logging.getLogger("precall_client")

SERVICE = pb.DESCRIPTOR.services_by_name["CloningService"]
LOOK_SECONDS = 1.0
# How long a call that began before certificates changed may go on.
CHANGE_SECONDS = 120.0

# The longest deadline that gRPC is given: with one of centuries it ends a call at once.
LONGEST_SECONDS = 86_400.0

Metadata = list[tuple[str, str]]


class Connection:
    """The channels to a target, on the running loop. A failed call raises gRPC's own AioRpcError."""

    def __init__(self, target: str, tls: Tls | None, *, max_message_bytes: int) -> None:
        self._target = target
        self._tls = tls
        self._max_message_bytes = max_message_bytes
        self._contents = tls.read() if tls is not None else None
        self._open(self._contents)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel in use now for all but large requests."""
        return self._channel

    async def send(self, name: str, wire: bytes, seconds: float, metadata: Metadata) -> Any:
        """The one answer of the RPC of that name."""
        seconds = _deadline(seconds)
        if len(wire) <= KEPT_BYTES:
            return await self._methods[name](wire, timeout=seconds, metadata=metadata)
        request = [wire]
        del wire

        def begin(left: float) -> Any:
            return self._large[name](timeout=left, metadata=metadata)

        return await uploaded(begin, request, seconds)

    def watch_voice(
        self, wire: bytes, seconds: float, metadata: Metadata
    ) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """A call of WatchVoice, whose answers are iterated over as they come."""
        return self._watch_voice(wire, timeout=_deadline(seconds), metadata=metadata)

    def _open(self, contents: Contents | None) -> None:
        self._channel, self._channel_of_large = (
            opened(
                self._target,
                contents,
                server_name=self._tls.server_name if self._tls is not None else None,
                max_message_bytes=self._max_message_bytes,
                retries=retries,
            )
            for retries in (True, False)
        )
        # gRPC keeps the request of such a call until it ends. It is passed as bytes, not copied as a message.
        self._methods = self._callables(self._channel.unary_unary)
        # On the wire a stream of one message is the same, but gRPC frees the message once it is sent. Its
        # channel connects at the first such call.
        self._large = self._callables(self._channel_of_large.stream_unary)
        watch = SERVICE.methods_by_name["WatchVoice"]
        self._watch_voice: Callable[..., grpc.aio.UnaryStreamCall[Any, Any]] = self._callable(
            self._channel.unary_stream, watch
        )

    def _callables(self, made: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        """The methods of the stub that have one answer."""
        return {
            method.name: self._callable(made, method)
            for method in SERVICE.methods
            if not method.server_streaming
        }

    @staticmethod
    def _callable(made: Callable[..., Any], method: MethodDescriptor) -> Callable[..., Any]:
        callable_: Callable[..., Any] = made(
            f"/{SERVICE.full_name}/{method.name}",
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return callable_

    async def follow(self) -> None:
        """Takes over certificates that change, until it is cancelled; the next call uses the new ones."""
        tls = self._tls
        if tls is None or not tls.may_change:
            return
        found: Contents | str | None = self._contents
        known = found
        async with asyncio.TaskGroup() as leaving:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                before, found = found, await asyncio.to_thread(_found, tls)
                # Files are not written at once, so a change counts only once two looks have found it.
                if found == known or found != before:
                    continue
                known = found
                if isinstance(found, str):
                    log.error("changed certificates cannot be used, those before stay: %s", found)
                    continue
                log.info("changed certificates read again")
                former = (self._channel, self._channel_of_large)
                self._open(found)
                for channel in former:
                    leaving.create_task(channel.close(CHANGE_SECONDS))

    async def close(self) -> None:
        """Closes the channels, and ends the calls under way."""
        await asyncio.gather(self._channel.close(), self._channel_of_large.close())


def _found(tls: Tls) -> Contents | str:
    """What the files say now, or why they cannot be used."""
    try:
        contents = tls.read()
        tls.check()
    except TlsInvalid as fault:
        return str(fault)
    return contents


def _deadline(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_SECONDS)
