"""The calls of the API, each with its deadline, token, span, and failures by reason."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from precall.v1 import cloning_pb2 as pb

from precall_client.failure import error_of
from precall_client.sample import Sample, content_of, wire_of
from precall_client.tracing import Tracing
from precall_client.transport import KEPT_BYTES, Contents, Tls, TlsInvalid, opened
from precall_client.upload import uploaded

__all__ = ["Precall", "connect"]

log = logging.getLogger("precall_client")

SERVICE = pb.DESCRIPTOR.services_by_name["CloningService"]
SECONDS = 60.0
LARGEST_MESSAGE = 257 * 1_048_576
LOOK_SECONDS = 1.0
# How long a call that began before certificates changed may go on.
CHANGE_SECONDS = 120.0

URL = re.compile(r"\s*(?:$|(?:https?|grpcs?|tcp)://)", re.IGNORECASE)

Token = str | Callable[[], str]


class Precall:
    """A client of the cloners behind one target; `connect` makes one.

    Each method is the RPC of its name, and takes the fields of its request. `seconds` is the deadline.
    What fails raises a PrecallError, of the class of its reason. What has been sent is not repeated here.
    """

    def __init__(
        self, target: str, token: Token | None, tls: Tls | None, tracing: Tracing, *, max_message_bytes: int
    ) -> None:
        self._target = target
        self._token = token
        self._tls = tls
        self._tracing = tracing
        self._max_message_bytes = max_message_bytes
        self._contents = tls.read() if tls is not None else None
        self._open(self._contents)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel in use now, for services beside this one, such as health and reflection."""
        return self._channel

    async def prepare_call(
        self,
        *,
        agent_id: str,
        conversation_id: str,
        sample: Sample | None = None,
        caller: pb.Caller | None = None,
        consent: str = "",
        client_reference: str = "",
        seconds: float = SECONDS,
    ) -> pb.PrepareCallResponse:
        """Finds or clones the caller's voice, and says what the call needs. May be repeated.

        A caller whose voice is known needs no sample; for another one, SampleRequired is raised.
        """
        called = self._call(
            "PrepareCall",
            wire_of(
                pb.PrepareCallRequest(
                    agent_id=agent_id,
                    conversation_id=conversation_id,
                    caller=caller,
                    consent=consent,
                    client_reference=client_reference,
                ),
                b"" if sample is None else await content_of(sample),
            ),
            seconds,
        )
        del sample  # as large as the request, which only the call holds, until it is sent
        return cast("pb.PrepareCallResponse", await called)

    async def open_call(
        self,
        *,
        agent_id: str,
        conversation_id: str = "",
        call_sid: str = "",
        sip_call_id: str = "",
        phone_number: str = "",
        seconds: float = SECONDS,
    ) -> pb.OpenCallResponse:
        """Says what is known for a call of which no recording is at hand. May be repeated."""
        wire = pb.OpenCallRequest(
            agent_id=agent_id,
            conversation_id=conversation_id,
            call_sid=call_sid,
            sip_call_id=sip_call_id,
            phone_number=phone_number,
        ).SerializeToString()
        return cast("pb.OpenCallResponse", await self._call("OpenCall", wire, seconds))

    async def complete_call(
        self,
        *,
        conversation_id: str = "",
        call_id: str = "",
        agent_id: str = "",
        voice_id: str = "",
        seconds: float = SECONDS,
    ) -> pb.CompleteCallResponse:
        """Ends a call. May be repeated."""
        wire = pb.CompleteCallRequest(
            conversation_id=conversation_id, call_id=call_id, agent_id=agent_id, voice_id=voice_id
        ).SerializeToString()
        return cast("pb.CompleteCallResponse", await self._call("CompleteCall", wire, seconds))

    async def clone_voice(
        self,
        *,
        sample: Sample,
        caller: pb.Caller | None = None,
        consent: str = "",
        request_id: str = "",
        client_reference: str = "",
        seconds: float = SECONDS,
    ) -> pb.CloneVoiceResponse:
        """Finds or clones a caller's voice ahead of time. May be repeated."""
        called = self._call(
            "CloneVoice",
            wire_of(
                pb.CloneVoiceRequest(
                    caller=caller,
                    consent=consent,
                    request_id=request_id,
                    client_reference=client_reference,
                ),
                await content_of(sample),
            ),
            seconds,
        )
        del sample  # as large as the request, which only the call holds, until it is sent
        return cast("pb.CloneVoiceResponse", await called)

    async def replace_voice(
        self,
        *,
        sample: Sample,
        caller: pb.Caller,
        consent: str = "",
        request_id: str = "",
        client_reference: str = "",
        seconds: float = SECONDS,
    ) -> pb.ReplaceVoiceResponse:
        """Clones a caller's voice anew. Repeated, it makes another one, unless `request_id` is the same."""
        called = self._call(
            "ReplaceVoice",
            wire_of(
                pb.ReplaceVoiceRequest(
                    caller=caller,
                    consent=consent,
                    request_id=request_id,
                    client_reference=client_reference,
                ),
                await content_of(sample),
            ),
            seconds,
            repeatable=bool(request_id),
        )
        del sample  # as large as the request, which only the call holds, until it is sent
        return cast("pb.ReplaceVoiceResponse", await called)

    async def get_voice(
        self, voice_id: str = "", *, caller: pb.Caller | None = None, seconds: float = SECONDS
    ) -> pb.GetVoiceResponse:
        """One voice, by its id at ElevenLabs or by its caller. May be repeated."""
        wire = pb.GetVoiceRequest(voice_id=voice_id, caller=caller).SerializeToString()
        return cast("pb.GetVoiceResponse", await self._call("GetVoice", wire, seconds))

    async def watch_voice(
        self, voice_id: str = "", *, caller: pb.Caller | None = None, seconds: float = SECONDS
    ) -> AsyncIterator[pb.Voice]:
        """Reports a voice, at once and whenever it changes, until it is gone or the deadline is near."""
        wire = pb.WatchVoiceRequest(voice_id=voice_id, caller=caller).SerializeToString()
        try:
            with self._tracing.call(f"{SERVICE.full_name}/WatchVoice") as metadata:
                method = self._streams["WatchVoice"]
                timeout = max(0.0, seconds)
                async for answer in method(wire, timeout=timeout, metadata=self._shown(metadata)):
                    yield answer.voice
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, repeatable=True) from None

    async def list_voices(self, *, seconds: float = SECONDS, **wanted: Any) -> pb.ListVoicesResponse:
        """One page of voices, newest first; `wanted` are fields of ListVoicesRequest. May be repeated."""
        wire = pb.ListVoicesRequest(**wanted).SerializeToString()
        return cast("pb.ListVoicesResponse", await self._call("ListVoices", wire, seconds))

    async def all_voices(
        self, *, caller: pb.Caller | None = None, seconds: float = SECONDS
    ) -> AsyncIterator[pb.Voice]:
        """Every voice, newest first, page by page; `seconds` is the deadline of each."""
        page_token = ""
        while True:
            page = await self.list_voices(
                caller=caller, page_size=100, page_token=page_token, seconds=seconds
            )
            for voice in page.voices:
                yield voice
            if not (page_token := page.next_page_token):
                return

    async def get_call(
        self,
        *,
        call_id: str = "",
        conversation_id: str = "",
        agent_id: str = "",
        seconds: float = SECONDS,
    ) -> pb.GetCallResponse:
        """One call, by our own id or by agent and conversation. May be repeated."""
        wire = pb.GetCallRequest(
            call_id=call_id, conversation_id=conversation_id, agent_id=agent_id
        ).SerializeToString()
        return cast("pb.GetCallResponse", await self._call("GetCall", wire, seconds))

    async def list_calls(self, *, seconds: float = SECONDS, **wanted: Any) -> pb.ListCallsResponse:
        """One page of calls, newest first; `wanted` are fields of ListCallsRequest. May be repeated."""
        wire = pb.ListCallsRequest(**wanted).SerializeToString()
        return cast("pb.ListCallsResponse", await self._call("ListCalls", wire, seconds))

    async def set_consent(
        self,
        *,
        caller: pb.Caller | None = None,
        voice_id: str = "",
        consent: str = "",
        withdrawn: bool = False,
        seconds: float = SECONDS,
    ) -> pb.SetConsentResponse:
        """Stores a consent, or its withdrawal, after which the voice is deleted. May be repeated."""
        wire = pb.SetConsentRequest(
            caller=caller, voice_id=voice_id, consent=consent, withdrawn=withdrawn
        ).SerializeToString()
        return cast("pb.SetConsentResponse", await self._call("SetConsent", wire, seconds))

    async def get_limits(self, *, seconds: float = SECONDS) -> pb.GetLimitsResponse:
        """What a sample must be, and how long things are kept. May be repeated."""
        wire = pb.GetLimitsRequest().SerializeToString()
        return cast("pb.GetLimitsResponse", await self._call("GetLimits", wire, seconds))

    async def get_usage(self, *, seconds: float = SECONDS) -> pb.GetUsageResponse:
        """How much of the account and of the client's own quota is in use. May be repeated."""
        wire = pb.GetUsageRequest().SerializeToString()
        return cast("pb.GetUsageResponse", await self._call("GetUsage", wire, seconds))

    async def delete_voice(self, voice_id: str, *, seconds: float = SECONDS) -> pb.DeleteVoiceResponse:
        """Deletes a voice at ElevenLabs; what is known of its caller stays. May be repeated."""
        wire = pb.DeleteVoiceRequest(voice_id=voice_id).SerializeToString()
        return cast("pb.DeleteVoiceResponse", await self._call("DeleteVoice", wire, seconds))

    async def forget_caller(
        self, *, caller: pb.Caller | None = None, voice_id: str = "", seconds: float = SECONDS
    ) -> pb.ForgetCallerResponse:
        """Deletes a caller's voices, and all that is known of the caller. May be repeated."""
        wire = pb.ForgetCallerRequest(caller=caller, voice_id=voice_id).SerializeToString()
        return cast("pb.ForgetCallerResponse", await self._call("ForgetCaller", wire, seconds))

    async def _call(self, name: str, wire: bytes, seconds: float, *, repeatable: bool = True) -> Any:
        try:
            with self._tracing.call(f"{SERVICE.full_name}/{name}") as metadata:
                shown = self._shown(metadata)
                if len(wire) > KEPT_BYTES:
                    request = [wire]
                    del wire

                    def begin(left: float) -> Any:
                        return self._large[name](timeout=left, metadata=shown)

                    return await uploaded(begin, request, seconds)
                return await self._methods[name](wire, timeout=max(0.0, seconds), metadata=shown)
        except grpc.aio.AioRpcError as failure:
            # Not `from failure`: its text can hold anything.
            raise error_of(failure, repeatable=repeatable) from None

    def _shown(self, metadata: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self._token is not None:
            token = self._token if isinstance(self._token, str) else self._token()
            metadata.append(("authorization", f"Bearer {token}"))
        return metadata

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
        # gRPC keeps the request of such a call until that ends. As a message it would be there once more.
        self._methods = self._callables(self._channel.unary_unary)
        # The same on the wire as a stream of one, which gRPC lets go of once it is sent. Its channel connects
        # when the first of them comes.
        self._large = self._callables(self._channel_of_large.stream_unary)
        self._streams = self._callables(self._channel.unary_stream, answers=True)

    @staticmethod
    def _callables(made: Callable[..., Any], *, answers: bool = False) -> dict[str, Callable[..., Any]]:
        """The methods of the stub: those with one answer or, with `answers`, with many."""
        return {
            method.name: made(
                f"/{SERVICE.full_name}/{method.name}",
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in SERVICE.methods
            if method.server_streaming == answers
        }

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


@asynccontextmanager
async def connect(
    target: str,
    *,
    token: Token | None = None,
    tls: Tls | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    max_message_bytes: int = LARGEST_MESSAGE,
) -> AsyncIterator[Precall]:
    """A client for as long as the block lasts, on the loop that runs it. Raises TlsInvalid.

    `target` is a gRPC target such as `host:port` or `dns:///host:port`, whose addresses share the calls; the
    URL of another protocol is a ValueError. `token` goes with every call; a function is asked for it each
    time. Without `tls` plain text is spoken. Spans go to `tracer_provider` and the times of calls to
    `meter_provider`, or to the process's own.
    """
    if URL.match(target):  # gRPC would take the scheme for the name of a host, and never find it
        raise ValueError("target must be host:port, or a gRPC target such as dns:///host:port, and no URL")
    if tls is not None:
        tls.check()
    tracing = Tracing(tracer_provider, meter_provider, target)
    precall = Precall(target, token, tls, tracing, max_message_bytes=max_message_bytes)
    following = asyncio.create_task(precall.follow())
    try:
        yield precall
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await precall.close()


def _found(tls: Tls) -> Contents | str:
    """What the files say now, or why they cannot be used."""
    try:
        contents = tls.read()
        tls.check()
    except TlsInvalid as fault:
        return str(fault)
    return contents
