"""Tells by gRPC's health service whether calls can be served: whether the registry answers."""

import asyncio
import contextlib
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2
from precall.v1 import cloning_pb2

from cloner.refusals import MethodUnknown, ServiceUnknown
from cloner.registry import RegistryUnavailable, Store, deployment
from cloner.rpc.status import answer_failure

__all__ = ["SERVICE", "Health", "Readiness"]

log = structlog.get_logger()

SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name
# The process as a whole, and the one service that clients call.
NAMES = ("", SERVICE)
LOOK_SECONDS = 1.0


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, which answers a service that it does not know as all else is answered."""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        if request.service not in NAMES:
            answer_failure(context, ServiceUnknown())
            return health_pb2.HealthCheckResponse()
        return await super().Check(request, context)

    async def List(self, _request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        """The library does not serve this one, and would end it with an exception."""
        answer_failure(context, MethodUnknown())
        return health_pb2.HealthListResponse()


class Readiness:
    """Watches the registry until it is cancelled, and sets what the health says.

    A registry that left what it was asked unanswered for `patience_seconds` cannot be relied on: then
    the health is NOT_SERVING, until it answers. A file that is gone is not waited for.
    """

    def __init__(self, store: Store, told: Health, *, patience_seconds: float) -> None:
        self._store = store
        self._told = told
        self._patience = patience_seconds
        self._serving: bool | None = None
        self._asking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Looks at least once a second."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(min(LOOK_SECONDS, self._patience / 4))
        finally:
            if self._asking is not None:
                self._asking.cancel()
                await asyncio.gather(self._asking, return_exceptions=True)

    async def look(self) -> None:
        """Sets what the health says now."""
        silent = self._store.silent_seconds
        serving = not self._store.gone and silent < self._patience
        if self._store.write_seconds > self._patience / 2 and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(changing=silent > 0))
        if serving == self._serving:
            return
        if not serving and not self._store.gone:  # one that is gone has been told of
            log.error("registry does not answer; the health says so", seconds=round(silent, 1))
        elif self._serving is False:
            log.info("registry answers again; the health says so")
        self._serving = serving
        status = health_pb2.HealthCheckResponse
        for name in NAMES:
            await self._told.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def _ask(self, *, changing: bool) -> None:
        """Writes: an idle process only reads, and whoever failed to write stays away."""
        with contextlib.suppress(RegistryUnavailable):
            # Where something failed, what has to work again is a change.
            await self._store.write(deployment.touch if changing else deployment.month_resets_at)
