"""The gRPC service: which function answers which call of the contract.

A call that fails has its status set by `answered` and returns an empty message, which is never sent.
No method here is a coroutine function: it would hold the request, with its sample, for as long as the call.
"""

from collections.abc import Awaitable
from typing import Any

from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceServicer

from cloner.calls import Calls
from cloner.registry import Store
from cloner.rpc import calls, usage, voices
from cloner.rpc.contract import Context
from cloner.voices.callers import Identities
from cloner.voices.consenting import Consenting
from cloner.voices.erasure import Erasure
from cloner.voices.finding import Voices
from cloner.voices.looking import Looking

__all__ = ["CloningService"]


class CloningService(CloningServiceServicer):
    """Serves precall.v1.CloningService; the proto says what each call does.

    A voice is watched for `watch_seconds` at the most.
    """

    def __init__(
        self,
        *,
        calls: Calls,
        voices: Voices,
        store: Store,
        erasure: Erasure,
        looking: Looking,
        consenting: Consenting,
        usage: usage.Usage,
        identities: Identities,
        limits: pb.GetLimitsResponse,
        watch_seconds: float,
    ) -> None:
        self._identities = identities
        self._calls = calls
        self._voices = voices
        self._store = store
        self._erasure = erasure
        self._looking = looking
        self._consenting = consenting
        self._usage = usage
        self._limits = limits
        self._watch_seconds = watch_seconds

    def PrepareCall(
        self, request: pb.PrepareCallRequest, context: Context
    ) -> Awaitable[pb.PrepareCallResponse]:
        return calls.prepare_call(request, context, self._store, self._calls, self._identities)

    def OpenCall(self, request: pb.OpenCallRequest, context: Context) -> Awaitable[pb.OpenCallResponse]:
        return calls.open_call(request, context, self._store, self._calls, self._identities)

    def CompleteCall(
        self, request: pb.CompleteCallRequest, context: Context
    ) -> Awaitable[pb.CompleteCallResponse]:
        return calls.complete_call(request, context, self._store, self._calls, self._identities)

    def GetCall(self, request: pb.GetCallRequest, context: Context) -> Awaitable[pb.GetCallResponse]:
        return calls.get_call(request, context, self._store, self._looking, self._identities)

    def ListCalls(self, request: pb.ListCallsRequest, context: Context) -> Awaitable[pb.ListCallsResponse]:
        return calls.list_calls(request, context, self._store, self._looking, self._identities)

    def CloneVoice(self, request: pb.CloneVoiceRequest, context: Context) -> Awaitable[pb.CloneVoiceResponse]:
        return voices.clone_voice(request, context, self._store, self._voices, self._identities)

    def ReplaceVoice(
        self, request: pb.ReplaceVoiceRequest, context: Context
    ) -> Awaitable[pb.ReplaceVoiceResponse]:
        return voices.replace_voice(request, context, self._store, self._voices, self._identities)

    def GetVoice(self, request: pb.GetVoiceRequest, context: Context) -> Awaitable[pb.GetVoiceResponse]:
        return voices.get_voice(
            request, context, self._store, self._looking, self._consenting, identities=self._identities
        )

    def WatchVoice(self, request: pb.WatchVoiceRequest, context: Context) -> Any:
        return voices.watch_voice(
            request, context, self._store, self._looking, self._identities, longest=self._watch_seconds
        )

    def ListVoices(self, request: pb.ListVoicesRequest, context: Context) -> Awaitable[pb.ListVoicesResponse]:
        return voices.list_voices(request, context, self._store, self._looking, self._identities)

    def DeleteVoice(
        self, request: pb.DeleteVoiceRequest, context: Context
    ) -> Awaitable[pb.DeleteVoiceResponse]:
        return voices.delete_voice(request, context, self._store, self._erasure, self._identities)

    def ForgetCaller(
        self, request: pb.ForgetCallerRequest, context: Context
    ) -> Awaitable[pb.ForgetCallerResponse]:
        return voices.forget_caller(request, context, self._store, self._erasure, self._identities)

    def SetConsent(self, request: pb.SetConsentRequest, context: Context) -> Awaitable[pb.SetConsentResponse]:
        return voices.set_consent(request, context, self._store, self._consenting, self._identities)

    def GetLimits(self, request: pb.GetLimitsRequest, context: Context) -> Awaitable[pb.GetLimitsResponse]:
        del request
        return usage.get_limits(context, self._store, self._limits)

    def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> Awaitable[pb.GetUsageResponse]:
        del request
        return self._usage.tell(context)
