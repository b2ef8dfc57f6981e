"""The agents of the workspace: whole JSON objects, changed by deep merge."""

import base64
import copy
import secrets
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec

from emulator.errors import Refused, not_found, refused
from emulator.inputs import checked
from emulator.voices import PREMADE, Fraction, Voices

Json = dict[str, Any]

DEMO_AGENT = "agent_demo"

CONVERSATION_CONFIG: Json = {
    "agent": {
        "first_message": "Hello! How can I help you today?",
        "language": "en",
        "dynamic_variables": {"dynamic_variable_placeholders": {}},
        "disable_first_message_interruptions": False,
        "prompt": {
            "prompt": "You are a helpful receptionist.",
            "llm": "gemini-2.5-flash",
            "temperature": 0.0,
            "max_tokens": -1,
            "tool_ids": [],
            "mcp_server_ids": [],
            "native_mcp_server_ids": [],
            "knowledge_base": [],
        },
    },
    "tts": {
        "model_id": "eleven_flash_v2",
        "voice_id": PREMADE[0][0],
        "supported_voices": [],
        "agent_output_audio_format": "pcm_16000",
        "stability": 0.5,
        "speed": 1.0,
        "similarity_boost": 0.8,
        "pronunciation_dictionary_locators": [],
    },
    "asr": {
        "quality": "high",
        "provider": "elevenlabs",
        "user_input_audio_format": "pcm_16000",
        "keywords": [],
    },
    "turn": {"turn_timeout": 7.0, "mode": "turn"},
    "conversation": {
        "text_only": False,
        "max_duration_seconds": 600,
        "client_events": ["audio", "interruption", "user_transcript", "agent_response"],
    },
    "language_presets": {},
}

ENGLISH_MODELS = ("eleven_turbo_v2", "eleven_flash_v2")

OVERRIDABLE: Json = {
    "agent": {
        **dict.fromkeys(("first_message", "language", "max_conversation_duration_message"), False),
        "prompt": dict.fromkeys(
            (
                "prompt", "llm", "reasoning_effort", "tool_ids", "tool_ids_strict", "native_mcp_server_ids",
                "knowledge_base",
            ),
            False,
        ),
    },
    "tts": dict.fromkeys(
        (
            "voice_id", "model_id", "supported_voices", "stability", "speed", "similarity_boost",
            "clone_strength", "pronunciation_dictionary_locators",
        ),
        False,
    ),
    "conversation": {"text_only": False, "max_duration_seconds": False},
    "asr": {"keywords": False},
    "turn": {
        "soft_timeout_config": {"message": False, "additional_soft_timeout_messages": False},
        "noisy_environment_message": False,
    },
}  # fmt: skip
"""The leaves that an agent may let a client override; it lets it override none until it is told to."""

PLATFORM_SETTINGS: Json = {
    "auth": {"enable_auth": False, "allowlist": []},
    "overrides": {
        "conversation_config_override": OVERRIDABLE,
        "custom_llm_extra_body": False,
        "enable_conversation_initiation_client_data_from_webhook": False,
    },
    "workspace_overrides": {"conversation_initiation_client_data_webhook": None, "webhooks": {"events": []}},
    "call_limits": {"agent_concurrency_limit": -1, "daily_limit": 100000, "bursting_enabled": True},
    "archived": False,
}

SWITCHED_ON: Json = {
    "platform_settings": {
        "overrides": {
            "conversation_config_override": {"agent": {"first_message": True}, "tts": {"voice_id": True}},
            "enable_conversation_initiation_client_data_from_webhook": True,
        }
    }
}
"""What is switched on at the demo agent, and at every agent that is placed."""

ACCESS = {"is_creator": True, "creator_name": "Demo", "creator_email": "demo@example.com", "role": "admin"}


class SpeechPart(msgspec.Struct):
    """The leaves of `tts` whose type is checked."""

    voice_id: str | msgspec.UnsetType = msgspec.UNSET
    model_id: str | msgspec.UnsetType = msgspec.UNSET
    stability: Fraction | msgspec.UnsetType = msgspec.UNSET
    similarity_boost: Fraction | msgspec.UnsetType = msgspec.UNSET
    speed: Annotated[float, msgspec.Meta(ge=0.7, le=1.2)] | msgspec.UnsetType = msgspec.UNSET


class AgentPart(msgspec.Struct):
    """The leaves of `agent` whose type is checked."""

    first_message: str | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET
    prompt: Json | msgspec.UnsetType = msgspec.UNSET


class ConversationPart(msgspec.Struct):
    """What is checked of `conversation_config`."""

    agent: AgentPart | msgspec.UnsetType = msgspec.UNSET
    tts: SpeechPart | msgspec.UnsetType = msgspec.UNSET


class OverridesPart(msgspec.Struct):
    """What a PATCH may hold of what a conversation may override, as far as its types are checked."""

    conversation_config_override: Json | msgspec.UnsetType = msgspec.UNSET


class PlatformPart(msgspec.Struct):
    """What a PATCH may hold of the platform's settings, as far as its types are checked."""

    overrides: OverridesPart | msgspec.UnsetType = msgspec.UNSET


class AgentChange(msgspec.Struct):
    """The body of a PATCH, as far as its types are checked; a top-level null counts as not given."""

    conversation_config: ConversationPart | None = None
    platform_settings: PlatformPart | None = None
    workflow: Json | None = None
    name: str | None = None
    tags: list[str] | None = None
    procedures: Json | None = None


class NewAgent(AgentChange):
    """The body of a create, in which the configuration must be given."""

    conversation_config: ConversationPart


class AgentQuery(msgspec.Struct):
    """The query of a listing; unknown parts are ignored."""

    page_size: Annotated[int, msgspec.Meta(ge=1, le=100)] = 30
    search: str = ""
    cursor: str | None = None


class Agents:
    """All agents, oldest first; each a JSON object as `GET /v1/convai/agents/{agent_id}` answers it."""

    def __init__(self, *, voices: Voices, clock: Callable[[], float]) -> None:
        """Start with the demo agent, which speaks in a premade voice."""
        self._voices = voices
        self._clock = clock
        self._agents: dict[str, Json] = {}
        self.put(DEMO_AGENT, {"name": "Demo agent"})

    def __iter__(self) -> Iterator[Json]:
        """All of them; a change to one changes the workspace."""
        return iter(tuple(self._agents.values()))

    def __contains__(self, agent_id: object) -> bool:
        """Whether there is an agent of that id."""
        return agent_id in self._agents

    def __getitem__(self, agent_id: str) -> Json:
        """The agent of that id, or `KeyError`."""
        return self._agents[agent_id]

    def get(self, agent_id: str) -> Json | None:
        """The agent of that id, or None."""
        return self._agents.get(agent_id)

    def __delitem__(self, agent_id: str) -> None:
        """Make the provider forget an agent, or `KeyError`."""
        del self._agents[agent_id]

    def find(self, agent_id: str) -> Json:
        """The agent of that id, or the provider's refusal."""
        try:
            return self._agents[agent_id]
        except KeyError:
            raise not_found("agent_not_found", agent_id) from None

    def put(self, agent_id: str, parts: Json) -> Json:
        """Place an agent: its parts over the demo agent's, unchecked, in place of any of the same id."""
        return self._put(agent_id, merged(SWITCHED_ON, parts))

    def _put(self, agent_id: str, parts: Json) -> Json:
        now = int(self._clock())
        branch = prefixed_id("agtbrch")
        default: Json = {
            "agent_id": agent_id,
            "name": agent_id,
            "conversation_config": CONVERSATION_CONFIG,
            "metadata": {"created_at_unix_secs": now, "updated_at_unix_secs": now},
            "platform_settings": PLATFORM_SETTINGS,
            "phone_numbers": [],
            "whatsapp_accounts": [],
            "workflow": {"edges": {}, "nodes": {}},
            "access_info": ACCESS,
            "tags": [],
            "version_id": prefixed_id("agtvrsn"),
            "branch_id": branch,
            "main_branch_id": branch,
            "procedures": {},
        }
        self._agents[agent_id] = merged(default, parts | {"agent_id": agent_id})
        return self._agents[agent_id]

    def create(self, body: Json) -> Json:
        """Make an agent of a create's body, or refuse."""
        given = self._given(body, NewAgent, CONVERSATION_CONFIG)
        return self._put(prefixed_id("agent"), {"name": "New agent", **given})

    def patch(self, agent_id: str, body: Json) -> Json:
        """Merge a PATCH's body into an agent, as a new version of it, or refuse and change nothing."""
        agent = self.find(agent_id)
        given = self._given(body, AgentChange, agent["conversation_config"])
        now = int(self._clock())
        version = {"version_id": prefixed_id("agtvrsn"), "metadata": {"updated_at_unix_secs": now}}
        self._agents[agent_id] = merged(merged(agent, given), version)
        return self._agents[agent_id]

    def page(self, query: AgentQuery) -> Json:
        """One page of the listing, oldest first."""
        found = [agent for agent in self if query.search.casefold() in agent["name"].casefold()]
        start = _read_cursor(query.cursor)
        shown = found[start : start + query.page_size]
        has_more = len(found) > start + len(shown)
        return {
            "agents": [_summary(agent) for agent in shown],
            "has_more": has_more,
            "next_cursor": _write_cursor(start + len(shown)) if has_more else None,
        }

    def _given(self, body: Json, kind: type[AgentChange], before: Json) -> Json:
        """The parts of a body that take effect, once types, voice and model have been checked."""
        change = checked(body, kind, "body")
        config = change.conversation_config
        voice_id = config and config.tts and config.tts.voice_id
        if voice_id and voice_id not in self._voices:
            raise _invalid(f"A voice with the voice_id {voice_id} was not found.")
        if voice_id and self._voices[voice_id].awaits_verification:
            raise _invalid(f"The voice with the voice_id {voice_id} requires verification before use.")
        if config and ((config.agent and config.agent.language) or (config.tts and config.tts.model_id)):
            _require_model(merged(before, body["conversation_config"]))
        return {name: body[name] for name in AgentChange.__struct_fields__ if body.get(name) is not None}


def _require_model(config: Json) -> None:
    if config["agent"]["language"] == "en" and config["tts"]["model_id"] not in ENGLISH_MODELS:
        raise refused("invalid_conversation_config")


def _invalid(why: str) -> Refused:
    return refused("invalid_conversation_config", f"Invalid conversation config: Value error, {why}")


def merged(below: Json, above: Json) -> Json:
    """A new object: objects merged at every depth, anything else (lists, null) replaced by what is above."""
    result = {}
    for name, value in {**below, **above}.items():
        beneath, over = below.get(name), above.get(name)
        if isinstance(beneath, dict) and isinstance(over, dict):
            result[name] = merged(beneath, over)
        else:
            result[name] = copy.deepcopy(value)
    return result


def _summary(agent: Json) -> Json:
    return {
        "agent_id": agent["agent_id"],
        "name": agent["name"],
        "voice_id": agent["conversation_config"]["tts"]["voice_id"],
        "tags": agent["tags"],
        **agent["metadata"],
        "access_info": agent["access_info"],
        "last_call_time_unix_secs": None,
        "archived": agent["platform_settings"]["archived"],
    }


def prefixed_id(kind: str) -> str:
    """An id as the provider makes them for all but voices: its kind, then 28 letters and digits."""
    letters = string.ascii_lowercase + string.digits
    return f"{kind}_{''.join(secrets.choice(letters) for _ in range(28))}"


def _write_cursor(start: int) -> str:
    return base64.urlsafe_b64encode(str(start).encode()).decode()


def _read_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        return max(0, int(base64.urlsafe_b64decode(cursor)))
    except ValueError as error:
        raise refused("invalid_parameters", "Invalid cursor.") from error
