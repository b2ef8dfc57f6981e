"""Questions of docs/RUNBOOK.md, asked of a real Jaeger about real processes."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from demo.actors import Actors, Person
from demo.system import System, start
from tests.deploy.jaeger import CONFIGURATION, Jaeger, program, running
from tests.valkey import free_port

COLLECTOR = Path(__file__).parents[2] / "deploy" / "observability" / "collector.yml"
LeftOut = Callable[[str], None]
PREPARE = "precall.v1.CloningService/PrepareCall"
AGENT = "agent_demo"


def people(count: int) -> list[Person]:
    """Callers, each with a name and a number."""
    return [
        Person(f"Caller{'abcdefghijklmnopqrstuvwxyz'[n]}", f"+3161234{n:04}", "agreed") for n in range(count)
    ]


@contextmanager
def jaeger(folder: Path, binary: str) -> Iterator[Jaeger]:
    """A Jaeger that keeps all in memory, on free ports."""
    ports = {name: free_port() for name in ("query", "query_grpc", "http", "grpc")}
    (folder / "jaeger.yml").write_text(CONFIGURATION.format(**ports))
    found = Jaeger(query=ports["query"], http=ports["http"], grpc=ports["grpc"])
    with running([binary, f"--config={folder}/jaeger.yml"], f"{found.query}/api/services", folder):
        yield found


@contextmanager
def living(endpoint: str) -> Iterator[tuple[System, Actors]]:
    """Emulator, cloner and gateway, which send their spans there, and those who call them."""
    with ExitStack() as stack:
        status = stack.enter_context(Console(quiet=True).status(""))
        http = stack.enter_context(httpx.Client(timeout=30, trust_env=False))
        system = start(stack, status, endpoint)
        actors = Actors(
            http, gateway=system.gateway, cloner=system.cloner, emulator=system.emulator, secret=system.secret
        )
        actors.configure(system.token)
        yield system, actors


def refuse(system: System, **fault: object) -> None:
    """Has ElevenLabs refuse clones from now on."""
    wanted = [{"method": "POST", "path": "/v1/voices/add", "times": None, **fault}]
    httpx.post(f"{system.emulator}/emulator/faults", json=wanted, trust_env=False).raise_for_status()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_an_operator_finds_it(left_out: LeftOut, tmp_path: Path) -> None:
    """A call is found by conversation, agent, voice and reason, and so is what was done about it later."""
    if (binary := program()) is None:
        left_out("jaeger")
        return
    maria, ivan = people(2)
    with jaeger(tmp_path, binary) as found, living(found.endpoint) as (system, actors):
        answer = actors.deliver(maria, "conv_1", "json").json()
        assert "success" == answer["status"]
        call = actors.rings(maria, answer["conversation_initiation_client_data"])
        assert [200] == actors.hangs_up(call)
        refuse(system, error="unauthorized")
        refused = actors.deliver(ivan, "conv_2", "json")
        assert "PROVIDER_UNAUTHORIZED" == refused.json()["reason"]

        # By conversation: the delivery, whole, over both processes. Spans come as they end, in no order.
        whole = {("gateway", "POST /webhook"), ("cloner", PREPARE), ("cloner", "POST /v1/voices/add")}
        delivery = found.the(whole, "cloner", gen_ai__conversation__id="conv_1")
        assert answer["voice_id"] == delivery.named(PREPARE, "cloner")["precall.voice.id"]
        # By agent: both deliveries.
        found.find(
            lambda traces: (
                {"conv_1", "conv_2"}
                <= {at for trace in traces for at in trace.told("gen_ai.conversation.id")}
            ),
            "cloner",
            gen_ai__agent__id=AGENT,
        )
        # By voice: how it came, and who deleted it, which leads back to how it came.
        deleted = found.the(
            {("cloner", "delete voice"), ("cloner", "DELETE /v1/voices/{voice_id}")},
            "cloner",
            precall__voice__id=answer["voice_id"],
        )
        assert delivery.id in deleted.linked
        # By reason: what ElevenLabs refused, and how it said so.
        failed = found.the(whole, "gateway", precall__reason="PROVIDER_UNAUTHORIZED")
        assert refused.json()["trace_id"] == failed.id
        assert 401 == failed.named("POST /v1/voices/add", "cloner")["http.response.status_code"]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_collector_keeps_what_matters(left_out: LeftOut, tmp_path: Path) -> None:
    """Every trace that failed is kept while most others are not, and every span counts in the metrics of spans."""
    if (binary := program()) is None:
        left_out("jaeger, as the collector of deploy/observability/collector.yml")
        return
    ports = {name: free_port() for name in ("http", "grpc", "spans", "health")}
    settings = [
        f"--set=receivers.otlp.protocols.http.endpoint=127.0.0.1:{ports['http']}",
        f"--set=receivers.otlp.protocols.grpc.endpoint=127.0.0.1:{ports['grpc']}",
        f"--set=extensions.healthcheckv2.http.endpoint=127.0.0.1:{ports['health']}",
        "--set=connectors.spanmetrics.metrics_flush_interval=1s",
    ]
    *known, stranger = people(3)
    good = 30
    with (
        jaeger(tmp_path, binary) as found,
        running(
            [binary, *settings, f"--config={COLLECTOR}"],
            f"http://127.0.0.1:{ports['health']}/status",
            tmp_path,
            {
                "TRACES_ENDPOINT": found.grpc,
                "SPAN_METRICS_ADDRESS": f"127.0.0.1:{ports['spans']}",
                "DECISION_WAIT": "2s",
            },
        ),
        living(f"http://127.0.0.1:{ports['http']}") as (system, actors),
    ):
        for person in known:
            actors.enrol(person)
        for number in range(good):
            assert 200 == actors.deliver(known[number % 2], f"conv_good_{number}", "json").status_code
        refuse(system, error="unauthorized")
        for number in range(3):
            assert 502 == actors.deliver(stranger, f"conv_bad_{number}", "json").status_code
        system.stop()

        bad = found.find(lambda traces: len(traces) == 3, "gateway", precall__reason="PROVIDER_UNAUTHORIZED")
        assert all(("cloner", PREPARE) in trace.edges for trace in bad)
        # What came first was decided about first.
        kept = [
            trace
            for trace in found.traces("gateway", "POST /webhook")
            if trace.id not in {one.id for one in bad}
        ]
        assert good / 2 > len(kept)
        counted = httpx.get(f"http://127.0.0.1:{ports['spans']}/metrics", trust_env=False).text
        each = re.findall(
            r"^traces_span_metrics_duration_milliseconds_count\{(.*)\} (\d+)", counted, re.MULTILINE
        )
        assert good + 3 == sum(int(count) for labels, count in each if 'span_name="POST /webhook"' in labels)
