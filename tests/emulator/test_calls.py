"""How a call starts: what the provider asks of the webhook, and how it judges the answer."""

import asyncio
import json
import socket

import pytest

from emulator import Emulator, Webhooks
from emulator.calls import Calls

TYPE = "conversation_initiation_client_data"
GOOD = {"type": TYPE, "dynamic_variables": {"name": "Ana", "visits": 3, "vip": True, "ratio": 0.5}}
SECRET = "wsec_of_the_tests"
GEORGE = "JBFqnCBsd6RMkjVDRZzb"
SARAH = "EXAVITQu4vr4xnSDxMaL"
PERSON, LINE = "+31612345678", "+31201234567"
OVERRIDE = "conversation_config_override"


def configure(emulator: Emulator, *, placeholders=(), first_message="Hello!", **switches) -> None:
    """Change the demo agent."""
    agent = emulator.agents["agent_demo"]
    agent["conversation_config"]["agent"]["first_message"] = first_message
    agent["conversation_config"]["agent"]["dynamic_variables"]["dynamic_variable_placeholders"] = (
        dict.fromkeys(placeholders, "in the dashboard")
    )
    agent["platform_settings"]["overrides"] |= switches


async def test_twilio(calls: Calls, client) -> None:
    """Says who calls whom, with the configured headers."""
    conversation = await calls.start()

    asked = client.asked
    asked.pop("emulator_extra")
    assert {
        "caller_id": PERSON,
        "called_number": LINE,
        "agent_id": "agent_demo",
        "call_sid": conversation.call_sid,
        "conversation_id": conversation.conversation_id,
    } == asked
    assert ("CA", 34) == (conversation.call_sid[:2], len(conversation.call_sid))
    assert ("/initiation", "Bearer of-the-tests", "application/json") == (
        client.requests[0].path,
        client.requests[0].headers["authorization"],
        client.requests[0].headers["content-type"],
    )


async def test_outbound(calls: Calls, client) -> None:
    """Swaps the numbers on an outbound call."""
    await calls.start(direction="outbound")

    assert (LINE, PERSON) == (client.asked["caller_id"], client.asked["called_number"])


async def test_older_shape(calls: Calls, client) -> None:
    """Keeps the conversation's id to itself in the older shape."""
    await calls.start(tell_conversation_id=False)

    assert "conversation_id" not in client.asked


async def test_sip(calls: Calls, client) -> None:
    """Adds the call's id and headers on SIP, and has no call_sid."""
    conversation = await calls.start(kind="sip")

    assert ("", conversation.call_id, conversation.call_id) == (
        client.asked["call_sid"],
        client.asked["call_id"],
        client.asked["sip_headers"]["X-CALL-ID"],
    )


async def test_whatsapp(calls: Calls, client) -> None:
    """Tells ids and no numbers on WhatsApp, the same ones for the same numbers."""
    await calls.start(kind="whatsapp")
    first = client.asked
    await calls.start(kind="whatsapp", direction="outbound")

    assert ("", first["called_number"], first["caller_id"]) == (
        client.asked["call_sid"],
        client.asked["caller_id"],
        client.asked["called_number"],
    )
    assert (15, False) == (len(first["caller_id"]), PERSON[1:] in json.dumps(first))


async def test_speaks(calls: Calls, client, emulator: Emulator) -> None:
    """Speaks with the override's voice and message, its variables filled in."""
    configure(emulator, placeholders=["name", "visits"])
    data = GOOD | {
        OVERRIDE: {
            "agent": {"first_message": "Hi {{name}}, visit {{ visits }} to {{system__called_number}}."},
            "tts": {"voice_id": GEORGE},
        },
        "user_id": "crm-42",
    }
    client.body = json.dumps(data).encode()

    conversation = await calls.start()

    assert (
        [],
        "in-progress",
        GEORGE,
        f"Hi Ana, visit 3 to {LINE}.",
        data,
        data["dynamic_variables"],
        200,
        client.body.decode(),
        True,
    ) == (
        conversation.faults,
        conversation.status,
        conversation.voice_id,
        conversation.first_message,
        conversation.client_data,
        conversation.dynamic_variables,
        conversation.webhook_status,
        conversation.webhook_body,
        (conversation.webhook_ms or 0) > 0,
    )


async def test_own_voice(calls: Calls, client, emulator: Emulator) -> None:
    """Without an override, speaks as the agent does once the webhook has answered."""
    client.gate.clear()
    starting = asyncio.create_task(calls.start())
    await client.arrived.wait()
    emulator.agents.patch(
        "agent_demo",
        {"conversation_config": {"tts": {"voice_id": GEORGE}, "agent": {"first_message": "Now"}}},
    )
    client.gate.set()

    conversation = await starting

    assert (GEORGE, "Now") == (conversation.voice_id, conversation.first_message)


async def test_switched_off(calls: Calls, client, emulator: Emulator) -> None:
    """Asks no webhook where the agent does not say so."""
    configure(emulator, enable_conversation_initiation_client_data_from_webhook=False)

    conversation = await calls.start()

    assert ([], [], SARAH, None, None) == (
        client.requests,
        conversation.faults,
        conversation.voice_id,
        conversation.client_data,
        conversation.webhook_ms,
    )


async def test_no_webhook(emulator: Emulator) -> None:
    """Misses the agent's variables where nobody gives any: the dashboard's are none."""
    configure(emulator, placeholders=["name"])

    conversation = await emulator.calls.start()

    assert ["dynamic_variables lacks name, which the agent defines."] == conversation.faults


async def test_client_data(calls: Calls, client) -> None:
    """Takes data that comes with the call, and asks no webhook."""
    conversation = await calls.start(direction="outbound", client_data=GOOD)

    assert ([], [], GOOD) == (client.requests, conversation.faults, conversation.client_data)


async def test_keywords_that_are_off(calls: Calls) -> None:
    """Ignores keywords that the agent does not let a client override, the one leaf that fails nothing."""
    conversation = await calls.start(client_data=override(asr={"keywords": ["Precall"]}))

    assert ([], "in-progress") == (conversation.faults, conversation.status)


async def test_client_data_is_judged(calls: Calls) -> None:
    """Judges data that comes with the call like any other."""
    conversation = await calls.start(client_data=GOOD | {"source_info": {"source": "webhook"}})

    assert ["source_info must be left out."] == conversation.faults


def override(**parts) -> dict:
    """Good data with an override."""
    return GOOD | {OVERRIDE: parts}


OFF = "is not switched on at the agent."


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("The initiation data is not a JSON object.", [GOOD]),
        ("type is missing.", {"dynamic_variables": {"name": "Ana"}}),
        (f"type is not {TYPE}.", GOOD | {"type": "initiation"}),
        ("source_info must be left out.", GOOD | {"source_info": {}}),
        ("voice_id is not a known key.", GOOD | {"voice_id": GEORGE}),
        ("user_id is not a text, or an empty one.", GOOD | {"user_id": ""}),
        (f"procedure_ids {OFF}", GOOD | {"procedure_ids": ["p"]}),
        ("dynamic_variables is not an object.", GOOD | {"dynamic_variables": None}),
        ("dynamic_variables lacks name, which the agent defines.", GOOD | {"dynamic_variables": {"x": 1}}),
        ("dynamic_variables lacks name, which the agent defines.", {"type": TYPE}),
        (
            "dynamic_variables.system__time is one of the provider's own.",
            GOOD | {"dynamic_variables": {"name": "Ana", "system__time": "now"}},
        ),
        *(
            (
                "dynamic_variables.name is not a non-empty text, a number or a boolean.",
                GOOD | {"dynamic_variables": {"name": value}},
            )
            for value in (None, "", [], {"first": "Ana"})
        ),
        (f"{OVERRIDE} is not an object.", GOOD | {OVERRIDE: None}),
        (f"{OVERRIDE}.tts is an empty object.", override(tts={})),
        (f"{OVERRIDE}.tts is null.", override(tts=None)),
        (f"{OVERRIDE}.tts.voice_id is null.", override(tts={"voice_id": None})),
        (f"{OVERRIDE}.tts.voice_id is an empty text.", override(tts={"voice_id": ""})),
        (f"{OVERRIDE}.agent.first_message is an empty text.", override(agent={"first_message": ""})),
        (f"{OVERRIDE}.agent.language {OFF}", override(agent={"language": "nl"})),
        (f"{OVERRIDE}.agent.prompt.prompt {OFF}", override(agent={"prompt": {"prompt": "Be kind."}})),
        (f"{OVERRIDE}.tts.style cannot be overridden.", override(tts={"style": 0.5})),
        (
            f"{OVERRIDE}: Expected `array` of length <= 50 - at `$.asr.keywords`.",
            override(asr={"keywords": ["a"] * 51}),
        ),
        (
            f"{OVERRIDE}.turn.soft_timeout_config.message {OFF}",
            override(turn={"soft_timeout_config": {"message": "Still there?"}}),
        ),
        (
            f"{OVERRIDE}.tts.voice_id names a voice that does not exist: gone.",
            override(tts={"voice_id": "gone"}),
        ),
        (
            f"{OVERRIDE}: Expected `str`, got `int` - at `$.agent.first_message`.",
            override(agent={"first_message": 3}),
        ),
        (
            "Missing required dynamic variables in first message: {'city', 'street'}",
            override(agent={"first_message": "{{name}} of {{street}}, {{ city }}"}),
        ),
    ],
)
async def test_fault(calls: Calls, client, emulator: Emulator, fault: str, data: object) -> None:
    """Fails the conversation, and says that it was for this alone."""
    configure(emulator, placeholders=["name"])
    # There is no such leaf, whatever the agent says.
    emulator.agents["agent_demo"]["platform_settings"]["overrides"][OVERRIDE]["tts"]["style"] = True
    client.body = json.dumps(data).encode()

    conversation = await calls.start()

    # A group that is null is a leaf that is off as well.
    faults = [found for found in conversation.faults if found != f"{OVERRIDE}.tts {OFF}"]
    assert ([fault], "failed", None, None, None) == (
        faults,
        conversation.status,
        conversation.voice_id,
        conversation.first_message,
        conversation.client_data,
    )


async def test_every_fault(calls: Calls, client, emulator: Emulator) -> None:
    """Says everything that is wrong, not the first thing alone."""
    configure(emulator, placeholders=["name", "city"])
    client.body = json.dumps(
        {"dynamic_variables": {}, "extra": 1, OVERRIDE: {"tts": {"speed": 1.1}}}
    ).encode()

    conversation = await calls.start()

    assert [
        "type is missing.",
        "extra is not a known key.",
        "dynamic_variables lacks name, which the agent defines.",
        "dynamic_variables lacks city, which the agent defines.",
        f"{OVERRIDE}.tts.speed {OFF}",
    ] == conversation.faults


async def test_own_voice_is_gone(calls: Calls, emulator: Emulator) -> None:
    """Fails a conversation in the agent's own voice when that was deleted."""
    emulator.agents["agent_demo"]["conversation_config"]["tts"]["voice_id"] = "gone"

    conversation = await calls.start()

    assert ["The agent itself names a voice that does not exist: gone."] == conversation.faults


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000])
async def test_not_json(calls: Calls, client, body: bytes) -> None:
    """Takes JSON alone."""
    client.body = body

    conversation = await calls.start()

    assert (["The webhook's answer is not JSON."], "failed") == (conversation.faults, conversation.status)


@pytest.mark.parametrize("status", [201, 204, 302, 401, 503])
async def test_not_200(calls: Calls, client, status: int) -> None:
    """Takes no other status than 200, and follows nowhere."""
    client.status, client.body, client.headers = status, b"", [(b"location", b"/elsewhere")]

    conversation = await calls.start()

    assert ([f"The webhook answered {status}, not 200."], status, 1) == (
        conversation.faults,
        conversation.webhook_status,
        len(client.requests),
    )


async def test_slow_webhook(calls: Calls, client) -> None:
    """Fails a conversation whose webhook takes too long."""
    client.gate.clear()
    calls.webhooks = Webhooks(initiation_url=client.url, timeout_seconds=0.05)

    conversation = await calls.start()

    assert (["The webhook did not answer within 0.05 s."], "failed", None) == (
        conversation.faults,
        conversation.status,
        conversation.webhook_status,
    )


async def test_nobody_there(emulator: Emulator) -> None:
    """Fails a conversation whose webhook cannot be reached, and sends its events to nobody."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    emulator.calls.webhooks = Webhooks(initiation_url=url, post_call_url=url, post_call_secret=SECRET)

    conversation = await emulator.calls.start()
    statuses = await emulator.calls.end(
        conversation.conversation_id, events=["post_call_transcription", "post_call_audio"]
    )

    assert (["The webhook could not be reached: ConnectError."], [0, 0], "failed") == (
        conversation.faults,
        statuses,
        conversation.status,
    )


async def test_looking_up(calls: Calls) -> None:
    """Gives the conversations in order, and each by its id."""
    started = [await calls.start(), await calls.start(kind="sip")]

    assert (started, started[1]) == (list(calls), calls[started[1].conversation_id])


async def test_unknown(calls: Calls) -> None:
    """Knows no conversation or agent that there is not."""
    with pytest.raises(KeyError):
        await calls.end("conv_unheard_of")
    with pytest.raises(KeyError):
        await calls.start(agent_id="agent_unheard_of")


def test_secrets_are_not_shown() -> None:
    """Keeps secret and headers out of the webhooks' own text."""
    text = repr(Webhooks(initiation_headers={"Authorization": "Bearer x-1"}, post_call_secret=SECRET))

    assert [False, False] == [secret in text for secret in ("x-1", SECRET)]
