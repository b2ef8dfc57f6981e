"""A stand-in for the ElevenLabs API and its calls, written from the vendor's public documentation."""

from emulator.calls import Conversation, Webhooks
from emulator.faults import Fault, SearchLag
from emulator.server import Emulator
from emulator.settings import NO_LATENCY, Latency, Settings

__all__ = ["NO_LATENCY", "Conversation", "Emulator", "Fault", "Latency", "SearchLag", "Settings", "Webhooks"]
