"""Receives spans over OTLP/HTTP and keeps them, for as long as the demo runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from demo.waterfall import Bar

__all__ = ["Collector"]


class Collector:
    """The spans received so far, by trace id."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: dict[str, list[Bar]] = {}
        self._grown: dict[str, float] = {}

    def traces(self, name: str) -> list[str]:
        """The ids of the traces that begin with a span of this name, oldest first."""
        first = [
            (bar.began, trace_id)
            for trace_id, bars in self._spans.items()
            for bar in bars
            if bar.name == name and not bar.parent_id
        ]
        return [trace_id for _, trace_id in sorted(first)]

    def trace(self, trace_id: str) -> list[Bar]:
        """The spans of one trace, in no order."""
        return self._spans.get(trace_id, [])

    def quiet(self) -> float:
        """The seconds since the last span arrived."""
        return time.monotonic() - max(self._grown.values(), default=0.0)

    def whole(self, seconds: float) -> list[str]:
        """The ids of the traces whose first span has ended, and that got no further span for so long."""
        now = time.monotonic()
        return [
            trace_id
            for trace_id, grown in list(self._grown.items())
            if now - grown >= seconds and any(not bar.parent_id for bar in self._spans[trace_id])
        ]

    @contextmanager
    def listening(self) -> Iterator["Collector"]:
        """Listens on a free port of the loopback until the block ends."""
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                """Keeps the terminal free for the demo."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.endpoint = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def _take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(
                (a.value.string_value for a in resource.resource.attributes if a.key == "service.name"), "?"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._spans.setdefault(span.trace_id.hex(), []).append(
                        Bar(
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            service=service,
                            name=span.name,
                            began=span.start_time_unix_nano,
                            ended=span.end_time_unix_nano,
                            failed=span.status.code == Status.STATUS_CODE_ERROR,
                        )
                    )
                    self._grown[span.trace_id.hex()] = time.monotonic()
