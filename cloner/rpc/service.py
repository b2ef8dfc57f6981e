"""The gRPC service: which function answers which call of the contract.

A call that fails has its status set by `answered` and returns an empty message, which is never sent.
No method here is a coroutine function: it would hold the request, with its sample, for as long as the call.
"""

from collections.abc import Awaitable
from typing import Any

from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceServicer

from cloner.rpc import calls, usage, voices
from cloner.rpc.contract import Context
from cloner.rpc.rooms import Rooms

__all__ = ["CloningService"]


class CloningService(CloningServiceServicer):
    """Serves precall.v1.CloningService; the proto says what each call does."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def PrepareCall(
        self, request: pb.PrepareCallRequest, context: Context
    ) -> Awaitable[pb.PrepareCallResponse]:
        return calls.prepare_call(request, context, self._rooms)

    def OpenCall(self, request: pb.OpenCallRequest, context: Context) -> Awaitable[pb.OpenCallResponse]:
        return calls.open_call(request, context, self._rooms)

    def CompleteCall(
        self, request: pb.CompleteCallRequest, context: Context
    ) -> Awaitable[pb.CompleteCallResponse]:
        return calls.complete_call(request, context, self._rooms)

    def GetCall(self, request: pb.GetCallRequest, context: Context) -> Awaitable[pb.GetCallResponse]:
        return calls.get_call(request, context, self._rooms)

    def ListCalls(self, request: pb.ListCallsRequest, context: Context) -> Awaitable[pb.ListCallsResponse]:
        return calls.list_calls(request, context, self._rooms)

    def CloneVoice(self, request: pb.CloneVoiceRequest, context: Context) -> Awaitable[pb.CloneVoiceResponse]:
        return voices.clone_voice(request, context, self._rooms)

    def ReplaceVoice(
        self, request: pb.ReplaceVoiceRequest, context: Context
    ) -> Awaitable[pb.ReplaceVoiceResponse]:
        return voices.replace_voice(request, context, self._rooms)

    def GetVoice(self, request: pb.GetVoiceRequest, context: Context) -> Awaitable[pb.GetVoiceResponse]:
        return voices.get_voice(request, context, self._rooms)

    def WatchVoice(self, request: pb.WatchVoiceRequest, context: Context) -> Any:
        return voices.watch_voice(request, context, self._rooms)

    def ListVoices(self, request: pb.ListVoicesRequest, context: Context) -> Awaitable[pb.ListVoicesResponse]:
        return voices.list_voices(request, context, self._rooms)

    def DeleteVoice(
        self, request: pb.DeleteVoiceRequest, context: Context
    ) -> Awaitable[pb.DeleteVoiceResponse]:
        return voices.delete_voice(request, context, self._rooms)

    def ForgetCaller(
        self, request: pb.ForgetCallerRequest, context: Context
    ) -> Awaitable[pb.ForgetCallerResponse]:
        return voices.forget_caller(request, context, self._rooms)

    def SetConsent(self, request: pb.SetConsentRequest, context: Context) -> Awaitable[pb.SetConsentResponse]:
        return voices.set_consent(request, context, self._rooms)

    def GetLimits(self, request: pb.GetLimitsRequest, context: Context) -> Awaitable[pb.GetLimitsResponse]:
        del request
        return usage.get_limits(context, self._rooms.store, self._rooms.limits)

    def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> Awaitable[pb.GetUsageResponse]:
        del request
        return self._rooms.usage.get_usage(context)
