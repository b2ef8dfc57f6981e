"""What the provider's API was asked, so that a test can say exactly what was sent.

The last `MAX_RECEIVED` requests are kept; of a file only its size and hash, of the API key nothing.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from emulator.form import Part

MAX_RECEIVED = 10_000

Stage = Literal["arrived", "held", "finished"]


@dataclass(kw_only=True)
class Received:
    """One request, from the moment its whole body has been read."""

    method: str
    path: str
    route: str | None
    """The path as a template, such as `/v1/voices/{voice_id}`; None if the API has no such path."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    """By lower-case name; the value of `xi-api-key` is masked."""
    trace_id: str
    """What an error answer says in `x-trace-id`."""
    at: float
    """Unix time."""
    form: tuple[Part, ...] | None = None
    """The parts of a multipart body."""
    json: Any = None
    """A body of JSON, unless it is very large."""
    status: int | None = None
    """What was answered; None while nothing was, and for good if the connection was dropped."""
    stage: Stage = "arrived"
    """`held` while a fault holds it, `finished` once it was answered or dropped."""


@dataclass
class Requests:
    """The requests of the provider's API, oldest first."""

    _received: deque[Received] = field(default_factory=lambda: deque(maxlen=MAX_RECEIVED))
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    def __iter__(self) -> Iterator[Received]:
        """All that are kept."""
        return iter(tuple(self._received))

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._received)

    def __getitem__(self, index: int) -> Received:
        """One of those that are kept; -1 for the latest."""
        return self._received[index]

    def clear(self) -> None:
        """Forget them all."""
        self._received.clear()

    def matching(
        self, *, method: str | None = None, path: str | None = None, stage: Stage = "arrived"
    ) -> list[Received]:
        """Those of that method and that path, exact or as a template, and at that stage.

        Every request counts as arrived; `held` means now.
        """
        return [
            received
            for received in self
            if method in (None, received.method)
            and (path is None or path in (received.path, received.route))
            and stage in ("arrived", received.stage)
        ]

    async def wait(
        self,
        count: int = 1,
        *,
        method: str | None = None,
        path: str | None = None,
        stage: Stage = "arrived",
        seconds: float = 30,
    ) -> list[Received]:
        """Wait until at least so many match; raises `TimeoutError` when they do not in time."""
        async with asyncio.timeout(seconds):
            while len(found := self.matching(method=method, path=path, stage=stage)) < count:
                await self._change.wait()
        return found

    def add(self, received: Received) -> None:
        """Record a request that has arrived."""
        self._received.append(received)
        self._changed()

    def move(self, received: Received, stage: Stage) -> None:
        """Record how far a request has come."""
        received.stage = stage
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
