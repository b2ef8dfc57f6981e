"""Puts the gateway together: settings and a tracer provider in, a running server out."""

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from litestar import Litestar, Response, Router
from litestar.enums import MediaType
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from precall_client import Precall, Tls, connect

from environment import Pem, address
from gateway.answering import make_context
from gateway.edge.clock import LOOK_SECONDS
from gateway.edge.closing import LingeringClose
from gateway.edge.connection import Connection, Connections
from gateway.edge.draining import Draining
from gateway.edge.head import AnsweringHead
from gateway.edge.limits import COUNT_SECONDS, Limits, counting
from gateway.edge.path import legible
from gateway.edge.problems import answer_failure
from gateway.edge.source import Sourced
from gateway.health.route import PATHS, Readiness, health_routes
from gateway.initiation.route import initiation_route
from gateway.measures import UNMEASURED, Measures
from gateway.postcall.route import post_call
from gateway.precall.route import webhook
from gateway.settings import Settings
from telemetry.http_server import Application, HttpServerTracing
from telemetry.metrics import NOWHERE

__all__ = ["create_app", "listening", "serving"]

BACKLOG = 1024
# libuv accepts one connection in each round of the loop, and a round takes long while much is read. Hundreds
# of clients that connect again and again would then keep a new client waiting for seconds.
ACCEPTED_AT_ONCE = 4


def create_app(
    settings: Settings,
    provider: TracerProvider,
    cloner: Precall,
    readiness: Readiness,
    limits: Limits,
    *,
    measures: Measures = UNMEASURED,
    meters: MeterProvider = NOWHERE,
    now: Callable[[], float] = time.time,
) -> Application:
    """The ASGI application. It opens nothing and closes nothing."""
    context = make_context(settings, cloner, limits, now, measures)
    app = Litestar(
        route_handlers=[
            webhook(context),
            initiation_route(context),
            post_call(context),
            *health_routes(readiness),
        ],
        exception_handlers={Exception: answer_failure},
        openapi_config=_openapi(),
        # Both would otherwise come from the environment, or log in a form of their own.
        debug=False,
        logging_config=None,
    )
    traced = HttpServerTracing(
        AnsweringHead(cast("Application", app)), provider, untraced=PATHS, legible=legible, meters=meters
    )
    return Sourced(LingeringClose(traced), settings.trusted_proxies)


@asynccontextmanager
async def serving(
    settings: Settings,
    provider: TracerProvider,
    listener: socket.socket,
    *,
    meters: MeterProvider = NOWHERE,
    now: Callable[[], float] = time.time,
    count_seconds: float = COUNT_SECONDS,
) -> AsyncIterator[str]:
    """Serves on the socket for as long as the block lasts, and yields the address.

    At its end it reports that it is not ready, and serves on for DRAIN_SECONDS, so that load balancers can
    choose others. Then it takes nothing more, and finishes what is in flight within SHUTDOWN_GRACE_SECONDS,
    and a body whose sender is still unknown within BODY_TIMEOUT_SECONDS.
    """
    measures = Measures(meters)
    connections = Connections(settings.precall_max_connections, measures)
    async with (
        connect(
            settings.cloner_target,
            token=settings.cloner_token[0].reveal() if settings.cloner_token else None,
            tls=_tls(settings),
            tracer_provider=provider,
            meter_provider=meters,
            max_message_bytes=settings.max_message_bytes,
        ) as cloner,
        counting(
            settings.rate_limit_agent,
            settings.rate_limit_source,
            settings.rate_limit_storage,
            seconds=count_seconds,
        ) as limits,
    ):
        readiness = Readiness(lambda: cloner.channel)
        app = Draining(
            create_app(
                settings, provider, cloner, readiness, limits, measures=measures, meters=meters, now=now
            )
        )
        grace = settings.shutdown_grace_seconds
        drain = min(settings.drain_seconds, grace)
        server = _Server(
            uvicorn.Config(
                app,
                http=cast(
                    "type[asyncio.Protocol]",
                    partial(Connection, connections=connections),
                ),
                ws="none",
                lifespan="off",
                interface="asgi3",
                backlog=BACKLOG,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # uvicorn would trust the proxies that a variable of its own names
                timeout_keep_alive=settings.precall_keep_alive_seconds,
                # uvicorn takes a float here, though it is annotated as int. With 0 it would report cancelled
                # requests without having looked for any.
                timeout_graceful_shutdown=math.ceil(grace - drain) or LOOK_SECONDS,  # type: ignore[arg-type]
            )
        )
        host, port = listener.getsockname()[:2]
        listeners = [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
        task = asyncio.create_task(server.serve(sockets=listeners))
        task.add_done_callback(lambda _: server.up.set())
        try:
            await server.up.wait()
            if task.done():  # it could not start, and says why
                await task
            yield f"http://{address(host, port)}"
        finally:
            readiness.leave()
            app.begin()
            await asyncio.sleep(drain)
            server.leave.set()
            # A signed event may still need time. Senders who are still unknown when the time of a body is
            # over are refused, so that no stranger delays the stop.
            hurry = asyncio.get_running_loop().call_later(
                settings.body_timeout_seconds, connections.places.refuse_unknown
            )
            try:
                await task
            finally:
                hurry.cancel()
                for each in listeners:  # a server that did not start leaves them open
                    each.close()


def listening(settings: Settings) -> socket.socket:
    """The socket that the settings ask for. Raises OSError where it cannot be had."""
    host, port = settings.precall_webhook_host.strip("[]"), settings.precall_webhook_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # An address can be used again that an earlier process has just left, but not one that is being served.
    return socket.create_server(
        (host, port),
        family=family,
        backlog=BACKLOG,
        # "::" listens on all addresses of IPv4 as well, as in gRPC.
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )


class _Server(uvicorn.Server):
    """Leaves signals to the process, reports when it serves, and stops as soon as it is told to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        while not self.leave.is_set():
            await self.on_tick(0)  # keeps the Date header right
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.leave.wait(), timeout=1)


def _tls(settings: Settings) -> Tls | None:
    """The TLS that is spoken; None where it is not set."""

    def part(pem: Pem | None) -> bytes | Path | None:
        return None if pem is None else pem.path or pem.reveal().encode()

    if not settings.cloner_tls_ca and not settings.cloner_tls_client_cert:
        return None
    return Tls(
        ca=part(settings.cloner_tls_ca),
        cert=part(settings.cloner_tls_client_cert),
        key=part(settings.cloner_tls_client_key),
    )


def _openapi() -> OpenAPIConfig:
    async def in_one_shape(response: Response[Any]) -> Response[Any]:
        # Litestar answers an unknown path below /schema with a page of its own.
        if response.status_code == 404:
            raise NotFoundException
        return response

    return OpenAPIConfig(
        title="Precall",
        version="1",
        description="Prepares a call to an ElevenLabs agent with the caller's own voice.",
        # JSON at the root, too: the pages for browsers all load their scripts from elsewhere.
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"], media_type=MediaType.JSON)],
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, after_request=in_one_shape
        ),
    )
