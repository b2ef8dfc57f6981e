"""The calls of the API, each with its deadline, token, span, and failures by reason."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from precall.v1 import cloning_pb2 as pb

from precall_client.connection import SERVICE, Connection
from precall_client.failure import error_of
from precall_client.sample import RequestWithSample, Sample, content_of, wire_of
from precall_client.tracing import Tracing
from precall_client.transport import Tls

__all__ = ["Precall", "connect"]

SECONDS = 60.0
LARGEST_MESSAGE = 257 * 1_048_576

# What a header can carry. The cloner takes no other tokens.
TOKEN = re.compile("[ -~]*")

URL = re.compile(r"\s*(?:$|(?:https?|grpcs?|tcp)://)", re.IGNORECASE)

Token = str | Callable[[], str]


class Precall:
    """A client of the cloners behind one target; `connect` makes one.

    Each method calls the RPC of its name, and takes the fields of its request. `seconds` is the deadline,
    a day at most. A failed call raises the subclass of PrecallError for its reason. gRPC itself repeats calls
    that a cloner left unanswered, except ReplaceVoice (service_config.json). This class repeats nothing.
    """

    def __init__(self, connection: Connection, token: Token | None, tracing: Tracing) -> None:
        self._connection = connection
        self._token = token
        self._tracing = tracing

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel in use now, for services beside this one, such as health and reflection."""
        return self._connection.channel

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
        called = self._call_with_sample(
            "PrepareCall",
            pb.PrepareCallRequest(
                agent_id=agent_id,
                conversation_id=conversation_id,
                caller=caller,
                consent=consent,
                client_reference=client_reference,
            ),
            sample,
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
        """Says what is known for a call without a recording. May be repeated."""
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
        called = self._call_with_sample(
            "CloneVoice",
            pb.CloneVoiceRequest(
                caller=caller,
                consent=consent,
                request_id=request_id,
                client_reference=client_reference,
            ),
            sample,
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
        """Clones a caller's voice anew. If repeated, it makes another one unless `request_id` is the same."""
        called = self._call_with_sample(
            "ReplaceVoice",
            pb.ReplaceVoiceRequest(
                caller=caller,
                consent=consent,
                request_id=request_id,
                client_reference=client_reference,
            ),
            sample,
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
        """Reports a voice, at once and whenever it changes, until it is gone or the deadline is near.

        Whoever leaves the loop before that ends the call.
        """
        wire = pb.WatchVoiceRequest(voice_id=voice_id, caller=caller).SerializeToString()
        try:
            with self._tracing.call(f"{SERVICE.full_name}/WatchVoice") as metadata:
                stream = self._connection.watch_voice(wire, seconds, self._shown(metadata))
                try:
                    async for answer in stream:
                        yield answer.voice
                finally:
                    stream.cancel()  # if the loop was left early, gRPC would go on until the deadline
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

    async def _call_with_sample(
        self,
        name: str,
        request: RequestWithSample,
        sample: Sample | None,
        seconds: float,
        *,
        repeatable: bool = True,
    ) -> Any:
        wire = wire_of(request, b"" if sample is None else await content_of(sample))
        called = self._call(name, wire, seconds, repeatable=repeatable)
        del sample, wire
        return await called

    async def _call(self, name: str, wire: bytes, seconds: float, *, repeatable: bool = True) -> Any:
        try:
            with self._tracing.call(f"{SERVICE.full_name}/{name}") as metadata:
                answer = self._connection.send(name, wire, seconds, self._shown(metadata))
                del wire
                return await answer
        except grpc.aio.AioRpcError as failure:
            # Not `from failure`: its text can hold anything.
            raise error_of(failure, repeatable=repeatable) from None

    def _shown(self, metadata: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self._token is not None:
            token = self._token if isinstance(self._token, str) else _checked(self._token())
            metadata.append(("authorization", f"Bearer {token}"))
        return metadata


def _checked(token: str) -> str:
    """The token without a BOM and a line end, as its file may have. Raises ValueError, without it."""
    token = token.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
    if not TOKEN.fullmatch(token):
        raise ValueError("token must be one line of printable ASCII, as a header can carry it")
    return token


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
    URL of another protocol raises ValueError. `token` is sent with every call; if it is a function, it is
    called each time. A BOM and one line end at its end are no part of it; what a header cannot carry raises
    ValueError, here or at the call. Without `tls` plain text is spoken. Spans go to `tracer_provider` and the
    times of calls to `meter_provider`, by default the process's own.
    """
    if URL.match(target):  # gRPC would take the scheme for the name of a host, and never find it
        raise ValueError("target must be host:port, or a gRPC target such as dns:///host:port, and no URL")
    if isinstance(token, str):
        token = _checked(token)
    if tls is not None:
        tls.check()
    tracing = Tracing(tracer_provider, meter_provider, target)
    connection = Connection(target, tls, max_message_bytes=max_message_bytes)
    following = asyncio.create_task(connection.follow())
    try:
        yield Precall(connection, token, tracing)
    finally:
        following.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await following
        finally:
            await connection.close()
