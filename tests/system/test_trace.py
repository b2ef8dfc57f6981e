import asyncio
from collections.abc import Iterable
from importlib.metadata import version

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from emulator import Fault
from environment import Secret
from telemetry.tracing import described, provider_of, tracing
from tests.kit.rows import rows

CREATE = "/v1/voices/add"
AGENT = "/v1/convai/agents/{agent_id}"
RPC = "precall.v1.CloningService/PrepareCall"

# Every span of a first delivery: service, name, and the span above it. What is written down of an agent that was
# updated is nobody's to wait for, and may have a span or come too late for one.
EDGES = {
    ("gateway", "POST /webhook", None),
    ("gateway", "receive body", "POST /webhook"),
    ("gateway", RPC, "POST /webhook"),
    ("cloner", RPC, RPC),
    ("cloner", "registry calls.begin", RPC),
    ("cloner", "registry voices.intend", RPC),
    ("cloner", "registry voices.marker_of", RPC),
    ("cloner", "registry agents.record_and_intend", RPC),
    ("cloner", "inspect sample", RPC),
    ("cloner", f"GET {AGENT}", RPC),
    ("cloner", f"POST {CREATE}", RPC),
    ("cloner", f"PATCH {AGENT}", RPC),
}


def edges(spans: Iterable[ReadableSpan]) -> set[tuple[str, str, str | None]]:
    """The service, the name and the parent's name of each span."""
    names = {span.context.span_id: span.name for span in spans}
    return {
        (
            str(span.resource.attributes["service.name"]),
            span.name,
            names[span.parent.span_id] if span.parent else None,
        )
        for span in spans
    }


def failed(spans: Iterable[ReadableSpan]) -> set[tuple[str, str]]:
    """The service and the name of each span that failed."""
    return {
        (str(span.resource.attributes["service.name"]), span.name)
        for span in spans
        if span.status.status_code is StatusCode.ERROR
    }


@pytest.mark.parametrize("form", ["json", "multipart"])
async def test_one_trace_over_both_hops(system, speech: bytes, spans, form: str) -> None:
    """One trace id, the right parents, the answer names it, and nothing failed."""
    answer = await system.deliver(speech, form=form)

    (root,) = await spans.wait("POST /webhook")
    form_of_it, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert ("00", 1) == (form_of_it, int(flags, 16) & 1)
    assert (trace_id, span_id) == (f"{root.context.trace_id:032x}", f"{root.context.span_id:016x}")
    assert {root.context.trace_id} == {span.context.trace_id for span in spans.of_delivery()}
    waited_for = [span for span in spans.of_delivery() if span.name != "registry agents.unlock"]
    assert EDGES == edges(waited_for)
    assert len(EDGES) == len(waited_for)
    assert set() == failed(spans.of_delivery())
    assert {
        "http.request.method": "POST",
        "http.route": "/webhook",
        "http.response.status_code": 200,
        "gen_ai.conversation.id": "conv_1",
        "gen_ai.agent.id": "agent_demo",
        "precall.sample.size": len(speech),
        "precall.outcome": "success",
    }.items() <= root.attributes.items()


async def test_initiation(running, spans) -> None:
    """A call that ElevenLabs asks about is one trace too, which tells what came of it."""
    open_call = "precall.v1.CloningService/OpenCall"
    route = "/webhook/conversation-init"
    async with running(of_gateway={"conversation_init_token": (Secret("token"),)}) as system:
        asked = {"agent_id": "agent_demo", "conversation_id": "conv_1", "caller_id": "+31612345678"}
        headers = {"Authorization": "Bearer token", "traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}
        answer = await system.http.post(route, json=asked, headers=headers)
        (root,) = await spans.wait(f"POST {route}")

    assert f"{root.context.trace_id:032x}" == answer.headers["traceresponse"].split("-")[1]
    assert {
        ("gateway", f"POST {route}", None),
        ("gateway", "receive body", f"POST {route}"),
        ("gateway", open_call, f"POST {route}"),
        ("cloner", open_call, open_call),
        ("cloner", "registry calls.open_call", open_call),
        ("cloner", f"GET {AGENT}", open_call),
    } == edges(spans.of_delivery())
    assert {
        "http.route": route,
        "http.response.status_code": 200,
        "gen_ai.conversation.id": "conv_1",
        "gen_ai.agent.id": "agent_demo",
        "precall.reason": "caller_unknown",
    }.items() <= root.attributes.items()
    assert [int("1" * 32, 16)] == [link.context.trace_id for link in root.links]
    assert set() == failed(spans.of_delivery())


async def test_strangers_trace_is_linked_and_not_continued(system, spans) -> None:
    """Nobody outside chooses our trace ids or our sampling, and their baggage is dropped."""
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

    await system.http.post("/webhook", headers={"traceparent": theirs, "baggage": "their=words"})

    (root,) = await spans.wait("POST /webhook")
    assert root.parent is None
    assert 0x0AF7651916CD43DD8448EB211C80319C != root.context.trace_id
    assert [0x0AF7651916CD43DD8448EB211C80319C] == [link.context.trace_id for link in root.links]
    assert not any("their" in str(value) for value in root.attributes.values())


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ÿ" * 5_000])
async def test_hostile_traceparent(system, spans, header: str) -> None:
    """A header that is no trace context is passed over."""
    await system.http.post("/webhook", headers=[(b"traceparent", header.encode("latin-1"))])

    (root,) = await spans.wait("POST /webhook")
    assert () == tuple(root.links)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # The provider refused, and whoever waited for it failed; a 422 is no failure of the gateway's own.
        ({"error": "invalid_content"}, {("cloner", f"POST {CREATE}"), ("gateway", RPC)}),
        # The provider is down: everybody who waited failed.
        (
            {"error": "service_unavailable"},
            {("cloner", f"POST {CREATE}"), ("cloner", RPC), ("gateway", RPC), ("gateway", "POST /webhook")},
        ),
    ],
    ids=["refused", "down"],
)
async def test_status_is_true(running, emulator, speech: bytes, spans, fault, expected) -> None:
    """A span failed where something failed, and only there."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, **fault))

    async with running(of_cloner={"provider_attempts": 1}) as system:
        await system.deliver(speech)
        await spans.wait("POST /webhook")

    assert expected == failed(spans.of_delivery())


async def test_client_that_hangs_up(system, emulator, speech: bytes, spans) -> None:
    """Every span of the call that is gone ends and says so; the clone goes on, and no agent is touched."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    delivery = asyncio.create_task(system.deliver(speech))
    await emulator.requests.wait(path=CREATE, stage="held")

    delivery.cancel()
    await spans.wait("POST /webhook")
    await spans.wait(RPC, 2)
    gone = {("gateway", "POST /webhook"), ("gateway", RPC), ("cloner", RPC)}
    assert gone == failed(spans.of_delivery())
    root = spans.one("POST /webhook")
    assert "client_disconnected" == root.attributes["error.type"]
    assert "http.response.status_code" not in root.attributes

    emulator.faults.release()
    await spans.wait(f"POST {CREATE}")
    assert gone == failed(spans.of_delivery())
    assert {root.context.trace_id} == {span.context.trace_id for span in spans.of_delivery()}
    assert [] == emulator.requests.matching(method="PATCH")


async def test_deadline_that_passes(running, emulator, speech: bytes, spans) -> None:
    """A call that ran out of time failed in every process that waited."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))

    async with running(of_gateway={"precall_budget_ms": 2_500}) as system:
        await system.deliver(speech)
        await spans.wait("POST /webhook")
        await spans.wait(RPC, 2)
        waited = {("gateway", "POST /webhook"), ("gateway", RPC), ("cloner", RPC)}
        assert waited == failed(spans.of_delivery())
        assert {"DEADLINE_EXCEEDED"} == {
            span.attributes["rpc.response.status_code"] for span in spans.finished(RPC)
        }
        emulator.faults.release()


async def test_cloner_that_is_gone(running, speech: bytes, spans) -> None:
    """A call that reached nobody has a client span that failed, and no server span."""
    async with running(of_gateway={"cloner_target": "127.0.0.1:1"}) as system:
        await system.deliver(speech)
        await spans.wait("POST /webhook")

    assert {("gateway", "POST /webhook"), ("gateway", RPC)} == failed(spans.of_delivery())
    assert "UNAVAILABLE" == spans.one(RPC).attributes["rpc.response.status_code"]


async def test_second_delivery_links_to_the_clone_it_waits_for(
    system, emulator, speech: bytes, spans
) -> None:
    """Who waits for a clone that another delivery began can be led there."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    first = asyncio.create_task(system.deliver(speech))
    await emulator.requests.wait(path=CREATE, stage="held")
    second = asyncio.create_task(system.deliver(speech, conversation_id="conv_another"))
    await emulator.requests.wait(2, path=AGENT)
    emulator.faults.release()

    traces = [int((await task).headers["traceresponse"].split("-")[1], 16) for task in (first, second)]

    await spans.wait("POST /webhook", 2)
    links = [
        (span.context.trace_id, link.context.trace_id) for span in spans.finished(RPC) for link in span.links
    ]
    assert [(traces[1], traces[0])] == links


async def test_trace_that_is_not_kept(running, spans, sqlite: str, speech: bytes) -> None:
    """An answer says that its trace is not sampled, and so does whatever links to it later."""
    provider = provider_of(described("test", {}), ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    async with running(tracing=provider) as system:
        answer = await system.deliver(speech)

    form_of_it, trace_id, _, flags = answer.headers["traceresponse"].split("-")
    assert ("00", 0) == (form_of_it, int(flags, 16) & 1)
    stored = await rows(
        sqlite,
        "SELECT traceparent FROM voices UNION SELECT traceparent FROM calls UNION SELECT traceparent FROM agents",
    )
    assert {(trace_id, flags)} == {
        (found["traceparent"].split("-")[1], found["traceparent"].split("-")[3]) for found in stored
    }
    assert [] == spans.finished()


async def test_resource(system, speech: bytes, spans) -> None:
    """Spans say which release they are of, and that the processes belong together."""
    await system.deliver(speech)
    await spans.wait("POST /webhook")

    assert {("gateway", "precall", version("precall")), ("cloner", "precall", version("precall"))} == {
        tuple(span.resource.attributes[f"service.{name}"] for name in ("name", "namespace", "version"))
        for span in spans.finished()
    }


async def test_health_checks_leave_no_trace(system, spans) -> None:
    """What is asked all day long is not traced."""
    for path in ("/health", "/health/live", "/health/ready"):
        assert 200 == (await system.http.get(path)).status_code

    assert [] == spans.of_delivery()


async def test_nothing_configured_exports_nothing(capfd) -> None:
    """Without a setting no exporter is made, and nothing is said."""
    with tracing("gateway", {}) as provider, provider.get_tracer("t").start_as_current_span("s") as span:
        assert span.get_span_context().is_valid

    assert ("", "") == capfd.readouterr()


@pytest.mark.long
@pytest.mark.parametrize("answers", [False, True], ids=["dead", "silent"])
async def test_collector_that_does_not_answer(running, speech: bytes, monkeypatch, *, answers: bool) -> None:
    """While a collector is dead, or takes spans and never says so, deliveries go on as ever."""
    took = asyncio.Event()
    asked = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await took.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1] if answers else 1}"
        # Read by the SDK's exporter and batch processor when they are made.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        with tracing("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as provider:
            async with running(tracing=provider) as system:
                for number in range(20):
                    caller = {"phone_number": f"+316123450{number:02}"}
                    answer = await system.deliver(
                        speech, conversation_id=f"conv_{number}", caller_metadata=caller
                    )
                    assert 200 == answer.status_code
                    if answers and not number:
                        await asked.wait()
            took.set()
