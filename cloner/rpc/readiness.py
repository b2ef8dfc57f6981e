"""Reports by gRPC's health service whether calls can be served: whether the registry can be written."""

import asyncio
import contextlib
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2

from cloner.refusals import MethodUnknown, ServiceUnknown
from cloner.registry import RegistryUnavailable, Store, deployment
from cloner.rpc.contract import SERVICE
from cloner.rpc.status import answer_failure

__all__ = ["Health", "Readiness"]

log = structlog.get_logger()

# The process as a whole, and the one service that clients call.
NAMES = ("", SERVICE)
LOOK_SECONDS = 1.0


# The library has no types.
class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard health service. An unknown service is refused as everything else here is.

    If calls are guarded by tokens, what is asked for is not read (`Admission`), and every service counts as
    the process as a whole.
    """

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        if request.service not in NAMES:
            answer_failure(context, ServiceUnknown())
            return health_pb2.HealthCheckResponse()
        return await super().Check(request, context)

    async def List(self, _request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        """The library does not implement this call, and would end it with an exception."""
        answer_failure(context, MethodUnknown())
        return health_pb2.HealthListResponse()


class Readiness:
    """Watches the registry until it is cancelled, and sets the health by it.

    If the registry does not answer for `patience_seconds`, the health is NOT_SERVING until it answers and a
    row is written. If the registry's file is gone, it is NOT_SERVING at once. If nobody else writes, one row
    is written in every half of the patience: only a write finds a full disk, a lock that is kept, or a server
    that is read-only. A transaction that finds nothing to change finds none of them.
    """

    def __init__(self, store: Store, health: Health, *, patience_seconds: float) -> None:
        self._store = store
        self._health = health
        self._patience = patience_seconds
        self._serving: bool | None = None
        self._stopping = False
        self._writing: asyncio.Task[None] | None = None
        self._written = True  # since it last did not answer

    @property
    def serving(self) -> bool:
        """Whether the health says SERVING."""
        return self._serving is True and not self._stopping

    async def stop(self) -> None:
        """Says NOT_SERVING from now on, because the process is about to end."""
        self._stopping = True
        await self._health.enter_graceful_shutdown()

    async def run(self) -> None:
        """Looks at least once a second."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(min(LOOK_SECONDS, self._patience / 4))
        finally:
            if self._writing is not None:
                self._writing.cancel()
                await asyncio.gather(self._writing, return_exceptions=True)

    async def look(self) -> None:
        """Sets the health by what is known now."""
        silent = self._store.silent_seconds
        answers = not self._store.gone and silent < self._patience
        self._written = self._written and answers
        serving = answers and self._written
        due = not self._written or self._store.write_seconds > self._patience / 2
        if due and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())
        if serving == self._serving:
            return
        if not serving and not self._store.gone:  # a file that is gone has been logged already
            log.error("registry does not answer; the health says so", seconds=round(silent, 1))
        elif self._serving is False:
            log.info("registry answers again; the health says so")
        self._serving = serving
        status = health_pb2.HealthCheckResponse
        for name in NAMES:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def _write(self) -> None:
        """Writes a row: an idle process only reads, and after a failed write no call comes to write."""
        with contextlib.suppress(RegistryUnavailable):
            await self._store.write(deployment.touch)
            self._written = True
