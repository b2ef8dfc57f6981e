"""What ElevenLabs says of the account, cached."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from cloner.provider.answers import Subscription
from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import ProviderFailure

__all__ = ["Account", "Known"]

log = structlog.get_logger()

# Between two requests, whether the first was answered or not.
PAUSE_SECONDS = 60.0
# How long a request may take, and how long a caller waits for its answer.
ASKING_SECONDS = 10.0
WAITING_SECONDS = 2.0


class Known(msgspec.Struct, frozen=True):
    """The last answer, and its time in Unix seconds."""

    subscription: Subscription
    at: float


class Account:
    """The account of the API key. `now` tells the time, in Unix seconds."""

    def __init__(self, provider: ElevenLabs, *, now: Callable[[], float]) -> None:
        self._provider = provider
        self._now = now
        self._known: Known | None = None
        self._asked: float | None = None
        """When it was asked last, on the event loop's clock."""

        self._asking: asyncio.Task[None] | None = None

    @property
    def last(self) -> Subscription | None:
        """The last answer, however old, without asking."""
        return None if self._known is None else self._known.subscription

    async def known(self, *, deadline: float) -> Known | None:
        """The last answer; None if ElevenLabs never answered. Asks again after a minute.

        Waits two seconds at most, and no longer than the deadline.
        """
        loop = asyncio.get_running_loop()
        if self._asked is None or loop.time() - self._asked >= PAUSE_SECONDS:
            self._asked = loop.time()
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None and not self._asking.done():
            seconds = min(WAITING_SECONDS, deadline - loop.time())
            await asyncio.wait({self._asking}, timeout=max(0.0, seconds))
        return self._known

    async def close(self) -> None:
        """Stops asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            deadline = asyncio.get_running_loop().time() + ASKING_SECONDS
            subscription = await self._provider.subscription(deadline=deadline)
        except ProviderFailure as failure:
            log.warning("account not known", reason=failure.reason)
            return
        self._known = Known(subscription, self._now())
