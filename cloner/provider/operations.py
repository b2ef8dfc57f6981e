"""What is asked of ElevenLabs, in a word for each."""

from collections.abc import Mapping

__all__ = ["OPERATIONS"]

OPERATIONS: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/voices/add"): "clone",
    ("GET", "/v1/voices/{voice_id}"): "read_voice",
    ("GET", "/v2/voices"): "list_voices",
    ("DELETE", "/v1/voices/{voice_id}"): "delete_voice",
    ("GET", "/v1/convai/agents/{agent_id}"): "read_agent",
    ("PATCH", "/v1/convai/agents/{agent_id}"): "update_agent",
    ("GET", "/v1/user/subscription"): "read_account",
}
