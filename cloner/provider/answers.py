"""Checked answers of ElevenLabs: every value of these types can be stored and sent.

An answer that has not the shape that the API documents raises ProtocolBroken, and nothing else.
"""

import re
from typing import TypeVar

import msgspec
import structlog

from cloner.provider import loose_json
from cloner.provider.failures import ProtocolBroken

__all__ = [
    "Agent",
    "AgentVoice",
    "ListedVoice",
    "NewVoice",
    "Subscription",
    "VoicePage",
    "read_agent",
    "read_deleted",
    "read_new_voice",
    "read_page",
    "read_subscription",
    "read_voice",
]

log = structlog.get_logger()

T = TypeVar("T")

VOICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
NOT_CLONED = ("premade", "generated", "professional", "famous", "high_quality")
PAGE_TOKEN = re.compile(r"[!-~]{1,2048}")
# The overrides that we may send in a conversation.
OVERRIDES = ("tts.voice_id", "agent.first_message")
LONGEST_GREETING = 65_536
LARGEST_COUNT = 2**31 - 1
LATEST_UNIX = 253_402_300_799  # the end of the year 9999


class NewVoice(msgspec.Struct, frozen=True):
    """The answer to a create."""

    voice_id: str
    requires_verification: bool = False
    library_voice_match: object = None
    """A voice of ElevenLabs' library that the sample is too much like. If there is one, the new voice has to
    be verified, too (the reference of `POST /v1/voices/add`)."""


class Verification(msgspec.Struct, frozen=True):
    """Whether somebody must prove that a voice is theirs."""

    requires_verification: bool = False
    is_verified: bool = False


class ListedVoice(msgspec.Struct, frozen=True):
    """A voice as the provider lists it."""

    voice_id: str
    labels: dict[str, str | None] | None = None
    description: str | None = None
    created_at_unix: int | None = None
    voice_verification: Verification | None = None

    @property
    def requires_verification(self) -> bool:
        """Whether the voice must be verified before it may speak."""
        told = self.voice_verification
        return told is not None and told.requires_verification and not told.is_verified


class VoicePage(msgspec.Struct, frozen=True):
    """One page of cloned voices, without entries that cannot be read or exceed the number asked for."""

    voices: list[ListedVoice]
    has_more: bool = False
    next_page_token: str | None = None


class AgentVoice(msgspec.Struct, frozen=True):
    """How an agent speaks."""

    voice_id: str | None
    first_message: str | None


class Agent(msgspec.Struct, frozen=True):
    """How an agent speaks, and which overrides of a conversation its own settings refuse."""

    voice: AgentVoice | None
    """None if it could not be stored and put back unchanged."""

    refused_leaves: frozenset[str]
    on_main_branch: bool
    """Whether this is the version that calls get; assumed where the answer names no branches."""


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the account is used. A field is None if ElevenLabs does not state it as a count."""

    slots_used: int | None
    slots_limit: int | None
    month_used: int | None
    month_limit: int | None
    resets_at: float | None
    """When the month's count starts again, in Unix seconds."""


class _Page(msgspec.Struct):
    voices: list[object]
    has_more: bool = False
    next_page_token: str | None = None


class _Tts(msgspec.Struct):
    voice_id: str | None = None


class _Speech(msgspec.Struct):
    first_message: str | None = None


class _Config(msgspec.Struct):
    tts: _Tts | None = None
    agent: _Speech | None = None


class _Agent(msgspec.Struct):
    conversation_config: object
    agent_id: object = None
    platform_settings: object = None
    branch_id: object = None
    main_branch_id: object = None


class _Deleted(msgspec.Struct):
    status: str


class _Account(msgspec.Struct):
    voice_slots_used: object = None
    voice_limit: object = None
    voice_add_edit_counter: object = None
    max_voice_add_edits: object = None
    next_character_count_reset_unix: object = None


def read_new_voice(body: bytes) -> NewVoice:
    """The answer to a create."""
    voice = _decode(body, NewVoice)
    if not VOICE_ID.fullmatch(voice.voice_id):
        raise ProtocolBroken
    matched = voice.library_voice_match is not None
    return NewVoice(voice.voice_id, requires_verification=voice.requires_verification or matched)


def read_voice(body: bytes, voice_id: str) -> ListedVoice:
    """The voice that was asked for; an answer about another voice cannot be read."""
    voice = _decode(body, ListedVoice)
    if voice.voice_id != voice_id:
        raise ProtocolBroken
    return voice


def read_page(body: bytes, *, most: int = 100) -> VoicePage:
    """One page of a search for that many cloned voices at most."""
    page = _decode(body, _Page)
    if page.next_page_token and not PAGE_TOKEN.fullmatch(page.next_page_token):
        raise ProtocolBroken
    entries = [entry for entry in page.voices if not _added(entry)]
    voices = [voice for entry in entries[:most] if (voice := _listed(entry)) is not None]
    if len(voices) < len(entries):
        log.warning("voices of a list not readable", voices=len(entries) - len(voices))
    return VoicePage(voices, page.has_more, page.next_page_token or None)


def read_deleted(body: bytes) -> None:
    """The answer to a deletion, which counts only if it says that all is well."""
    if _decode(body, _Deleted).status != "ok":
        raise ProtocolBroken


def read_agent(body: bytes, agent_id: str) -> Agent:
    """How the agent speaks that was asked about, and what its settings refuse.

    An answer that names another agent cannot be read.
    """
    agent = _decode(body, _Agent)
    if isinstance(agent.agent_id, str) and agent.agent_id != agent_id:
        raise ProtocolBroken
    branches = agent.branch_id, agent.main_branch_id
    return Agent(
        _spoken(agent.conversation_config),
        _refused_leaves(agent.platform_settings),
        on_main_branch=branches[0] == branches[1] or not all(isinstance(name, str) for name in branches),
    )


def read_subscription(body: bytes) -> Subscription:
    """How much of the account is used. Raises ProtocolBroken for what says nothing of an account."""
    told = _decode(body, _Account)
    if told == _Account():
        raise ProtocolBroken
    return Subscription(
        slots_used=_count(told.voice_slots_used),
        slots_limit=_count(told.voice_limit),
        month_used=_count(told.voice_add_edit_counter),
        month_limit=_count(told.max_voice_add_edits),
        resets_at=_count(told.next_character_count_reset_unix, most=LATEST_UNIX),
    )


def _count(value: object, *, most: int = LARGEST_COUNT) -> int | None:
    """The value if it is a count that can be passed on, else None."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= most else None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return loose_json.decode(body, kind)
    except loose_json.JsonUnreadable as failure:
        raise ProtocolBroken from failure


def _added(entry: object) -> bool:
    """Whether a voice was added to the page: default voices are, on top of the number that was asked for."""
    return isinstance(entry, dict) and entry.get("category") in NOT_CLONED


def _listed(entry: object) -> ListedVoice | None:
    try:
        voice = loose_json.converted(entry, ListedVoice)
    except loose_json.JsonUnreadable:
        return None
    return voice if VOICE_ID.fullmatch(voice.voice_id) else None


def _spoken(config: object) -> AgentVoice | None:
    try:
        told = loose_json.converted(config, _Config)
    except loose_json.JsonUnreadable:
        return None
    voice_id = told.tts.voice_id if told.tts else None
    first_message = told.agent.first_message if told.agent else None
    if voice_id and not VOICE_ID.fullmatch(voice_id):
        return None
    if first_message is not None and not _can_be_kept(first_message):
        return None
    return AgentVoice(voice_id or None, first_message)


def _can_be_kept(text: str) -> bool:
    """Whether a database and an override can hold the text: it has no NUL and no lone surrogate."""
    if len(text) > LONGEST_GREETING or "\0" in text:
        return False
    return loose_json.SURROGATE.search(text) is None


def _refused_leaves(settings: object) -> frozenset[str]:
    """The overrides that are not switched on; none if the agent's settings do not say."""
    allowed = _value_at(settings, "overrides", "conversation_config_override")
    if not isinstance(allowed, dict):
        return frozenset()
    return frozenset(leaf for leaf in OVERRIDES if _value_at(allowed, *leaf.split(".")) is not True)


def _value_at(tree: object, *path: str) -> object:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
