"""Judges the initiation data of a conversation as the provider does, and reads voice and greeting in it.

The provider fails a conversation without saying much; here every reason is a sentence of its own. Where its
documentation is not sure that something fails a conversation, it does here.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from emulator.agents import OVERRIDABLE, ConversationPart
from emulator.voices import Voices

Json = dict[str, Any]

TYPE = "conversation_initiation_client_data"
OVERRIDE = "conversation_config_override"
VARIABLES = "dynamic_variables"
IGNORED = f"{OVERRIDE}.asr.keywords"
"""The one leaf that fails nothing where it is off."""
NO_DATA: Json = {"type": TYPE}
"""The data of a conversation to which nobody gave any."""

KEYS = frozenset(
    {
        "type",
        OVERRIDE,
        VARIABLES,
        "custom_llm_extra_body",
        "user_id",
        "branch_id",
        "environment",
        "starting_workflow_node_id",
        "procedure_ids",
        "start_procedure_ids",
    }
)
TEXTS = ("user_id", "branch_id", "environment", "starting_workflow_node_id")
SWITCHES = {
    "starting_workflow_node_id": "enable_starting_workflow_node_id_from_client",
    "procedure_ids": "enable_procedure_ids_from_client",
    "start_procedure_ids": "enable_procedure_ids_from_client",
}
"""Keys that need a switch of the agent's, and which."""

VARIABLE = re.compile(r"\{\{\s*([^{}\s]+)\s*\}\}")


class HearingPart(msgspec.Struct):
    """What is checked of `asr`."""

    keywords: Annotated[list[str], msgspec.Meta(max_length=50)] = []


class Override(ConversationPart):
    """What is checked of an override beside what is checked of an agent."""

    asr: HearingPart | msgspec.UnsetType = msgspec.UNSET


def judge(data: Any, agent: Json, voices: Voices, *, provided: Collection[str]) -> list[str]:
    """Every reason to fail the conversation; none for data that is accepted.

    `provided` are the names of the variables that come from the provider itself.
    """
    if not isinstance(data, dict):
        return ["The initiation data is not a JSON object."]
    return [
        *_top(data, agent),
        *_variables(data, agent),
        *_override(data, agent),
        *_voice(data, agent, voices),
        *_first_message(data, agent, provided),
    ]


def voice_id(data: Json, agent: Json) -> Any:
    """The voice of the override, else the agent's own."""
    return _override_of(data, "tts").get("voice_id", agent["conversation_config"]["tts"]["voice_id"])


def first_message(data: Json, agent: Json) -> Any:
    """The first message of the override, else the agent's own; its variables are not filled in."""
    own = agent["conversation_config"]["agent"]["first_message"] or ""
    return _override_of(data, "agent").get("first_message", own)


def filled(text: str, variables: Mapping[str, Any]) -> str:
    """The text with each `{{name}}` replaced; a variable that is not given stays as it is."""
    return VARIABLE.sub(lambda found: str(variables.get(found[1], found[0])), text)


def _top(data: Json, agent: Json) -> Iterator[str]:
    if "type" not in data:
        yield "type is missing."
    elif data["type"] != TYPE:
        yield f"type is not {TYPE}."
    overrides = agent["platform_settings"]["overrides"]
    for key in data:
        if key == "source_info":
            yield "source_info must be left out."
        elif key not in KEYS:
            yield f"{key} is not a known key."
        elif key in TEXTS and not (isinstance(data[key], str) and data[key]):
            yield f"{key} is not a text, or an empty one."
        elif key in SWITCHES and overrides.get(SWITCHES[key]) is not True:
            yield f"{key} is not switched on at the agent."


def _variables(data: Json, agent: Json) -> Iterator[str]:
    given = data.get(VARIABLES, {})
    if not isinstance(given, dict):
        yield f"{VARIABLES} is not an object."
        return
    defined = agent["conversation_config"]["agent"].get("dynamic_variables") or {}
    for name in defined.get("dynamic_variable_placeholders") or {}:
        if name not in given:
            yield f"{VARIABLES} lacks {name}, which the agent defines."
    for name, value in given.items():
        if name.startswith("system__"):
            yield f"{VARIABLES}.{name} is one of the provider's own."
        if value == "" or not isinstance(value, str | int | float):
            yield f"{VARIABLES}.{name} is not a non-empty text, a number or a boolean."


def _override(data: Json, agent: Json) -> Iterator[str]:
    override = data.get(OVERRIDE, {})
    if not isinstance(override, dict):
        yield f"{OVERRIDE} is not an object."
        return
    empty = list(_empty(override, OVERRIDE))
    yield from empty
    yield from _off(override, agent["platform_settings"]["overrides"].get(OVERRIDE), OVERRIDABLE, OVERRIDE)
    if not empty:
        try:
            msgspec.convert(override, Override)
        except msgspec.ValidationError as error:
            yield f"{OVERRIDE}: {error}."


def _empty(value: Any, path: str) -> Iterator[str]:
    """What is empty, at any depth below, and must be left out instead."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for name, child in children:
        place = f"{path}.{name}"
        if child is None:
            yield f"{place} is null."
        elif child == "":
            yield f"{place} is an empty text."
        elif child == {}:
            yield f"{place} is an empty object."
        elif isinstance(child, dict | list):
            yield from _empty(child, place)


def _off(value: Json, switches: Any, known: Any, path: str) -> Iterator[str]:
    """The leaves below that nobody may override, or that this agent does not let a client override."""
    for name, child in value.items():
        place = f"{path}.{name}"
        switch, leaf = (tree.get(name) if isinstance(tree, dict) else None for tree in (switches, known))
        if isinstance(child, dict) and not isinstance(leaf, bool):
            yield from _off(child, switch, leaf, place)
        elif leaf is None:
            yield f"{place} cannot be overridden."
        elif switch is not True and place != IGNORED:
            yield f"{place} is not switched on at the agent."


def _voice(data: Json, agent: Json, voices: Voices) -> Iterator[str]:
    found = voice_id(data, agent)
    # A value that is no text has been reported by now.
    if not isinstance(found, str) or not found:
        return
    whose = f"{OVERRIDE}.tts.voice_id" if "voice_id" in _override_of(data, "tts") else "The agent itself"
    if found not in voices:
        yield f"{whose} names a voice that does not exist: {found}."
    elif voices[found].awaits_verification:
        yield f"{whose} names a voice that is not verified: {found}."


def _first_message(data: Json, agent: Json, provided: Collection[str]) -> Iterator[str]:
    text = first_message(data, agent)
    given = data.get(VARIABLES)
    if not isinstance(text, str):
        return
    missing = set(VARIABLE.findall(text)) - set(provided) - set(given if isinstance(given, dict) else ())
    if missing:
        names = ", ".join(f"'{name}'" for name in sorted(missing))
        yield f"Missing required dynamic variables in first message: {{{names}}}"


def _override_of(data: Json, part: str) -> Json:
    """One part of the override; empty where there is none, or none that is an object."""
    override = data.get(OVERRIDE)
    found = override.get(part) if isinstance(override, dict) else None
    return found if isinstance(found, dict) else {}
