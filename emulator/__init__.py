"""A stand-in for the ElevenLabs voice API, written from the vendor's public documentation."""

from emulator.faults import Fault, SearchLag
from emulator.server import Emulator
from emulator.settings import NO_LATENCY, Latency, Settings

__all__ = ["NO_LATENCY", "Emulator", "Fault", "Latency", "SearchLag", "Settings"]
