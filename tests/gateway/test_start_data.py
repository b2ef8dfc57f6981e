import re
from typing import Any

import msgspec
import pytest

from gateway.conversation.overrides import Speech
from gateway.conversation.start_data import Facts, build_start_data, unknown_call

KNOWN = Facts(
    name="Ivan",
    date_of_birth="11.12.2007",
    number="+31612345678",
    agent_id="agent_1",
    conversation_id="conv_1",
    call_id="call_1",
    voice_id="voice_1",
)
UNKNOWN = Facts(
    name=None,
    date_of_birth=None,
    number=None,
    agent_id="agent_1",
    conversation_id="conv_1",
    call_id="call_1",
    voice_id="voice_1",
)
BOTH = ("tts.voice_id", "agent.first_message")


def built(facts: Facts = KNOWN, **given: Any) -> Any:
    """What the data is in JSON."""
    speech = Speech(voice_id="voice_1", first_message="Hallo!")
    whole = {"variables": {}, "leaves": BOTH, "speech": speech} | given
    return msgspec.to_builtins(build_start_data(facts, **whole))


def test_everything() -> None:
    """Holds the type, the variables and the overrides."""
    actual = built(variables={"who": "{name}"})

    expected = {
        "type": "conversation_initiation_client_data",
        "dynamic_variables": {"who": "Ivan", "precall_call_id": "call_1"},
        "conversation_config_override": {
            "agent": {"first_message": "Hallo!"},
            "tts": {"voice_id": "voice_1"},
        },
    }
    assert expected == actual


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"leaves": ("tts.voice_id",)}, {"tts": {"voice_id": "voice_1"}}),
        ({"leaves": ("agent.first_message",)}, {"agent": {"first_message": "Hallo!"}}),
        ({"speech": Speech(voice_id="voice_1", first_message="")}, {"tts": {"voice_id": "voice_1"}}),
        ({"speech": Speech(first_message="Hallo!")}, {"agent": {"first_message": "Hallo!"}}),
    ],
)
def test_leaves(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Sends only leaves that are allowed and have something in them."""
    assert expected == built(**given)["conversation_config_override"]


def test_no_override() -> None:
    """Leaves the whole override out where it would be empty."""
    assert "conversation_config_override" not in built(leaves=())


@pytest.mark.parametrize(
    ("template", "known", "unknown"),
    [
        ("{name}", "Ivan", "unknown"),
        ("{name|friend}", "Ivan", "friend"),
        ("{name|}", "Ivan", "unknown"),
        ("Hi {name}!", "Hi Ivan!", "Hi !"),
        (" ", "unknown", "unknown"),
        ("Hi {name|friend}, {date_of_birth|?}!", "Hi Ivan, 11.12.2007!", "Hi friend, ?!"),
        (
            "{phone_number|none} {agent_id} {conversation_id} {voice_id}",
            "+31612345678 agent_1 conv_1 voice_1",
            "none agent_1 conv_1 voice_1",
        ),
        ("plain", "plain", "plain"),
        (3, 3, 3),
        (0.5, 0.5, 0.5),
        (True, True, True),
    ],
)
def test_variables(template: Any, known: Any, unknown: Any) -> None:
    """Fills in what is known, and the stand-in for what is not."""
    actual = [
        built(facts, variables={"it": template})["dynamic_variables"]["it"] for facts in (KNOWN, UNKNOWN)
    ]

    assert [known, unknown] == actual


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Neither our own templates nor the agent's, which have two braces, find a placeholder in it.
        ("{phone_number}", "phone_number"),
        ("{{system__agent_id}}", "system__agent_id"),
        ("Zoe\u0308  \u200d", "Zo\u00eb \u200d"),
        # What nobody can see is no name, as in the greeting.
        ("\u200b", "friend"),
        ("\u200d \ufeff", "friend"),
        ("\u3164", "friend"),
        ("\u202e", "friend"),
        ("{}", "friend"),
    ],
)
def test_name(name: str, expected: str) -> None:
    """A name is what can be seen of it, without what makes a variable of it."""
    facts = msgspec.structs.replace(KNOWN, name=name)

    actual = built(facts, variables={"who": "{name|friend}"})

    assert expected == actual["dynamic_variables"]["who"]


def test_nothing_to_see() -> None:
    """A variable of which nothing can be seen is as good as empty; an id is given back as it is."""
    facts = msgspec.structs.replace(KNOWN, name="\u200b", date_of_birth="\u2800", conversation_id="{c}")

    actual = built(facts, variables={"a": "{name}", "b": "{date_of_birth|\u200b}", "c": "{conversation_id}"})

    assert ["unknown", "unknown", "{c}"] == [actual["dynamic_variables"][name] for name in "abc"]


def test_unknown_call() -> None:
    """A call that the cloner has not named gets a name that is nobody else's."""
    names = {unknown_call() for _ in range(100)}

    assert 100 == len(names)
    assert all(re.fullmatch("call_[0-9a-f]{24}", name) for name in names)
