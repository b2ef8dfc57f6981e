"""The deliveries that this process prepares: which one the others of the same call wait for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from opentelemetry.trace import SpanContext, get_current_span

from cloner.call import DeliveryKey, Prepared

__all__ = ["Deliveries", "UnderWay"]


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

    @asynccontextmanager
    async def counted(
        self, key: DeliveryKey, *, failed: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Counts a delivery for the block. Once none is left, and one of them has failed, calls `failed`.

        One whose time has run out, or whose sender has hung up, has failed as well: it is cancelled then.
        """
        self._counts[key] += 1
        try:
            yield
        except BaseException:
            self._failed.add(key)
            raise
        finally:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                if key in self._failed:
                    self._failed.discard(key)
                    await failed()
