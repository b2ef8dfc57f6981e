"""What the cloner measures, each metric with its name and attributes. docs/METRICS.md says what they tell.

Every value of an attribute comes from a set of ours, or from the configuration.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from opentelemetry.metrics import MeterProvider

from telemetry.facts import KEYS
from telemetry.metrics import NOWHERE, duration, observe, observe_buffer, parts_of_delivery

__all__ = ["UNMEASURED", "Measures"]

OUTCOME, REASON, OPERATION = KEYS["outcome"], KEYS["reason"], KEYS["operation"]
PRIORITY, DUE = "precall.provider.priority", "precall.due.kind"

# The call that serves a delivery.
OF_DELIVERY = "precall.v1.CloningService/PrepareCall"
# Most transactions take less than a millisecond.
TRANSACTIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Counts = Mapping[str, float]


class Measures:
    """Counts and times what the cloner does; costs next to nothing if metrics are not exported."""

    def __init__(self, meters: MeterProvider) -> None:
        self.enabled = meters is not NOWHERE
        """Whether metrics are exported; if not, nothing has to be counted for them."""

        self._reconciled = time.monotonic()
        self._meter = meter = meters.get_meter("precall.cloner")
        self._clones = duration(
            meter,
            "precall.clone.duration",
            "From the intent to clone a voice to the voice, all tries included.",
        )
        self._asked = meter.create_counter(
            "precall.provider.requests",
            unit="{request}",
            description="Requests to ElevenLabs, each try by itself.",
        )
        self._retries = meter.create_counter(
            "precall.provider.retries",
            unit="{request}",
            description="Requests to ElevenLabs that are tried again.",
        )
        self._waits = duration(
            meter,
            "precall.provider.queue.wait",
            "How long a request waited for its turn to be sent to ElevenLabs.",
        )
        self._transactions = duration(
            meter, "precall.registry.transaction.duration", "A transaction of the registry, and its wait.",
            buckets=TRANSACTIONS,
        )  # fmt: skip
        self._take_parts = parts_of_delivery(meter)
        self._requests = meter.create_counter(
            "precall.client.requests", unit="{request}", description="Calls of the gRPC API, by who called."
        )
        observe(
            meter, "precall.reconciliation.age", "Since ElevenLabs was last compared with, here.",
            lambda: time.monotonic() - self._reconciled, unit="s",
        )  # fmt: skip

    def clone_ended(self, outcome: str, reason: str, *, seconds: float) -> None:
        """A clone has ended, with a voice or without one."""
        self._clones.record(seconds, _ended(outcome, reason))

    def expect_requests(self, operations: Iterable[str], reasons: Iterable[str]) -> None:
        """Counts failures for these reasons from zero, so that the first one shows as an increase."""
        for operation, reason in itertools.product(operations, reasons):
            self._asked.add(0, {OPERATION: operation, **_ended("error", reason)})

    def provider_asked(self, operation: str, outcome: str, reason: str) -> None:
        """A request to ElevenLabs has ended."""
        self._asked.add(1, {OPERATION: operation, **_ended(outcome, reason)})

    def provider_retried(self, operation: str, reason: str) -> None:
        """A request to ElevenLabs is tried again after a failure."""
        self._retries.add(1, {OPERATION: operation, REASON: reason})

    def turn_waited(self, *, call: bool, seconds: float) -> None:
        """A request has had its turn, or has given up waiting; `call` says whether a call waited for it."""
        self._waits.record(seconds, {PRIORITY: "call" if call else "preparation"})

    def transaction_ended(self, name: str, *, seconds: float) -> None:
        """A transaction such as `calls.begin` has ended, carried out or not."""
        self._transactions.record(seconds, {"precall.registry.transaction": name})

    def request_ended(
        self, client: str | None, method: str, outcome: str, reason: str, *, parts: Mapping[str, float]
    ) -> None:
        """A call of the API was answered; without a `client` the caller is not known.

        `parts` says what its time was spent on.
        """
        who = {} if client is None else {KEYS["client"]: client}
        self._requests.add(1, {**who, KEYS["method"]: method, **_ended(outcome, reason)})
        if method == OF_DELIVERY:
            self._take_parts(parts)

    def reconciled(self) -> None:
        """The registry was compared with ElevenLabs."""
        self._reconciled = time.monotonic()

    def observe_queue(self, waiting: Callable[[], int]) -> None:
        """Observes the requests that wait for their turn."""
        observe(
            self._meter, "precall.provider.queue.length", "Requests to ElevenLabs that wait for their turn.",
            waiting, unit="{request}",
        )  # fmt: skip

    def observe_samples(self, used: Callable[[], int], limit: int) -> None:
        """Observes the bytes of requests and samples that are held, and how many may be."""
        observe_buffer(self._meter, "samples", used, limit)

    def observe_account(self, last: Callable[[], object]) -> None:
        """Observes how many voice slots and additions of the month are used, and how many there are.

        `last` is what ElevenLabs told last: a Subscription, or None.
        """
        for kind, unit in (("slots", "{voice}"), ("month", "{addition}")):
            for name in ("used", "limit"):
                observe(
                    self._meter, f"precall.provider.{kind}.{name}", "As ElevenLabs told last.",
                    partial(_field_of, last, f"{kind}_{name}"), unit=unit,
                )  # fmt: skip

    def observe_serving(self, serving: Callable[[], bool]) -> None:
        """Observes whether the health says that calls are served."""
        observe(self._meter, "precall.serving", "Whether the health says SERVING.", lambda: int(serving()))

    def observe_registry(
        self,
        *,
        voices: Callable[[], Counts],
        calls: Callable[[], int | None],
        due: Callable[[], Counts],
        ages: Callable[[], Counts],
    ) -> None:
        """Observes what the registry held when it was last counted."""
        observe(
            self._meter, "precall.voices", "Voices that there are, by what becomes of them.",
            voices, key="precall.voice.state", unit="{voice}",
        )  # fmt: skip
        observe(self._meter, "precall.calls.open", "Calls that are in progress.", calls, unit="{call}")
        observe(
            self._meter, "precall.due", "Agents to be put back and voices to be deleted.",
            due, key=DUE, unit="{item}",
        )  # fmt: skip
        observe(
            self._meter, "precall.due.oldest.age", "For how long the oldest of them has been due.",
            ages, key=DUE, unit="s",
        )  # fmt: skip


def _ended(outcome: str, reason: str) -> dict[str, str]:
    return {OUTCOME: outcome, REASON: reason} if reason else {OUTCOME: outcome}


def _field_of(last: Callable[[], object], name: str) -> int | None:
    known = last()
    value: int | None = None if known is None else getattr(known, name)
    return value


UNMEASURED = Measures(NOWHERE)
