"""Counts spans that were dropped, because too many waited or they could not be sent, and says so.

The exporters of the SDK say it at each try, in lines that hold URLs and the texts of exceptions, so these
are silenced (`telemetry.logs`).
"""

import threading
import time
from collections.abc import Sequence

import structlog
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from telemetry.otlp import NOT_TRIED, LastTry
from telemetry.variables import DEFAULT_QUEUE

__all__ = ["CountingProcessor", "Losses", "UnsentMetrics"]

log = structlog.get_logger()

# How often the log says so, at the most.
NEWS_SECONDS = 60.0


class Losses:
    """Counts the dropped spans of a process."""

    def __init__(self) -> None:
        self.spans = 0
        self._lock = threading.Lock()

    def add(self, spans: int) -> None:
        """Counts so many more."""
        with self._lock:
            self.spans += spans


class News:
    """Tells when it is time to say something again: once a minute at most."""

    def __init__(self) -> None:
        self._untold = 0
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def due(self, more: int) -> int:
        """How many there were since this was last said; 0 if it is too early to say it again."""
        with self._lock:
            self._untold += more
            if time.monotonic() < self._silent_until:
                return 0
            self._silent_until = time.monotonic() + NEWS_SECONDS
        return self.rest()

    def rest(self) -> int:
        """How many there were since this was last said."""
        with self._lock:
            told, self._untold = self._untold, 0
            return told


class UnsentMetrics:
    """Says that metrics could not be sent, and how the `last` try ended."""

    def __init__(self, last: LastTry) -> None:
        self._last = last
        self._news = News()

    def look(self, result: MetricExportResult) -> None:
        """Looks at how sending them ended."""
        if result is not MetricExportResult.SUCCESS and (times := self._news.due(1)):
            log.warning("metrics could not be sent, see to the collector", times=times, why=self._last.why)


class CountingProcessor(BatchSpanProcessor):
    """Sends spans in batches, and counts those that are dropped.

    At most `most` wait, beside the batch that is being sent. Further ones are dropped here, and not by the
    SDK's own queue, which drops its oldest and does not say how many. The exporter notes in `last` how each
    try ended.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        losses: Losses,
        *,
        most: int = DEFAULT_QUEUE,
        last: LastTry | None = None,
    ) -> None:
        self._losses = losses
        self._most = most
        self._waiting = 0
        self._dropped = News()
        self._lock = threading.Lock()
        super().__init__(_Counting(exporter, self, losses, last or LastTry()), max_queue_size=most)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            is_room = self._waiting < self._most
            self._waiting += is_room
        if is_room:
            super().on_end(span)
            return
        self._losses.add(1)
        if self._dropped.due(1):
            log.warning("spans are dropped, the collector is too slow", waiting=self._most)

    def taken(self, spans: int) -> None:
        """Notes that so many no longer wait."""
        with self._lock:
            self._waiting -= spans


class _Counting(SpanExporter):
    """Tells the processor how many spans it has taken, and counts those that could not be sent."""

    def __init__(
        self, exporter: SpanExporter, processor: CountingProcessor, losses: Losses, last: LastTry
    ) -> None:
        self._exporter = exporter
        self._processor = processor
        self._losses = losses
        self._last = last
        self._why = NOT_TRIED
        self._unsent = News()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._processor.taken(len(spans))
        self._last.why = NOT_TRIED
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self._losses.add(len(spans))
                self._why = self._last.why
                self._tell(self._unsent.due(len(spans)))
        return result

    def _tell(self, spans: int) -> None:
        if spans:
            log.warning("spans could not be sent, see to the collector", spans=spans, why=self._why)

    def shutdown(self) -> None:
        self._tell(self._unsent.rest())
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
