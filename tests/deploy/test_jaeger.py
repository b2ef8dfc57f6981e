"""Questions of docs/RUNBOOK.md, asked of a real Jaeger about real processes."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from demo.actors import Actors, Person
from demo.system import System, start
from tests.deploy.jaeger import CONFIGURATION, Jaeger, program, running
from tests.deploy.observability import panels
from tests.kit.ports import free_port

ROOT = Path(__file__).parents[2]
COLLECTOR = ROOT / "deploy" / "observability" / "collector.yml"
LeftOut = Callable[[str], None]
PREPARE = "precall.v1.CloningService/PrepareCall"
AGENT = "agent_demo"


def people(count: int) -> list[Person]:
    """Callers, each with a name and a number."""
    return [
        Person(f"Caller{'abcdefghijklmnopqrstuvwxyz'[n]}", f"+3161234{n:04}", "agreed") for n in range(count)
    ]


@contextmanager
def jaeger(folder: Path, binary: str, *options: str) -> Iterator[Jaeger]:
    """A Jaeger that keeps all in memory, on free ports."""
    ports = {name: free_port() for name in ("query", "query_grpc", "http", "grpc")}
    (folder / "jaeger.yml").write_text(CONFIGURATION.format(**ports))
    found = Jaeger(query=ports["query"], http=ports["http"], grpc=ports["grpc"])
    with running([binary, *options, f"--config={folder}/jaeger.yml"], f"{found.query}/api/services", folder):
        yield found


@contextmanager
def living(endpoint: str, **settings: dict[str, str]) -> Iterator[tuple[System, Actors]]:
    """Emulator, cloner and gateway, which send their spans there, and those who call them."""
    with ExitStack() as stack:
        status = stack.enter_context(Console(quiet=True).status(""))
        http = stack.enter_context(httpx.Client(timeout=30, trust_env=False))
        system = start(stack, status, endpoint, **settings)
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


@contextmanager
def collector(folder: Path, binary: str, traces: Jaeger) -> Iterator[dict[str, str]]:
    """The collector as it is deployed, on free ports, in a hurry; yields where it takes spans and tells metrics."""
    at = {name: f"127.0.0.1:{free_port()}" for name in ("http", "grpc", "spans", "health")}
    settings = [
        f"--set=receivers.otlp.protocols.http.endpoint={at['http']}",
        f"--set=receivers.otlp.protocols.grpc.endpoint={at['grpc']}",
        f"--set=extensions.healthcheckv2.http.endpoint={at['health']}",
        "--set=connectors.spanmetrics.metrics_flush_interval=1s",
    ]
    environ = {"TRACES_ENDPOINT": traces.grpc, "SPAN_METRICS_ADDRESS": at["spans"], "DECISION_WAIT": "2s"}
    with running(
        [binary, *settings, f"--config={COLLECTOR}"], f"http://{at['health']}/status", folder, environ
    ):
        yield at


@pytest.mark.long
@pytest.mark.timeout(240)
def test_collector_keeps_what_matters(left_out: LeftOut, tmp_path: Path) -> None:
    """Every trace that failed is kept while most others are not, and every span counts in the metrics of spans."""
    if (binary := program()) is None:
        left_out("jaeger, as the collector of deploy/observability/collector.yml")
        return
    *known, stranger = people(3)
    good = 30
    with (
        jaeger(tmp_path, binary) as found,
        collector(tmp_path, binary, found) as at,
        living(f"http://{at['http']}") as (system, actors),
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
        failed = {trace.id for trace in bad}
        kept = [trace for trace in found.traces("gateway", "POST /webhook") if trace.id not in failed]
        assert good / 2 > len(kept)
        counted = httpx.get(f"http://{at['spans']}/metrics", trust_env=False).text
        each = re.findall(
            r"^traces_span_metrics_duration_milliseconds_count\{(.*)\} (\d+)", counted, re.MULTILINE
        )
        assert good + 3 == sum(int(count) for labels, count in each if 'span_name="POST /webhook"' in labels)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_prometheus_rings_and_monitor_shows(left_out: LeftOut, tmp_path: Path) -> None:
    """A real Prometheus scrapes all, takes every rule and rings; Jaeger's Monitor tab shows what it has of spans."""
    binary, prometheus = program(), shutil.which("prometheus")
    if binary is None or prometheus is None:
        left_out("prometheus, with jaeger")
        return
    at_prometheus = f"127.0.0.1:{free_port()}"
    ports = {name: str(free_port()) for name in ("cloner", "gateway")}
    of = {
        name: {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": ports[name]}
        for name in ports
    }
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["jaeger"]["command"]
    (stranger,) = people(1)
    with (
        jaeger(tmp_path, binary, *(one.replace("prometheus:9090", at_prometheus) for one in compose)) as found,
        collector(tmp_path, binary, found) as at,
        living(f"http://{at['http']}", of_cloner=of["cloner"], of_gateway=of["gateway"]) as (system, actors),
        running(
            [
                prometheus, f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address={at_prometheus}",
                "--enable-feature=exemplar-storage", f"--config.file={scraping(tmp_path, ports, at['spans'])}",
            ],
            f"http://{at_prometheus}/-/ready",
            tmp_path,
        ),
    ):  # fmt: skip
        refuse(system, error="unauthorized")
        assert 502 == actors.deliver(stranger, "conv_bad", "json").status_code

        def asked(path: str, **query: str) -> Any:
            answer = httpx.get(f"http://{at_prometheus}/api/v1/{path}", params=query, trust_env=False)
            answer.raise_for_status()
            return answer.json()["data"]

        def holds(told: Callable[[], object]) -> None:
            until = time.monotonic() + 60
            while not told():
                assert time.monotonic() < until, asked("targets")
                time.sleep(0.2)

        holds(
            lambda: (
                {"PrecallProviderUnauthorized"}
                == {one["labels"]["alertname"] for one in asked("alerts")["alerts"]}
            )
        )
        assert ["up"] * 3 == [one["health"] for one in asked("targets")["activeTargets"]]
        rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
        assert {"ok"} == {rule["health"] for rule in rules}
        for panel in panels():
            for target in panel["targets"]:
                if "expr" in target:
                    asked("query", query=target["expr"].replace("$__rate_interval", "1m"))

        def monitor() -> object:
            query = {
                "service": "gateway",
                "lookback": "600000",
                "step": "5000",
                "ratePer": "600000",
                "groupByOperation": "true",
            }
            answers = [
                httpx.get(f"{found.query}/api/metrics/{kind}", params=query | more, trust_env=False).json()[
                    "metrics"
                ]
                for kind, more in (("calls", {}), ("latencies", {"quantile": "0.95"}))
            ]
            return all(
                any({"name": "operation", "value": "POST /webhook"} in one["labels"] for one in metrics)
                for metrics in answers
            )

        holds(monitor)


def scraping(folder: Path, ports: dict[str, str], spans: str) -> Path:
    """The configuration of Prometheus as it is deployed, for processes on this machine, and in a hurry."""
    configuration = yaml.safe_load((COLLECTOR.parent / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(COLLECTOR.parent / "alerts.yml")]
    for job in configuration["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        name = job["job_name"]
        job["static_configs"] = [{"targets": [spans if name == "spans" else f"localhost:{ports[name]}"]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path
