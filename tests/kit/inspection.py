"""Looks at samples for the cloners of tests without a worker process for each, whose start is what costs most."""

import asyncio
import threading
from types import TracebackType
from typing import Self

from cloner.audio.inspection import InspectionLimits, _answer
from cloner.audio.inspector import Inspector, SampleUnreadable
from cloner.audio.reply import Finding, Reply

# What of a cloner's settings its Inspector is made of: a test that gives one of them gets one of its own.
OF_ITS_OWN = frozenset({"audio_workers", "voice_clone_max_duration", "cloner_max_requests"})


class Inspection:
    """An Inspector in a thread of its own, which serves whatever loop asks.

    Starting a worker costs a fifth of a second of processor time, as much as all the rest of a usual test.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="inspection", daemon=True)
        self._inspector = Inspector(workers=1, max_seconds=600.0)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._inspector.__aenter__(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._inspector.__aexit__(kind, failure, trace), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def inspect(self, sample: bytes, *, call: bool = True) -> Finding:
        """As `Inspector.inspect`."""
        asked = asyncio.run_coroutine_threadsafe(self._inspector.inspect(sample, call=call), self._loop)
        return await asyncio.wrap_future(asked)


class WithoutWorker:
    """Decodes in threads of this process."""

    def __init__(self, limits: InspectionLimits) -> None:
        self._limits = limits

    async def inspect(self, sample: bytes, *, call: bool = True) -> Finding:  # noqa: ARG002
        """As `Inspector.inspect`."""
        reply: Reply = await asyncio.to_thread(_answer, sample, self._limits)
        if reply.finding is None:
            raise SampleUnreadable(reply.fault)
        return reply.finding
