"""The routes that say whether the gateway is alive, and whether it can do its work."""

import asyncio
from collections.abc import Callable
from typing import Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct
from precall.v1 import cloning_pb2

from gateway.edge import problems

__all__ = ["PATHS", "Readiness", "health_routes"]

SERVICE = cloning_pb2.DESCRIPTOR.services_by_name["CloningService"].full_name
HEALTH, LIVE, READY = PATHS = ("/health", "/health/live", "/health/ready")
ASK_SECONDS = 1.0
ANSWER_SECONDS = 1.0
STOPPING = "This gateway is about to stop."


class Health(Struct, frozen=True, kw_only=True):
    """The JSON of a healthy answer."""

    status: Literal["healthy"] = "healthy"
    service: Literal["elevenlabs-precall-webhook"] = "elevenlabs-precall-webhook"


class Readiness:
    """Asks the cloner's health check, at most once a second however often it is wanted.

    `channel` gives the channel for this. These calls are not traced: there are many, and they say nothing.
    """

    def __init__(self, channel: Callable[[], grpc.aio.Channel]) -> None:
        self._channel = channel
        self._asked: asyncio.Task[bool] | None = None
        self._at = 0.0
        self._leaving = False

    @property
    def leaving(self) -> bool:
        """Whether this gateway is about to stop."""
        return self._leaving

    def leave(self) -> None:
        """Notes that it is about to stop, so that load balancers send deliveries elsewhere."""
        self._leaving = True

    async def ready(self) -> bool:
        """Whether the cloner serves, or did within the last second; False while this gateway stops."""
        if self._leaving:
            return False
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now - self._at >= ASK_SECONDS):
            self._asked, self._at = asyncio.create_task(self._ask()), now
        # Shielded, so that a client that hangs up does not end the question of the others.
        return await asyncio.shield(self._asked)

    async def _ask(self) -> bool:
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel()).Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=ANSWER_SECONDS
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def health_routes(readiness: Readiness) -> list[HTTPRouteHandler]:
    """`/health`, `/health/live` and `/health/ready`."""
    unready = ResponseSpec(
        problems.Problem,
        generate_examples=False,
        description="The cloner does not answer, or this gateway is about to stop.",
    )

    @get([HEALTH, LIVE], summary="Whether the process lives")
    async def live() -> Health:
        return Health()

    @get(READY, summary="Whether deliveries can be taken", responses={503: unready})
    async def prepared() -> Response[Health]:
        if await readiness.ready():
            return Response(Health())
        message = STOPPING if readiness.leaving else ""
        return problems.answer(  # type: ignore[return-value]  # described as an answer of its own, with 503
            problems.Refusal(reason="CLONER_UNAVAILABLE", message=message)
        )

    return [live, prepared]
