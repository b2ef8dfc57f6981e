"""What is deployed to watch the processes: rules, pictures and where they lead."""

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloner.provider.endpoints import ENDPOINTS
from tests.deploy.observability import FOLDER, ROOT, panels, read

LeftOut = Callable[[str], None]

# Beside the project's own: what Prometheus itself adds, and OpenTelemetry's conventions.
OF_OTHERS = {"up", "ALERTS", "traces_span_metrics_duration_milliseconds"}
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules that ring (`alert`) or that others build on (`record`)."""
    return [rule for group in read("alerts.yml")["groups"] for rule in group["rules"] if kind in rule]


def names(expression: str) -> set[str]:
    """The metrics that an expression names, as they are called before they become histograms' buckets."""
    bare = re.sub(r"\{[^}]*\}|\b(?:by|on|without|ignoring)\s*\([^)]*\)|\[[^]]*\]|\"[^\"]*\"", " ", expression)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    operators = {"and", "or", "unless", "offset", "by", "on", "e", "m", "s", "h"}
    return {SUFFIXES.sub("", word) for word in words if word not in operators}


def documented() -> set[str]:
    """The metrics of docs/METRICS.md, as Prometheus names them."""
    rows = re.findall(
        r"^\| `[a-z.]+` \| `([a-z_]+)\*?` \|", (ROOT / "docs" / "METRICS.md").read_text(), re.MULTILINE
    )
    return set(rows)


def expressions() -> Iterator[str]:
    """Every expression of the rules and of the dashboard."""
    for kind in ("alert", "record"):
        yield from (rule["expr"] for rule in rules(kind))
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"] if "expr" in target)


async def run(*command: str) -> tuple[int | None, str]:
    """How a program ends, and all that it says."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=FOLDER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.timeout(600)
async def test_rules_ring_when_they_should(left_out: LeftOut) -> None:
    """Prometheus' own tool takes configuration and rules, and each rule rings when it should and not else."""
    if (promtool := shutil.which("promtool")) is None:
        left_out("promtool")
        return
    status, out = await run(promtool, "check", "rules", "--lint-fatal", "alerts.yml")
    assert 0 == status, out
    status, out = await run(promtool, "test", "rules", "alerts.test.yml")
    assert 0 == status, out
    status, out = await run(promtool, "check", "config", "prometheus.yml")
    assert 0 == status, out


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_every_alert(rule: dict[str, Any]) -> None:
    """An alert says what is wrong, leads to what to do about it, and has a test that it rings and one that it does not."""
    name = rule["alert"]
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert f"docs/RUNBOOK.md#{name.lower()}" == rule["annotations"]["runbook"]
    assert f"\n### {name}\n" in (ROOT / "docs" / "RUNBOOK.md").read_text()
    tried = [
        bool(one["exp_alerts"])
        for test in read("alerts.test.yml")["tests"]
        for one in test["alert_rule_test"]
        if one["alertname"] == name
    ]
    assert {True, False} == set(tried)


def test_runbook_has_no_alert_that_is_gone() -> None:
    """Every heading below "Alerts" is one of the rules'."""
    _, _, told = (ROOT / "docs" / "RUNBOOK.md").read_text().partition("\n## Alerts\n")

    assert sorted(rule["alert"] for rule in rules("alert")) == sorted(
        re.findall(r"^### (\w+)$", told, re.MULTILINE)
    )


def test_metrics_exist() -> None:
    """Rules and dashboard name no metric that no process has."""
    recorded = {rule["record"] for rule in rules("record")}

    for expression in expressions():
        assert names(expression) <= documented() | recorded | OF_OTHERS, expression


def test_words_exist() -> None:
    """What rules and their tests ask of events after calls and of requests are words that the processes tell."""
    tried = [series["series"] for test in read("alerts.test.yml")["tests"] for series in test["input_series"]]
    asked = [text for text in (*expressions(), *tried) if "precall_call_events_total" in text]
    told = {word for text in asked for word in re.findall(r'precall_outcome="(\w+)"', text)}
    operations = {
        word
        for text in (*expressions(), *tried)
        for word in re.findall(r'precall_provider_operation!?="(\w+)"', text)
    }

    assert {"call_ended", "call_unknown", "ignored"} == told
    assert {"clone", "read_account"} <= operations <= {endpoint.operation for endpoint in ENDPOINTS}


def test_calls_that_end() -> None:
    """An event that ends no call is no sign that the ends of calls are told."""
    (rule,) = (rule for rule in rules("record") if rule["record"] == "precall:call_events:30m")

    assert 3 == rule["expr"].count("precall_call_events_total")
    assert 2 == rule["expr"].count('precall_call_events_total{precall_outcome="call_ended"}')


def test_account_that_may_not_be_read() -> None:
    """A key without the permission to read the account, which calls do without, rings nothing."""
    (rule,) = (rule for rule in rules("record") if rule["record"] == "precall:provider_refusals:10m")

    assert 2 == rule["expr"].count(
        'precall_provider_requests_total{precall_provider_operation!="read_account"'
    )


def test_reasons_of_failing_deliveries() -> None:
    """Whatever fails deliveries by no fault of their senders rings, the key of another workspace among it."""
    (rule,) = (rule for rule in rules("alert") if rule["alert"] == "PrecallDeliveriesFail")
    (reasons,) = re.findall(r'precall_reason=~"([^"]+)"', rule["expr"])

    for reason in ("PROVIDER_UNAUTHORIZED", "AGENT_NOT_FOUND", "AGENT_REJECTED", "CLONER_UNAVAILABLE"):
        assert re.fullmatch(reasons, reason), reason
    for reason in ("SAMPLE_SILENT", "SIGNATURE_MISMATCH", "FIELD_MISSING"):
        assert not re.fullmatch(reasons, reason), reason


def test_names_are_found() -> None:
    """What is checked is what there is."""
    assert {"a_b_seconds", "c:d:10m", "up"} == names(
        'histogram_quantile(0.95, sum by (le, x) (rate(a_b_seconds_bucket{le="y"}[5m]))) > 6 and on () max(c:d:10m) '
        'unless up{job=~"gateway|cloner"} offset 10m'
    )
    assert len({name for expression in expressions() for name in names(expression)}) > 15


def test_dashboard() -> None:
    """There is a row for each of the runbook's questions; a panel says its metrics, and they are the ones it asks for."""
    rows = [one["title"] for one in read("grafana/dashboards/precall.json")["panels"] if one["type"] == "row"]
    questions = re.findall(r"^### \((\w)\)", (ROOT / "docs" / "RUNBOOK.md").read_text(), re.MULTILINE)

    assert list("abcdef") == questions
    assert questions == [match[1] for row in rows if (match := re.match(r"\((\w)\)", row))]
    known = {one["uid"] for one in read("grafana/provisioning/datasources/datasources.yml")["datasources"]}
    for panel in panels():
        assert panel["datasource"]["uid"] in known
        for target in panel["targets"]:
            for name in names(target.get("expr", "")):
                assert name.removesuffix("_used").removesuffix("_limit") in panel["description"] or (
                    name in panel["description"]
                ), panel["title"]
    ids = [one["id"] for one in read("grafana/dashboards/precall.json")["panels"]]
    assert len(ids) == len(set(ids))
