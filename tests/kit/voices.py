"""Voices as a cloner tells of them."""

from typing import Any

from precall.v1 import cloning_pb2 as pb

__all__ = ["get", "lasting"]


async def get(cloner: Any, **which: Any) -> pb.Voice:
    """One voice."""
    return (await cloner.GetVoice(pb.GetVoiceRequest(**which), timeout=10)).voice


def lasting(voice: pb.Voice) -> pb.Voice:
    """The voice without what changes by itself, which answers to requests do not tell."""
    assert voice.HasField("last_use_time")
    voice.ClearField("expire_time")
    voice.ClearField("last_use_time")
    return voice
