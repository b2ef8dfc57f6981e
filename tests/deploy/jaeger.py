"""A real Jaeger, and what it has of a system's traces."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Jaeger", "Trace", "program", "running"]

STARTED_SECONDS = 60
FOUND_SECONDS = 60
CONFIGURATION = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry: {{metrics: {{level: none}}}}
extensions:
  jaeger_storage: {{backends: {{some_storage: {{memory: {{max_traces: 1000}}}}}}}}
  jaeger_query:
    storage: {{traces: some_storage}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{http}"}}, grpc: {{endpoint: "127.0.0.1:{grpc}"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: some_storage}}
"""


def program() -> str | None:
    """Where Jaeger is on this machine."""
    return os.environ.get("JAEGER_BIN") or shutil.which("jaeger")


class Trace:
    """One trace, as Jaeger's API has it."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.id: str = found["traceID"]
        self._processes = found["processes"]
        self.spans: list[dict[str, Any]] = found["spans"]

    def named(self, name: str, service: str) -> dict[str, Any]:
        """The tags of the only span of this name in this service."""
        (span,) = [one for one in self.spans if (one["operationName"], self.service(one)) == (name, service)]
        return {tag["key"]: tag["value"] for tag in span["tags"]}

    def service(self, span: dict[str, Any]) -> str:
        """Which process a span is of."""
        name: str = self._processes[span["processID"]]["serviceName"]
        return name

    def told(self, key: str) -> set[Any]:
        """The values that its spans have for a tag."""
        return {tag["value"] for one in self.spans for tag in one["tags"] if tag["key"] == key}

    @property
    def edges(self) -> set[tuple[str, str]]:
        """The service and the name of each span."""
        return {(self.service(one), one["operationName"]) for one in self.spans}

    @property
    def linked(self) -> set[str]:
        """The other traces that its spans lead to."""
        return {to["traceID"] for one in self.spans for to in one["references"]} - {self.id}


class Jaeger:
    """Asks a Jaeger that runs as an operator would."""

    def __init__(self, *, query: int, http: int, grpc: int) -> None:
        self.query, self.endpoint, self.grpc = (
            f"http://127.0.0.1:{query}", f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        )  # fmt: skip

    def traces(self, service: str, operation: str | None = None, **tags: str) -> list[Trace]:
        """The traces with a span of this service that has all of these tags; a double underscore is a dot."""
        wanted = {key.replace("__", "."): value for key, value in tags.items()}
        query = {"service": service, "lookback": "1h", "limit": "200", "tags": json.dumps(wanted)}
        if operation:
            query["operation"] = operation
        answer = httpx.get(f"{self.query}/api/traces", params=query, trust_env=False)
        answer.raise_for_status()
        return [Trace(one) for one in answer.json()["data"]]

    def find(self, holds: Callable[[list[Trace]], object], service: str, **tags: str) -> list[Trace]:
        """As `traces`, once it holds for what is found: spans arrive a little later than answers."""
        until = time.monotonic() + FOUND_SECONDS
        while not holds(found := self.traces(service, **tags)):
            assert time.monotonic() < until, (service, tags, [trace.edges for trace in found])
            time.sleep(0.1)
        return found

    def the(self, edges: set[tuple[str, str]], service: str, **tags: str) -> Trace:
        """The only such trace that has these spans, once they have come: each is sent as it ends."""

        def whole(traces: list[Trace]) -> list[Trace]:
            return [trace for trace in traces if edges <= trace.edges]

        (found,) = whole(self.find(whole, service, **tags))
        return found


@contextmanager
def running(
    command: list[str], answers: str, folder: Path, environ: dict[str, str] | None = None
) -> Iterator[None]:
    """Runs a program until the block ends; it is ready when there is an answer at that address."""
    with (folder / f"{Path(command[-1]).stem}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (environ or {}))
        try:
            until = time.monotonic() + STARTED_SECONDS
            while not _answers(answers):
                log.seek(0)
                assert process.poll() is None, log.read()
                assert time.monotonic() < until, log.read()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).is_success
    except httpx.TransportError:
        return False
