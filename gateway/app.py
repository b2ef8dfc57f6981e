"""Puts the gateway together: settings and a tracer provider in, a running server out."""

import asyncio
import contextlib
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import grpc
import uvicorn
from litestar import Litestar, Response, Router
from litestar.enums import MediaType
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from opentelemetry.sdk.trace import TracerProvider
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from environment import address
from gateway.closing import Application, ClosingEarly
from gateway.connection import Connection, House
from gateway.conversation_init import conversation_init
from gateway.credential import Credential
from gateway.desk import opened
from gateway.head import AnsweringHead
from gateway.health import Readiness, health_routes
from gateway.post_call import post_call
from gateway.problems import answered
from gateway.settings import MEBIBYTE, Settings
from gateway.upload import uploading
from gateway.webhook import webhook
from telemetry.http_server import HttpServerTracing
from telemetry.rpc import RpcClientTracing

__all__ = ["create_app", "listening", "serving"]

UNTRACED = {"/health", "/health/live", "/health/ready"}
BACKLOG = 1024
# libuv takes one connection from a socket each time that the loop comes round, which takes long while much is
# read: hundreds who connect without end would keep a newcomer waiting for seconds.
ACCEPTED_AT_ONCE = 4


def create_app(
    settings: Settings,
    provider: TracerProvider,
    channel: grpc.aio.Channel,
    readiness: Readiness,
    *,
    now: Callable[[], float] = time.time,
) -> Application:
    """The ASGI application. It opens nothing and closes nothing."""
    desk = opened(settings, CloningServiceStub(channel), uploading(channel), now)
    app = Litestar(
        route_handlers=[
            webhook(desk),
            conversation_init(desk),
            post_call(desk),
            *health_routes(readiness.ready),
        ],
        exception_handlers={Exception: answered},
        openapi_config=_openapi(),
        # Both would otherwise come from the environment or write log lines of their own form.
        debug=False,
        logging_config=None,
    )
    return ClosingEarly(
        HttpServerTracing(AnsweringHead(cast("Application", app)), provider, untraced=UNTRACED)
    )


@asynccontextmanager
async def serving(
    settings: Settings,
    provider: TracerProvider,
    listener: socket.socket,
    *,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[str]:
    """Serves on the socket for as long as the block lasts, and yields the address.

    At its end nothing more is taken, and what is in flight is finished within
    SHUTDOWN_GRACE_SECONDS.
    """
    wires: list[grpc.aio.ClientInterceptor] = [RpcClientTracing(provider)]
    if settings.cloner_token:
        wires.append(Credential(settings.cloner_token[0]))
    # Opened here, not at import: a grpc.aio channel belongs to the loop it is made on.
    async with (
        _channel(settings, *wires) as channel,
        _channel(settings) as untraced,
    ):
        app = create_app(settings, provider, channel, Readiness(untraced), now=now)
        server = _Server(
            uvicorn.Config(
                app,
                http=cast(
                    "type[asyncio.Protocol]",
                    partial(Connection, house=House(settings.precall_max_connections)),
                ),
                ws="none",
                lifespan="off",
                interface="asgi3",
                backlog=BACKLOG,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                # A proxy in front must close an idle connection before this, or lose a request to it.
                timeout_keep_alive=5,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
            )
        )
        host, port = listener.getsockname()[:2]
        listeners = [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
        task = asyncio.create_task(server.serve(sockets=listeners))
        task.add_done_callback(lambda _: server.up.set())
        try:
            await server.up.wait()
            yield f"http://{address(host, port)}"
        finally:
            server.should_exit = True
            await task


def listening(settings: Settings) -> socket.socket:
    """The socket that the settings ask for. Raises OSError where it cannot be had."""
    host, port = settings.precall_webhook_host.strip("[]"), settings.precall_webhook_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Reuses an address that an earlier process has just left, but not one that is being served.
    return socket.create_server(
        (host, port),
        family=family,
        backlog=BACKLOG,
        # All addresses are those of IPv4 as well, as gRPC has it.
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )


class _Server(uvicorn.Server):
    """Leaves signals to the process, and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


def _channel(settings: Settings, *interceptors: grpc.aio.ClientInterceptor) -> grpc.aio.Channel:
    largest = max(16 * MEBIBYTE, settings.max_sample_bytes + MEBIBYTE)
    return grpc.aio.insecure_channel(
        settings.cloner_target,
        options=[
            ("grpc.max_send_message_length", largest),
            ("grpc.max_receive_message_length", largest),
            # The one rule by which anything is tried again is the cloner's. gRPC alone sends again what no
            # cloner has begun to handle, as when one stops; there is no retry policy beside that.
            ("grpc.enable_retries", 1),
            # A proxy of the environment is for the internet, and the cloner is not there.
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
            # A name is looked up again when a cloner ends a connection, as each does now and then: that is
            # how one that was added is found. By default this happens at most every 30 s.
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
            # By default a cloner that was restarted may stay away for two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # Notices a peer that vanished without a word while a call waits for it.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ],
        interceptors=interceptors,
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
        # JSON at the root, too: the pages for browsers all fetch their scripts from somewhere else.
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"], media_type=MediaType.JSON)],
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, after_request=in_one_shape
        ),
    )
