"""What is asked at night about calls, voices and agents is answered by spans alone, and by log lines alone."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from precall_client import connect
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from environment import Secret, Toml
from telemetry.logs import add_keys, add_trace

CREATE, AGENT, VOICE = "/v1/voices/add", "/v1/convai/agents/{agent_id}", "/v1/voices/{voice_id}"
CREATE_SPAN = f"POST {CREATE}"
SERVICE = "precall.v1.CloningService"
PREPARE, COMPLETE, DELETE = (f"{SERVICE}/{name}" for name in ("PrepareCall", "CompleteCall", "DeleteVoice"))
MARIA = {"name": "Maria", "phone_number": "+31612345679"}
AGENT_ID, CONVERSATION, VOICE_ID = "gen_ai.agent.id", "gen_ai.conversation.id", "precall.voice.id"
CALL_ID, REASON, CODE = "precall.call.id", "precall.reason", "precall.provider.code"

Lines = Callable[..., list[dict[str, Any]]]
Found = Callable[..., list[ReadableSpan]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines of an event of which these facts hold, with the keys that they have in the log."""
    shown = [structlog.contextvars.merge_contextvars, add_trace, add_keys]
    with capture_logs(processors=shown) as captured:
        yield lambda event, facts=(): [
            line for line in captured if line["event"] == event and dict(facts).items() <= line.items()
        ]


@pytest.fixture
def found(spans: Any) -> Found:
    """The spans of a name of which these attributes hold; of a call over gRPC, those of who was called."""
    return lambda name, facts=(): [
        span
        for span in spans.finished(name)
        if dict(facts).items() <= span.attributes.items()
        and (span.kind is SpanKind.SERVER or not name.startswith(SERVICE))
    ]


def traces_of(links: Any) -> set[int]:
    """The traces that links lead to."""
    return {link.context.trace_id for link in links}


async def test_wrong_voice(system: Any, spans: Any, found: Found, lines: Lines, speech: bytes) -> None:
    """A call was heard in another caller's voice: whose it was, and why the agent had not this one's."""
    ivan = (await system.deliver(speech)).json()["voice_id"]
    maria = (await system.deliver(speech, conversation_id="conv_2", caller_metadata=MARIA)).json()["voice_id"]
    await spans.wait("POST /webhook", 2)

    (prepared,) = found(PREPARE, {CONVERSATION: "conv_2"})
    (given,) = found(f"PATCH {AGENT}", {AGENT_ID: "agent_demo"})
    (made,) = found(CREATE_SPAN, {CONVERSATION: given.attributes[CONVERSATION]})
    assert (maria, False, "not_free") == (
        prepared.attributes[VOICE_ID],
        prepared.attributes["precall.agent.updated"],
        prepared.attributes["precall.agent.not_updated"],
    )
    assert found(PREPARE, {CONVERSATION: "conv_1", VOICE_ID: ivan, "precall.agent.updated": True})
    assert made.context.trace_id == given.context.trace_id

    (line,) = lines("request answered", {CONVERSATION: "conv_2"})
    assert (maria, "not_free") == (line[VOICE_ID], line["precall.agent.not_updated"])
    assert [("conv_1", ivan)] == [
        (line[CONVERSATION], line[VOICE_ID]) for line in lines("agent given", {AGENT_ID: "agent_demo"})
    ]
    assert {ivan: "conv_1", maria: "conv_2"} == {
        line[VOICE_ID]: line[CONVERSATION] for line in lines("voice created")
    }


async def test_slow(
    running: Any, emulator: Emulator, spans: Any, found: Found, lines: Lines, speech: bytes
) -> None:
    """Calls were slow: one waited for ElevenLabs, the other in our own queue, and ElevenLabs was not asked."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    settings = {"of_cloner": {"provider_concurrency": 1}, "of_gateway": {"precall_budget_ms": 3000}}
    async with running(**settings) as system:
        first = asyncio.create_task(system.deliver(speech))
        await emulator.requests.wait(path=CREATE, stage="held")
        await system.deliver(speech, conversation_id="conv_2", caller_metadata=MARIA)
        await first
        emulator.faults.clear()
        await spans.wait("POST /webhook", 2)

    (asked,), (queued,) = (found(PREPARE, {CONVERSATION: name}) for name in ("conv_1", "conv_2"))
    assert "precall.queue" not in asked.attributes
    assert asked.attributes["precall.provider_ms"] > 1000 > asked.attributes.get("precall.queue_ms", 0)
    assert "own" == queued.attributes["precall.queue"]
    assert queued.attributes["precall.queue_ms"] > 1000 > queued.attributes.get("precall.provider_ms", 0)
    assert "own" == found("POST /webhook", {CONVERSATION: "conv_2"})[0].attributes["precall.queue"]
    waits = found("wait for provider slot", {CONVERSATION: "conv_2"})
    # Reading the agent waits for a second at the most, so that none of them alone need be longer.
    waited = sum(wait.end_time - wait.start_time for wait in waits) / 1e6
    assert pytest.approx(queued.attributes["precall.queue_ms"], rel=0.1) == waited > 1000

    assert lines("delivery answered", {CONVERSATION: "conv_2", "precall.queue": "own"})
    (asked,), (queued,) = (lines("request answered", {CONVERSATION: name}) for name in ("conv_1", "conv_2"))
    assert ("PROVIDER_TIMEOUT", None) == (asked[REASON], asked.get("precall.queue"))
    assert asked["precall.provider_ms"] > 1000 > asked.get("precall.queue_ms", 0)
    assert (True, "own") == (queued[REASON] in ("PROVIDER_BUSY", "RATE_LIMITED"), queued["precall.queue"])
    assert queued["precall.queue_ms"] > 1000 > queued.get("precall.provider_ms", 0)


async def test_pause(system: Any, emulator: Emulator, found: Found, lines: Lines, speech: bytes) -> None:
    """ElevenLabs asked for time before it is asked again: how much, and why."""
    busy = {"error": "rate_limit_exceeded", "headers": {"Retry-After": "1"}}
    emulator.faults.set(Fault(method="POST", path=CREATE, **busy))
    assert 200 == (await system.deliver(speech)).status_code

    (pause,) = found("pause before next try", {CONVERSATION: "conv_1"})
    assert {REASON: "PROVIDER_BUSY", "precall.retry_after_seconds": 1.0}.items() <= pause.attributes.items()
    assert pause.end_time - pause.start_time >= 1e9
    assert lines("provider refused", {REASON: "PROVIDER_BUSY", "precall.retry_after_seconds": 1.0})
    (line,) = lines("request answered")
    assert line["precall.pause_ms"] >= 1000


async def test_agent_that_keeps_a_voice(
    running: Any, emulator: Emulator, spans: Any, found: Found, lines: Lines, speech: bytes, eventually: Any
) -> None:
    """An agent keeps a caller's voice: why, whose, who gave it and who ended the call."""
    async with running(of_cloner={"provider_attempts": 1}) as system:
        # The call that had the voice made is over, and has nothing to do with the next.
        voice = (await system.deliver(speech, conversation_id="conv_0")).json()["voice_id"]
        await system.end("conv_0")
        await eventually(lambda: lines("agent restored", {CONVERSATION: "conv_0"}))
        assert voice == (await system.deliver(speech)).json()["voice_id"]
        emulator.faults.set(Fault(method="PATCH", path=AGENT, error="service_unavailable"))
        await system.end()
        await eventually(lambda: lines("agent not put back yet"))
        await eventually(lambda: lines("agent restored", {CONVERSATION: "conv_1"}))
        await spans.wait("restore agent", 3)

    (given,), (ended,) = (
        [span.context.trace_id for span in found(name, {CONVERSATION: "conv_1"})]
        for name in (PREPARE, COMPLETE)
    )
    failed, done = found("restore agent", {CONVERSATION: "conv_1"})
    about = {AGENT_ID: "agent_demo", CONVERSATION: "conv_1", VOICE_ID: voice}
    assert about.items() <= failed.attributes.items()
    assert ("PROVIDER_UNAVAILABLE", "service_unavailable", StatusCode.ERROR) == (
        failed.attributes[REASON], failed.attributes[CODE], failed.status.status_code,
    )  # fmt: skip
    assert [{given, ended}] * 2 == [traces_of(span.links) for span in (failed, done)]
    assert StatusCode.UNSET is done.status.status_code
    (refused, taken) = found(f"PATCH {AGENT}", {VOICE_ID: voice, "precall.origin.trace_id": f"{given:032x}"})
    assert (503, 200) == tuple(span.attributes["http.response.status_code"] for span in (refused, taken))

    (line,) = lines("agent not put back yet")
    assert about.items() <= line.items()
    assert ("PROVIDER_UNAVAILABLE", "service_unavailable") == (line[REASON], line[CODE])
    assert (given, ended) == tuple(
        int(line[f"precall.{which}.trace_id"], 16) for which in ("origin", "ended_by")
    )
    assert {line[CALL_ID]} == {
        told[CALL_ID]
        for event in ("call opened", "call ended")
        for told in lines(event, {CONVERSATION: "conv_1"})
    }


async def test_refused_by_the_provider(
    running: Any, emulator: Emulator, found: Found, lines: Lines, speech: bytes
) -> None:
    """ElevenLabs refuses us: since when, what, and why in its own word."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, error="invalid_api_key"))
    async with running() as system:
        assert 502 == (await system.deliver(speech)).status_code

    (span,) = found(CREATE_SPAN, {"peer.service": "elevenlabs"})
    assert (401, "invalid_api_key", "conv_1") == tuple(
        span.attributes[name] for name in ("http.response.status_code", CODE, CONVERSATION)
    )
    (prepared,) = found(PREPARE)
    assert ("PROVIDER_UNAUTHORIZED", "invalid_api_key") == (
        prepared.attributes[REASON],
        prepared.attributes[CODE],
    )

    (line,) = lines("provider refused")
    assert {
        "log_level": "error", REASON: "PROVIDER_UNAUTHORIZED", CODE: "invalid_api_key",
        "precall.provider.operation": "clone", "precall.provider.status": 401, CONVERSATION: "conv_1",
        "trace_id": f"{span.context.trace_id:032x}",
    }.items() <= line.items()  # fmt: skip


async def test_who_deleted_a_voice(
    running: Any, emulator: Emulator, found: Found, lines: Lines, speech: bytes, eventually: Any
) -> None:
    """Somebody deleted a voice: who, and why, also where ElevenLabs did it later."""
    token = "token-of-the-crm"
    hashed = hashlib.sha256(token.encode()).hexdigest()
    clients = Toml(f'[clients.crm]\ntoken_sha256 = ["{hashed}"]\nmay = ["erase"]\n')
    own = (Secret("token-of-the-gateway"),)
    cloner = {"cloner_clients": clients, "cloner_token": own, "provider_attempts": 1}
    async with running(of_cloner=cloner, of_gateway={"cloner_token": own}) as system:
        # The call that had the voice made is not the last one with it.
        assert 200 == (await system.deliver(speech, conversation_id="conv_0")).status_code
        await system.end("conv_0")
        await eventually(lambda: lines("agent restored", {CONVERSATION: "conv_0"}))
        voice = (await system.deliver(speech)).json()["voice_id"]
        await system.end()
        await eventually(lambda: lines("agent restored", {CONVERSATION: "conv_1"}))
        emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, error="service_unavailable"))
        async with connect(system.cloner, token=token) as client:
            assert not (await client.delete_voice(voice)).deleted
        emulator.faults.clear()
        await eventually(lambda: lines("voice deleted"))

    (asked,) = found(DELETE, {"precall.client": "crm", VOICE_ID: voice})
    # The cloner may have tried by itself, too, while ElevenLabs refused.
    *_, deleted = found("delete voice", {VOICE_ID: voice})
    (used,), (ended,) = (found(name, {CONVERSATION: "conv_1"}) for name in (PREPARE, COMPLETE))
    assert {span.context.trace_id for span in (used, ended, asked)} == traces_of(deleted.links)
    refused, *others, done = (
        span.attributes["http.response.status_code"] for span in found(f"DELETE {VOICE}", {VOICE_ID: voice})
    )
    assert ({503}, 200) == ({refused, *others}, done)

    (given_up,), (gone,) = (lines(event, {VOICE_ID: voice}) for event in ("voice given up", "voice deleted"))
    assert ("crm", DELETE, "deleted", "deleted") == (
        given_up["precall.client"], given_up["rpc.method"], given_up[REASON], gone[REASON],
    )  # fmt: skip


async def test_fallbacks(running: Any, emulator: Emulator, found: Found, lines: Lines, speech: bytes) -> None:
    """Deliveries fell back: which, and why."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, error="invalid_content"))
    async with running(of_gateway={"precall_fallback": "default_voice"}) as system:
        assert "fallback" == (await system.deliver(speech)).json()["status"]
        emulator.faults.clear()
        assert "success" == (await system.deliver(speech, conversation_id="conv_2")).json()["status"]

    (span,) = found("POST /webhook", {"precall.fallback": True})
    (line,) = lines("delivery answered", {"precall.fallback": True})
    for told in (span.attributes, line):
        assert {
            "precall.outcome": "fallback", REASON: "SAMPLE_REJECTED", CONVERSATION: "conv_1",
            AGENT_ID: "agent_demo", "http.route": "/webhook",
        }.items() <= told.items()  # fmt: skip
    assert "warning" == line["log_level"]


async def test_mistyped_url(system: Any, found: Found, lines: Lines) -> None:
    """An event at a URL that does not exist shows how far that is right, and nothing that stands in it."""
    answers = [
        await system.end(path=path) for path in ("/webhook/post-cal", "/webhook/+31612345678", "/elsewhere")
    ]
    answers.append(await system.http.get("/webhook/post-call"))
    answers.append(await system.http.get("/schema/Ivan +31612345678"))

    assert [404, 404, 404, 405, 404] == [answer.status_code for answer in answers]
    assert ["/webhook/post-cal", "/webhook/#", "/webhook/post-call"] == [
        line["url.path"] for line in lines("request refused")
    ]
    schema = found("GET /schema/{path}")
    told = [span.attributes.get("url.path") for span in (*found("POST"), *found("GET"), *schema)]
    assert ["/webhook/post-cal", "/webhook/#", None, "/webhook/post-call", None] == told
