"""Who is calling, as a bridge and ElevenLabs tell it over HTTP: strangers are kept apart, the known are found."""

import re
from pathlib import Path
from typing import Any

import pytest

from environment import Secret
from tests.kit.rows import until_unlocked

ROUTE = "/webhook/conversation-init"
TOKEN = {"Authorization": "Bearer token"}
IVAN = {"name": "Ivan", "phone_number": "+31612340012"}
WITHHELD = [
    "sip:anonymous@203.0.113.7", '"Anonymous" <sip:anonymous@anonymous.invalid>;tag=1', "00000", "+0", "+10000000000",
    "anonymous", "203.0.113.7", "n/a", "",
]  # fmt: skip
SPELLINGS = [
    "0031612340012", "31612340012", "sip:+31612340012@203.0.113.7:5060;user=phone", "+31612340012@host",
    "tel:+31-6-1234-0012", '"Ivan" <sip:+31612340012@trunk.example.com:5060;transport=udp>;tag=1928301774',
    "\u202a+31612340012\u202c", "+31\u00a06\u00a012340012", "\uff0b\uff13\uff11\uff16\uff11\uff12\uff13\uff14\uff10\uff10\uff11\uff12",
    "+31 (0)6 1234 0012", "06 1234 0012",
]  # fmt: skip
# A national form needs its country, in both processes.
DUTCH = {"default_region": "NL"}
INITIATION = {
    "conversation_init_token": (Secret("token"),),
    "dynamic_variables": {"number": "{phone_number|none}"},
}


async def asked(system: Any, number: str, conversation: str, **more: str) -> dict[str, Any]:
    """What ElevenLabs is told at the start of a call from this number."""
    about = {"agent_id": "agent_demo", "conversation_id": conversation, "caller_id": number} | more
    answer = await system.http.post(ROUTE, json=about, headers=TOKEN)
    assert 200 == answer.status_code
    return answer.json()


@pytest.mark.parametrize("number", WITHHELD)
async def test_strangers(running, spans, samples: Path, speech: bytes, number: str) -> None:
    """Two people without a number share no voice, and the next such caller is greeted as nobody."""
    other = (samples / "speech.flac").read_bytes()
    async with running(of_gateway=INITIATION) as system:
        voices = [
            (
                await system.deliver(
                    sample,
                    conversation_id=f"conv_{n}",
                    caller_metadata={"name": "Ivan", "phone_number": number},
                )
            ).json()["voice_id"]
            for n, sample in enumerate((speech, other))
        ]
        told = await asked(system, number, "conv_9")
        (root,) = await spans.wait(f"POST {ROUTE}")

    assert 2 == len(set(voices))
    assert not set(voices) & set(re.findall(r"\w+", str(told)))
    assert "Ivan" not in str(told)
    assert "caller_unknown" == root.attributes["precall.reason"]


async def test_found_in_every_spelling(running, speech: bytes) -> None:
    """Both routes find a caller however the number is written, and agents are told it in one form."""
    async with running(of_gateway=INITIATION | DUTCH, of_cloner=DUTCH) as system:
        first = (await system.deliver(speech, conversation_id="conv_0", caller_metadata=IVAN)).json()
        delivered = [
            (
                await system.deliver(
                    speech,
                    conversation_id=f"conv_{n}",
                    caller_metadata={"name": "Ivan", "phone_number": number},
                )
            ).json()
            for n, number in enumerate(SPELLINGS, 1)
        ]
        told = [await asked(system, number, f"conv_i{n}") for n, number in enumerate(SPELLINGS)]

    found = [answer["conversation_config_override"]["tts"]["voice_id"] for answer in told]
    assert [first["voice_id"]] * len(SPELLINGS) == [answer["voice_id"] for answer in delivered] == found
    assert {IVAN["phone_number"]} == {answer["dynamic_variables"]["number"] for answer in told}


async def test_outbound(running, speech: bytes) -> None:
    """A call from one of our own numbers, however both are written, is about the person who is called."""
    ours = {"own_numbers": ("020 123 4567",)}
    async with running(of_gateway=INITIATION | DUTCH | ours, of_cloner=DUTCH) as system:
        first = (await system.deliver(speech, conversation_id="conv_0", caller_metadata=IVAN)).json()
        told = await asked(
            system, "sip:+31201234567@10.0.0.1", "conv_1", called_number="sip:0612340012@203.0.113.7"
        )

    assert first["voice_id"] == told["conversation_config_override"]["tts"]["voice_id"]


async def test_shared_number(running, spans, speech: bytes) -> None:
    """A number of two callers is told apart from one that nobody has, and carries no number."""
    async with running(of_gateway=INITIATION) as system:
        for n, name in enumerate(("Ivan", "Anna")):
            await system.deliver(speech, conversation_id=f"conv_{n}", caller_metadata=IVAN | {"name": name})
        told = await asked(system, IVAN["phone_number"], "conv_9")
        (root,) = await spans.wait(f"POST {ROUTE}")

    assert not {"Ivan", "Anna"} & set(re.findall(r"\w+", str(told)))
    assert "caller_ambiguous" == root.attributes["precall.reason"]


async def test_greeting_without_the_voice(running, sqlite: str, speech: bytes) -> None:
    """At an agent that speaks with a caller's voice, which no override changes, that caller alone is greeted by name."""
    anna = {"name": "Anna", "phone_number": "+31612340013"}
    leaves = {"override_leaves": ("agent.first_message",)}
    async with running(of_gateway=INITIATION | leaves) as system:
        for n, caller in enumerate((anna, IVAN)):
            await system.end(f"conv_{n - 1}")
            answer = await system.deliver(speech, conversation_id=f"conv_{n}", caller_metadata=caller)
            assert answer.json()["agent_updated"]
            await until_unlocked(sqlite)
        told = [
            await asked(system, caller["phone_number"], conversation)
            for caller, conversation in ((anna, "conv_2"), (IVAN, "conv_1"))
        ]

    assert ["Hello! How can I help you today?", "Hallo Ivan, fijn dat je belt!"] == [
        answer["conversation_config_override"]["agent"]["first_message"] for answer in told
    ]


@pytest.mark.parametrize("form", ["json", "form"])
@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (("Иван", "Ольга"), "cp1251"), (("Zoë", "Zoé"), "latin-1"), (("\ud83d", "\ud83e"), "ascii"),
        (("An\ufffd", "An\ufffd"), "utf-8"),
    ],
)  # fmt: skip
async def test_names_that_lost_characters(
    running, samples: Path, form: str, names: tuple[str, str], encoding: str
) -> None:
    """Two who share a number and what is left of their names do not share a voice; one alone keeps theirs."""
    one, other = ((samples / name).read_bytes() for name in ("ulaw.wav", "speech.mp3"))
    async with running(of_gateway=INITIATION, of_cloner={"agent_update": "never"}) as system:
        answers = [
            await system.deliver(
                sample,
                form=form,
                encoding=encoding,
                conversation_id=f"conv_{number}",
                caller_metadata=IVAN | {"name": name},
            )
            for number, (name, sample) in enumerate([(names[0], one), (names[1], other), (names[0], one)])
        ]
        found = await asked(system, IVAN["phone_number"], "conv_init")

    assert [200] * 3 == [answer.status_code for answer in answers]
    first, second, again = (answer.json()["voice_id"] for answer in answers)
    assert (first, True) == (again, first != second)
    assert "tts" not in found.get("conversation_config_override", {})


@pytest.mark.parametrize("form", ["json", "form"])
@pytest.mark.parametrize("policy", ["error", "default_voice"])
async def test_names(running, speech: bytes, form: str, policy: str) -> None:
    """Real names are taken and greeted; a control character is the sender's fault, named as they named it."""
    names = {
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0dc1\u0dca\u200d\u0dbb\u0dd3": "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "Anna\u00a0Maria": "Anna Maria",
        "\u5c71\u7530\u3000\u592a\u90ce": "\u5c71\u7530 \u592a\u90ce",
        "Zoe\u0308": "Zo\u00eb",
        "\u0958" * 200: "\u0915\u093c" * 200,
    }
    async with running(
        of_gateway={"precall_fallback": policy}, of_cloner={"agent_update": "never"}
    ) as system:
        greetings = []
        for n, name in enumerate(names):
            caller = {"name": name, "phone_number": f"+316123400{n:02}"}
            answer = await system.deliver(
                speech, form=form, conversation_id=f"conv_{n}", caller_metadata=caller
            )
            data = answer.json()["conversation_initiation_client_data"]
            greetings.append(
                (answer.status_code, data["conversation_config_override"]["agent"]["first_message"])
            )
        refused = [
            await system.deliver(speech, form=form, caller_metadata=IVAN | {"name": name})
            for name in ("I\x00van", "Iv\tan", "Ivan\x9bx", "x" * 201)
        ]

    assert [(200, f"Hallo {name}, fijn dat je belt!") for name in names.values()] == greetings
    assert {(400, "FIELD_INVALID", "caller_metadata.name")} == {
        (answer.status_code, answer.json()["reason"], answer.json()["error_message"].split()[0])
        for answer in refused
    }
