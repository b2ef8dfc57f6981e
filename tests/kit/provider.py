"""What the cloner asks of ElevenLabs, and what the emulator has of it."""

from emulator import Emulator

__all__ = ["AGENT", "CREATE", "SUBSCRIPTION", "VOICE", "spoken"]

CREATE = "/v1/voices/add"
VOICE = "/v1/voices/{voice_id}"
AGENT = "/v1/convai/agents/{agent_id}"
SUBSCRIPTION = "/v1/user/subscription"


def spoken(emulator: Emulator) -> tuple[str, str]:
    """How the demo agent speaks."""
    config = emulator.agents["agent_demo"]["conversation_config"]
    return config["tts"]["voice_id"], config["agent"]["first_message"]
