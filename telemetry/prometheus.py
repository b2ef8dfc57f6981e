"""Lets a Prometheus server fetch the metrics of a process, over a listener of their own.

The listener is for the inside of a network: everybody who reaches it may read all metrics, which hold no
name, number or id. It is still limited, so that a flood cannot take the process's time: only a few requests
at once, a time-out for silent ones, and a pause after each.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from environment import address

__all__ = ["scraped"]

log = structlog.get_logger()

MOST_AT_ONCE = 4
SILENT_SECONDS = 5.0
# The pause after an answer before its place is free again: 16 answers a second at most.
PAUSE_SECONDS = 0.25


class _Handler(WSGIRequestHandler):
    """Reads a request, gives up on a client that is silent for long, and logs nothing."""

    timeout = SILENT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Logs nothing, because the request is a stranger's text."""


class _Server(ThreadingWSGIServer):
    """Answers at most `MOST_AT_ONCE` requests; one more finds its connection closed."""

    # So many may wait to be accepted or turned away. The library's five are soon too few, and Linux leaves
    # others waiting for seconds, or for ever.
    request_queue_size = 128

    def __init__(self, family: socket.AddressFamily, where: tuple[str, int]) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__(where, _Handler)

    def server_bind(self) -> None:
        # WSGIServer would look up the name of the machine, which may take long.
        super(WSGIServer, self).server_bind()
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
            time.sleep(PAUSE_SECONDS)
        finally:
            self._places.release()

    def handle_error(self, *_: Any) -> None:
        """Ignores clients that hang up before the answer."""


class _Reader(PrometheusMetricReader):
    """Stops listening when the process ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(scope_info_enabled=False, registry=registry)
        self.server: _Server | None = None

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
        super().shutdown(timeout_millis, **kwargs)


def scraped(environ: Mapping[str, str]) -> PrometheusMetricReader:
    """A reader whose metrics are served at `OTEL_EXPORTER_PROMETHEUS_HOST` and `_PORT`.

    If the port cannot be bound, that is logged, and the process serves calls without it.
    """
    host = environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost").strip("[]")
    port = int(environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"))
    registry = CollectorRegistry()
    reader = _Reader(registry)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        reader.server = _Server(family, (str(where[0]), port))
    except OSError as failure:
        why = str(failure.strerror).partition(" (")[0]
        log.error("metrics cannot be fetched, nothing can listen there", address=address(host, port), why=why)
        return reader
    reader.server.set_app(make_wsgi_app(registry))
    threading.Thread(target=reader.server.serve_forever, name="metrics", daemon=True).start()
    with contextlib.suppress(OSError):
        bound, taken = reader.server.socket.getsockname()[:2]
        log.info("metrics can be fetched", url=f"http://{address(bound, taken)}/metrics")
    return reader
