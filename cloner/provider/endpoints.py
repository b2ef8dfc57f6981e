"""What of ElevenLabs' API is used."""

from typing import NamedTuple

__all__ = [
    "CREATE_VOICE",
    "DELETE_VOICE",
    "ENDPOINTS",
    "GET_AGENT",
    "GET_SUBSCRIPTION",
    "GET_VOICE",
    "LIST_VOICES",
    "UPDATE_AGENT",
    "Endpoint",
]


class Endpoint(NamedTuple):
    """A method and a path, with the names of ids in braces, and our word for what it does."""

    operation: str
    method: str
    template: str


CREATE_VOICE = Endpoint("clone", "POST", "/v1/voices/add")
GET_VOICE = Endpoint("read_voice", "GET", "/v1/voices/{voice_id}")
DELETE_VOICE = Endpoint("delete_voice", "DELETE", "/v1/voices/{voice_id}")
LIST_VOICES = Endpoint("list_voices", "GET", "/v2/voices")
GET_AGENT = Endpoint("read_agent", "GET", "/v1/convai/agents/{agent_id}")
UPDATE_AGENT = Endpoint("update_agent", "PATCH", "/v1/convai/agents/{agent_id}")
GET_SUBSCRIPTION = Endpoint("read_account", "GET", "/v1/user/subscription")

ENDPOINTS = (CREATE_VOICE, GET_VOICE, DELETE_VOICE, LIST_VOICES, GET_AGENT, UPDATE_AGENT, GET_SUBSCRIPTION)
