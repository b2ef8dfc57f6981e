"""Requests to a cloner that are well, of one caller and of many."""

from typing import Any

from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

__all__ = ["CLONING", "IVAN", "METHODS", "call", "call_of_ivan", "end", "request"]

IVAN = pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number="+31612345678")
METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods)
CLONING = ("PrepareCall", "CloneVoice", "ReplaceVoice")


def request(method: str, sample: bytes = b"", **changes: Any) -> Any:
    """A request that is well."""
    voice = {"caller": IVAN, "sample": sample}
    fields: dict[str, dict[str, Any]] = {
        "PrepareCall": {"agent_id": "agent_demo", "conversation_id": "conv_1", **voice},
        "OpenCall": {"agent_id": "agent_demo", "conversation_id": "conv_1"},
        "CompleteCall": {"conversation_id": "conv_1"},
        "GetCall": {"call_id": "call_1"},
        "CloneVoice": voice,
        "ReplaceVoice": voice,
        "GetVoice": {"voice_id": "voice_1"},
        "WatchVoice": {"voice_id": "voice_1"},
        "DeleteVoice": {"voice_id": "voice_1"},
        "ForgetCaller": {"caller": IVAN},
        "SetConsent": {"voice_id": "voice_1", "consent": "form 1"},
    }
    return getattr(pb, f"{method}Request")(**{**fields.get(method, {}), **changes})


def call(voice_sample: bytes, number: int = 1, **changes: Any) -> pb.PrepareCallRequest:
    """A request of one of many callers for the demo agent."""
    caller = pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number=f"+3161234{number:04}")
    fields = {
        "agent_id": "agent_demo",
        "conversation_id": f"conv_{number}",
        "caller": caller,
        "sample": voice_sample,
    }
    return pb.PrepareCallRequest(**{**fields, **changes})


def call_of_ivan(sample: bytes = b"", conversation: str = "conv_1", **changes: Any) -> pb.PrepareCallRequest:
    """A request of Ivan's for the demo agent."""
    fields = {"agent_id": "agent_demo", "conversation_id": conversation, "caller": IVAN, "sample": sample}
    return pb.PrepareCallRequest(**{**fields, **changes})


async def end(cloner: CloningServiceStub, number: int = 1) -> bool:
    """Reports a call as ended."""
    request = pb.CompleteCallRequest(conversation_id=f"conv_{number}", agent_id="agent_demo")
    return (await cloner.CompleteCall(request, timeout=10)).found
