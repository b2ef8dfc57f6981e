"""The deliveries that this process prepares: which one the others of the same call wait for."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from opentelemetry.trace import SpanContext, get_current_span

from cloner.call import DeliveryKey, Prepared

__all__ = ["Counted", "Deliveries", "UnderWay"]


class UnderWay(NamedTuple):
    """A delivery that is being prepared, for those of the same call that arrive meanwhile."""

    answer: "asyncio.Future[Prepared]"
    trace: SpanContext


class Deliveries:
    """Knows the deliveries under way by their keys."""

    def __init__(self) -> None:
        self._first: dict[DeliveryKey, UnderWay] = {}
        self._counts: Counter[DeliveryKey] = Counter()
        self._failed: set[DeliveryKey] = set()

    def first(self, key: DeliveryKey) -> UnderWay | None:
        """The delivery that later ones wait for."""
        return self._first.get(key)

    @contextmanager
    def as_first(self, key: DeliveryKey, *, waited: bool) -> Iterator["asyncio.Future[Prepared]"]:
        """Lets later deliveries wait for the answer that the block sets.

        Nobody waits for one that itself `waited` in vain, because it may have less time left.
        """
        answer: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        if not waited:
            self._first[key] = UnderWay(answer, get_current_span().get_span_context())
        try:
            yield answer
        finally:
            answer.cancel()
            if not waited:
                del self._first[key]

    def counted(self, key: DeliveryKey) -> "Counted":
        """A block for which a delivery counts as one that is under way."""
        return Counted(key, self._counts, self._failed)


class Counted:
    """A delivery that counts as one under way for the block."""

    last_and_failed = False
    """Whether no delivery of the call was under way any more when the block ended, and one had failed.

    One whose time has run out, or whose sender has hung up, has failed as well: it is cancelled then.
    """

    def __init__(self, key: DeliveryKey, counts: Counter[DeliveryKey], failed: set[DeliveryKey]) -> None:
        self._key = key
        self._counts = counts
        self._failed = failed

    def __enter__(self) -> None:
        self._counts[self._key] += 1

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self._failed.add(self._key)
        self._counts[self._key] -= 1
        if not self._counts[self._key]:
            del self._counts[self._key]
            self.last_and_failed = self._key in self._failed
            self._failed.discard(self._key)
