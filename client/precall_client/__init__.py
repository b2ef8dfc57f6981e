"""An asyncio client of Precall's gRPC API.

async with connect("cloner:50051", token=...) as precall:
    answer = await precall.clone_voice(caller=Caller(...), sample=Path("ivan.mp3"))
"""

from precall.v1.cloning_pb2 import Caller, CallerMatch, FallbackInfo, Speech, Voice

from precall_client import errors
from precall_client.calls import Precall, connect
from precall_client.errors import *  # noqa: F403 - every reason has its class, and all of them are public
from precall_client.sample import Sample
from precall_client.transport import Tls, TlsInvalid

__all__ = [
    "Caller",
    "CallerMatch",
    "FallbackInfo",
    "Precall",
    "Sample",
    "Speech",
    "Tls",
    "TlsInvalid",
    "Voice",
    "connect",
]
__all__ += errors.__all__
