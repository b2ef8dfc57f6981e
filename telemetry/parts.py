"""Measures the parts of one request that take time: each has a span, and their times are logged at its end.

While several tasks spend time on the same part, it counts once. Parts may overlap, so their sum is no
duration.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry.trace import Link, Span, SpanKind, Tracer, get_current_span
from opentelemetry.util.types import AttributeValue

from telemetry.tracing import failing

__all__ = ["SCOPE", "Parts", "measured", "part", "traced_by"]

SCOPE = "precall.parts"
"""The name of the tracer that makes their spans."""

# A part without a name here has spans of its own.
SPANS: Mapping[str, str] = {
    "receive": "receive body",
    "queue": "wait for provider slot",
    "pause": "pause before next try",
    "another_clone": "wait for another clone",
    "another_change": "wait for another change",
    "registry": "registry",
}
# The parts whose time another system takes, as far as can be seen from here.
KINDS: Mapping[str, SpanKind] = {"registry": SpanKind.CLIENT}


class Parts:
    """The parts of one request."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._under_way: dict[str, tuple[int, float]] = {}

    def begin(self, name: str) -> None:
        """Notes that a task begins with this part."""
        tasks, since = self._under_way.get(name, (0, time.monotonic()))
        self._under_way[name] = tasks + 1, since

    def end(self, name: str) -> None:
        """Notes that a task has ended with this part."""
        tasks, since = self._under_way.pop(name)
        if tasks > 1:
            self._under_way[name] = tasks - 1, since
        else:
            self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - since

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each part so far, including those that still go on."""
        now, spent = time.monotonic(), dict(self._spent)
        for name, (_, since) in self._under_way.items():
            spent[name] = spent.get(name, 0.0) + now - since
        return spent

    @property
    def milliseconds(self) -> dict[str, int]:
        """The same in milliseconds, under names such as `queue_ms`."""
        return {f"{name}_ms": round(seconds * 1000) for name, seconds in self.seconds.items()}


_parts: ContextVar[Parts | None] = ContextVar("parts", default=None)
_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


@contextmanager
def traced_by(tracer: Tracer) -> Iterator[None]:
    """Makes a span for each part within the block and the tasks that are begun there."""
    token = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(token)


@contextmanager
def measured() -> Iterator[Parts]:
    """Measures the parts within the block and the tasks that are begun there."""
    parts = Parts()
    token = _parts.set(parts)
    try:
        yield parts
    finally:
        _parts.reset(token)


@contextmanager
def part(
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    work: str = "",
    links: Sequence[Link] = (),
) -> Iterator[None]:
    """Counts the time of the block as that part of the current request, if there is one.

    The block has a span if the work around it is recorded; `work` becomes part of the span's name. The span
    fails if the block raises.
    """
    parts = _parts.get()
    if parts is not None:
        parts.begin(name)
    try:
        with _span(name, attributes, work, links):
            yield
    finally:
        if parts is not None:
            parts.end(name)


@contextmanager
def _span(
    name: str, attributes: Mapping[str, AttributeValue] | None, work: str, links: Sequence[Link]
) -> Iterator[Span]:
    tracer = _tracer.get()
    around = get_current_span()
    if tracer is None or name not in SPANS or not around.is_recording():
        yield around
        return
    with (
        tracer.start_as_current_span(
            f"{SPANS[name]} {work}" if work else SPANS[name],
            kind=KINDS.get(name, SpanKind.INTERNAL),
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        failing(span),
    ):
        yield span
