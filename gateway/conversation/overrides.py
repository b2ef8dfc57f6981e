"""Decides what an answer may override in a conversation, by what the cloner said of the agent.

An override that the agent's own settings refuse makes the conversation fail. The last that the cloner said is
remembered, for answers that are given without it: until it says something else, since nobody knows here for
how long an agent keeps a caller's voice.
"""

from collections.abc import Collection
from typing import get_args

import structlog
from cachetools import LRUCache
from msgspec import Struct
from precall.v1.cloning_pb2 import FallbackInfo, OpenCallResponse, PrepareCallResponse

from gateway.settings import Leaf

__all__ = ["AGENTS", "GREETING", "NOTHING", "NOT_ACTIVATED", "VOICE", "Overrides", "Speech", "remember"]

log = structlog.get_logger()

VOICE, GREETING = get_args(Leaf)
# The reason of a fallback for a voice that nobody would hear.
NOT_ACTIVATED = "VOICE_NOT_ACTIVATED"
AGENTS = 10_000
SWITCH = "platform_settings.overrides.conversation_config_override"


class Speech(Struct, frozen=True, kw_only=True):
    """How a conversation sounds, and what it begins with; None for what is not overridden."""

    voice_id: str | None = None
    first_message: str | None = None


NOTHING = Speech()


class KnownAgent(Struct, frozen=True):
    """What the cloner said last of an agent."""

    refused_leaves: frozenset[str] = frozenset()
    before: Speech = NOTHING


class Overrides:
    """Decides what an answer may override.

    `leaves` are those that the operator allows. So many agents as AGENTS are remembered.
    """

    def __init__(self, leaves: Collection[str]) -> None:
        self._leaves = frozenset(leaves)
        self._agents: LRUCache[str, KnownAgent] = LRUCache(AGENTS)
        self._logged: LRUCache[tuple[str, str], bool] = LRUCache(AGENTS)

    def update(self, agent_id: str, *, refused_leaves: Collection[str] | None, before: Speech) -> None:
        """Remembers which overrides an agent refuses, and what it had before it was given a caller's voice.

        `refused_leaves` is None if the settings were not read: then the former value stays. A leaf that has
        to be left out is logged once.
        """
        if refused_leaves is None:
            refused_leaves = self._known(agent_id).refused_leaves
        self._agents[agent_id] = KnownAgent(frozenset(refused_leaves), before)
        for leaf in sorted(self._leaves.intersection(refused_leaves)):
            if (agent_id, leaf) not in self._logged:
                self._logged[agent_id, leaf] = True
                log.warning("override left out", agent_id=agent_id, leaf=leaf, switch_on=f"{SWITCH}.{leaf}")

    def allowed(self, agent_id: str | None) -> frozenset[str]:
        """The leaves that an answer for this agent may hold."""
        return self._leaves - self._known(agent_id).refused_leaves

    def speech_before(self, agent_id: str | None) -> Speech:
        """What the agent had before it was given a caller's voice, if it is known to have one now."""
        return self._known(agent_id).before

    def _known(self, agent_id: str | None) -> KnownAgent:
        return self._agents.get(agent_id or "", KnownAgent())


def remember(
    overrides: Overrides, agent_id: str, answer: PrepareCallResponse | OpenCallResponse | FallbackInfo
) -> None:
    """Remembers what the cloner said of the agent."""
    before = NOTHING
    if answer.HasField("agent_before"):
        spoken = answer.agent_before
        before = Speech(voice_id=spoken.voice_id or None, first_message=spoken.first_message or None)
    overrides.update(
        agent_id, refused_leaves=answer.refused_leaves if answer.settings_seen else None, before=before
    )
