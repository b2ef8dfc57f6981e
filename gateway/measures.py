"""What the gateway measures, each metric with its name and attributes. docs/METRICS.md says what they tell.

Every value of an attribute comes from a fixed set, so that no stranger can add any.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from opentelemetry.metrics import MeterProvider

from telemetry.facts import KEYS
from telemetry.metrics import NOWHERE, duration, observe, observe_buffer, parts_of_delivery

__all__ = ["DELIVERIES", "EVENTS", "INITIATIONS", "ROUTES", "UNMEASURED", "Measures", "Outcome"]

Outcome = Literal["success", "fallback", "error", "abandoned"]
Refused = Literal["full", "gave_way", "unreadable"]

ROUTE, OUTCOME, REASON = "precall.route", KEYS["outcome"], KEYS["reason"]
# The reasons that mean that a sender showed no valid signature or token.
OF_SIGNATURES = frozenset(
    {"SIGNATURE_MISSING", "SIGNATURE_MALFORMED", "SIGNATURE_MISMATCH", "SIGNATURE_EXPIRED", "UNAUTHENTICATED"}
)
DELIVERIES, INITIATIONS, EVENTS = "/webhook", "/webhook/conversation-init", "/webhook/post-call"
ROUTES = (DELIVERIES, INITIATIONS, EVENTS)


class Measures:
    """Counts and times what the gateway does; costs next to nothing if metrics are not exported."""

    def __init__(self, meters: MeterProvider) -> None:
        self._meter = meter = meters.get_meter("precall.gateway")
        self._deliveries = meter.create_counter(
            "precall.deliveries",
            unit="{delivery}",
            description="Webhook requests that were answered or given up.",
        )
        self._seconds = duration(
            meter, "precall.delivery.duration", "From the first byte of the body to the answer."
        )
        self._take_parts = parts_of_delivery(meter)
        self._events = meter.create_counter(
            "precall.call.events", unit="{event}", description="Signed events after a call."
        )
        self._signatures = meter.create_counter(
            "precall.signature.failures",
            unit="{delivery}",
            description="Deliveries whose sender is not known.",
        )
        for route in ROUTES:
            for reason in sorted(OF_SIGNATURES):
                # Counted from the start, so that the first one shows as an increase.
                self._signatures.add(0, {ROUTE: route, REASON: reason})
        self._refused = meter.create_counter(
            "precall.connections.refused", unit="{connection}", description="Connections that had to go."
        )

    def delivery_ended(
        self,
        route: str,
        outcome: Outcome,
        reason: str | None,
        *,
        reused: bool | None,
        seconds: float,
        parts: Mapping[str, float],
    ) -> None:
        """A delivery was answered, or its sender has gone. `reused` is None if there is no voice.

        `parts` is what its time was spent on.
        """
        ended = {ROUTE: route, OUTCOME: outcome}
        self._seconds.record(seconds, ended)
        why = {REASON: reason} if reason else {}
        voice = {} if reused is None else {KEYS["voice_reused"]: reused}
        self._deliveries.add(1, {**ended, **why, **voice})
        if route == DELIVERIES:
            self._take_parts(parts)
        if reason in OF_SIGNATURES:
            self._signatures.add(1, {ROUTE: route, REASON: reason})

    def event_ended(self, kind: str | None, outcome: str) -> None:
        """An event after a call was answered; `kind` is None if its type is not known."""
        self._events.add(1, {KEYS["event_type"]: kind or "other", OUTCOME: outcome})

    def connection_refused(self, why: Refused) -> None:
        """A connection was refused, was closed to make room, or brought what is not HTTP."""
        self._refused.add(1, {"precall.why": why})

    def observe_connections(self, taken: Callable[[], int]) -> None:
        """Observes the connections that are open."""
        observe(self._meter, "precall.connections", "Connections that are open.", taken, unit="{connection}")

    def observe_buffers(self, used: Callable[[], int], limit: int) -> None:
        """Observes the bytes of all bodies that are held, and how many may be."""
        observe_buffer(self._meter, "bodies", used, limit)


UNMEASURED = Measures(NOWHERE)
