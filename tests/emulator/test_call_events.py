"""How a call ends: the events that the provider posts, and their signatures."""

import base64
import json

import pytest
from elevenlabs import core, errors, types

from emulator import NO_LATENCY, Emulator, Settings, Webhooks
from emulator.calls import Calls

TYPE = "conversation_initiation_client_data"
GOOD = {"type": TYPE, "dynamic_variables": {"name": "Ana", "visits": 3, "vip": True, "ratio": 0.5}}
SECRET = "wsec_of_the_tests"
GEORGE = "JBFqnCBsd6RMkjVDRZzb"
PERSON, LINE = "+31612345678", "+31201234567"
OVERRIDE = "conversation_config_override"
SAID = ("agent_response", "user_transcript", "agent_response")


async def test_slow_receiver(calls: Calls, client) -> None:
    """Gives up on an event that is not answered in time."""
    conversation = await calls.start()
    client.gate.clear()
    calls.webhooks = Webhooks(post_call_url=client.url, timeout_seconds=0.05)

    assert [0] == await calls.end(conversation.conversation_id)


@pytest.mark.parametrize("kind", ["twilio", "sip", "whatsapp"])
async def test_transcription(calls: Calls, client, kind) -> None:
    """Posts a signed transcription whose data is what the vendor calls a conversation."""
    conversation = await calls.start(kind=kind)

    statuses = await calls.end(conversation.conversation_id)

    event = client.event()
    data = core.parse_obj_as(types.GetConversationResponseModel, event["data"])
    assert isinstance(data, types.GetConversationResponseModel)
    assert ([200], "done", "/post-call", ["type", "event_timestamp", "data"]) == (
        statuses,
        conversation.status,
        client.requests[-1].path,
        list(event),
    )
    assert ("post_call_transcription", int) == (event["type"], type(event["event_timestamp"]))
    assert (conversation.conversation_id, "done", "agent", "Hello! How can I help you today?") == (
        data.conversation_id,
        data.status,
        data.transcript[0].role,
        data.transcript[0].message,
    )
    call = data.metadata.phone_call
    assert {
        "twilio": ("twilio", PERSON, LINE, conversation.call_sid),
        "sip": ("sip_trunking", PERSON, LINE, ""),
        "whatsapp": None,
    }[kind] == (call and (call.type, call.external_number, call.agent_number, call.call_sid))
    assert PERSON in (data.transcript[1].message or "")


async def test_echo(calls: Calls, client) -> None:
    """Echoes what the conversation was started with, null where nothing was overridden."""
    client.body = json.dumps(GOOD | {OVERRIDE: {"tts": {"voice_id": GEORGE}}, "user_id": "crm-42"}).encode()
    conversation = await calls.start()

    await calls.end(conversation.conversation_id)

    raw = client.event()["data"]
    echo = core.parse_obj_as(types.ConversationInitiationClientDataRequestOutput, raw[TYPE])
    assert (GOOD["dynamic_variables"], GEORGE, {"first_message": None, "language": None, "prompt": None}) == (
        echo.dynamic_variables,
        echo.conversation_config_override.tts.voice_id,
        raw[TYPE][OVERRIDE]["agent"],
    )
    assert ("crm-42", "twilio") == (raw["user_id"], echo.source_info.source)


async def test_no_echo(calls: Calls, client) -> None:
    """Leaves the echo out when told to, and writes the time as text."""
    conversation = await calls.start()

    await calls.end(conversation.conversation_id, echo=False, timestamp_as_text=True)

    assert (False, str) == (TYPE in client.event()["data"], type(client.event()["event_timestamp"]))


async def test_failed_stays_failed(calls: Calls, client) -> None:
    """Says of a conversation that failed that it did, and that nobody spoke."""
    client.body = b"{}"
    conversation = await calls.start()

    await calls.end(conversation.conversation_id)

    data = client.event()["data"]
    assert ("failed", "failed", [], {}) == (
        conversation.status,
        data["status"],
        data["transcript"],
        data[TYPE]["dynamic_variables"],
    )


async def test_retry(calls: Calls, client) -> None:
    """Sends the same bytes again, whatever the answer was and whatever is asked for."""
    conversation = await calls.start()
    client.status = 503
    kinds = ["post_call_transcription", "post_call_audio"]

    first = await calls.end(conversation.conversation_id, events=kinds, audio_mb=0.1)
    client.status = 200
    again = await calls.end(conversation.conversation_id, events=kinds, audio_mb=0.2, echo=False)

    sent = [request.body for request in client.requests[1:]]
    assert ([503, 503], [200, 200], sent[:2]) == (first, again, sent[2:])


async def test_retry_is_signed_anew(client) -> None:
    """Signs a retry at the time of the retry, the event's own time unchanged."""
    now = [2_000_000_000.5]
    emulator = Emulator(Settings(latency=NO_LATENCY), clock=lambda: now[0])
    emulator.calls.webhooks = Webhooks(post_call_url=client.url, post_call_secret=SECRET)
    conversation = await emulator.calls.start()

    await emulator.calls.end(conversation.conversation_id)
    now[0] += 1800
    await emulator.calls.end(conversation.conversation_id)

    assert [("t=2000000000", 2_000_000_000), ("t=2000001800", 2_000_000_000)] == [
        (request.headers["elevenlabs-signature"].split(",")[0], json.loads(request.body)["event_timestamp"])
        for request in client.requests
    ]


async def test_wrong_secret(calls: Calls, client) -> None:
    """Is refused by the vendor's own code under another secret."""
    conversation = await calls.start()
    await calls.end(conversation.conversation_id)

    with pytest.raises(errors.BadRequestError):
        client.event(secret="another")


async def test_no_secret(calls: Calls, client) -> None:
    """Signs nothing where there is no secret."""
    conversation = await calls.start()
    calls.webhooks = Webhooks(post_call_url=client.url)

    statuses = await calls.end(conversation.conversation_id)

    assert ([200], False) == (statuses, "elevenlabs-signature" in client.requests[-1].headers)


@pytest.mark.parametrize("megabytes", [0, 0.000001, 0.049152, 1.5])
async def test_audio(calls: Calls, client, megabytes: float) -> None:
    """Streams a recording of that size, whose length nobody is told beforehand."""
    conversation = await calls.start()

    await calls.end(conversation.conversation_id, events=["post_call_audio"], audio_mb=megabytes)

    data = client.event()["data"]
    headers = client.requests[-1].headers
    assert (["agent_id", "conversation_id", "full_audio"], round(megabytes * 1_000_000)) == (
        list(data),
        len(base64.b64decode(data["full_audio"], validate=True)),
    )
    assert ("chunked", None) == (headers["transfer-encoding"], headers.get("content-length"))


@pytest.mark.parametrize(
    ("kind", "place", "numbers"),
    [("twilio", "twilio", ["From", "To"]), ("sip", "sip", ["from_number", "to_number"])],
)
async def test_initiation_failure(calls: Calls, client, kind, place: str, numbers: list[str]) -> None:
    """Says in the words of the line why nobody was reached."""
    conversation = await calls.start(kind=kind, direction="outbound")

    await calls.end(conversation.conversation_id, events=["call_initiation_failure"])

    data = client.event()["data"]
    assert ("no-answer", place, [LINE, PERSON]) == (
        data["failure_reason"],
        data["metadata"]["type"],
        [data["metadata"]["body"][name] for name in numbers],
    )


async def test_traces(calls: Calls, client) -> None:
    """Posts a conversation as spans with the vendor's names, every turn a child of the first, and no long text."""
    conversation = await calls.start()
    conversation.first_message = "é" * 4000

    await calls.end(conversation.conversation_id, events=["post_call_transcription_otel"])

    data = client.event()["data"]
    (traces,) = core.parse_obj_as(types.OTelTracePayload, data["otlp_traces"]).resource_spans
    (scope,) = traces.scope_spans
    assert (
        conversation.conversation_id,
        {"service.name": "elevenlabs-convai", "elevenlabs.conversation_id": conversation.conversation_id},
        "elevenlabs.convai",
        ["elevenlabs.conversation", *[f"elevenlabs.recv.{role}" for role in SAID]],
        ["", *[scope.spans[0].span_id] * 3],
        {"stringValue": "é" * 2048},
    ) == (
        data["conversation_id"],
        {attribute.key: attribute.value["stringValue"] for attribute in traces.resource.attributes},
        scope.scope.name,
        [span.name for span in scope.spans],
        [span.parent_span_id for span in scope.spans],
        scope.spans[1].attributes[0].value,
    )
    assert {0} == {span.status.code for span in scope.spans}


async def test_unknown_type(calls: Calls, client, emulator: Emulator) -> None:
    """Posts an event of any other name, in the order asked for, for a conversation whose agent is gone too."""
    conversation = await calls.start()
    del emulator.agents["agent_demo"]

    statuses = await calls.end(
        conversation.conversation_id, events=["post_call_transcription", "answering_machine_detection"]
    )

    assert ([200, 200], ["post_call_transcription", "answering_machine_detection"]) == (
        statuses,
        [json.loads(request.body)["type"] for request in client.requests[1:]],
    )
    assert ["agent_id", "conversation_id"] == list(client.event()["data"])
