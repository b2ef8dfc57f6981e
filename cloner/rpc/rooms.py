"""What answers the calls of the contract."""

from typing import NamedTuple

from precall.v1 import cloning_pb2 as pb

from cloner.calls import Calls
from cloner.openings import Openings
from cloner.registry import Store
from cloner.rpc.usage import Usage
from cloner.voices.callers import Identities
from cloner.voices.consenting import Consenting
from cloner.voices.erasure import Erasure
from cloner.voices.finding import Voices
from cloner.voices.looking import Looking

__all__ = ["Rooms"]


class Rooms(NamedTuple):
    """All that a call of the contract may need.

    A voice is watched for `watch_seconds` at the most, and OpenCall is answered within `opening_seconds`.
    """

    calls: Calls
    openings: Openings
    voices: Voices
    store: Store
    erasure: Erasure
    looking: Looking
    consenting: Consenting
    usage: Usage
    identities: Identities
    limits: pb.GetLimitsResponse
    watch_seconds: float
    opening_seconds: float
