"""The cloner's gRPC server: its clients, its services, its TLS and its address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server

from cloner.clients import Clients, clients_of
from cloner.measures import Measures
from cloner.rpc.access import RIGHTS, AccessControl
from cloner.rpc.admission import Admission
from cloner.rpc.contract import SERVICE
from cloner.rpc.draining import Draining
from cloner.rpc.readiness import Health
from cloner.rpc.reflection import serve_reflection
from cloner.rpc.service import CloningService
from cloner.setting_files import WatchedSetting, watching
from cloner.settings import Settings
from cloner.transport_security import (
    ServerCertificate,
    health_target,
    server_certificate_of,
    server_credentials,
)
from environment import address
from telemetry.rpc import RpcServerTracing

__all__ = ["access_of", "health_beside", "listen", "server_of"]

log = structlog.get_logger()

# How many health checks of this machine there may be at once.
MOST_CHECKS = 32
TRANSPORT = (
    # Otherwise a second cloner on a taken port would start and take half of the calls.
    ("grpc.so_reuseport", 0),
    # How much of a body a sender may send before anybody reads it. Measured on loopback with 200 such
    # streams: 64 KB each; with the probe of the bandwidth on, up to megabytes.
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.http2.bdp_probe", 0),
    # As many as a gateway may have open at once (PRECALL_MAX_CONNECTIONS). gRPC itself would refuse one more
    # on a new connection, in a way that looks as if there were no cloner.
    ("grpc.max_concurrent_streams", 1_024),
    # Headers up to this size reach Admission, so that Admission answers those that are too large.
    ("grpc.max_metadata_size", 65_536),
    ("grpc.absolute_max_metadata_size", 65_536),
    # Clients ping every 10 seconds at most, with or without a call under way; that is allowed.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # At this age a connection ends, so that its client looks our addresses up again; gRPC varies the age by a
    # tenth. Calls take a minute.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_idle_ms", 300_000),
)

# How long calls on a connection of that age may still take: longer than any of them takes.
CALL_GRACE_SECONDS, WATCH_GRACE_SECONDS = 90.0, 30.0

# The methods that spans and metrics name; the name of any other is a stranger's text.
METHODS = frozenset(method.lstrip("/") for method in RIGHTS)


@asynccontextmanager
async def access_of(
    settings: Settings,
) -> AsyncIterator[tuple[WatchedSetting[Clients] | None, WatchedSetting[ServerCertificate] | None]]:
    """The clients that may call and the TLS certificate, where set; both follow changes of their files."""
    tokens, named, pem = settings.cloner_token, settings.cloner_clients, settings.tls_documents
    clients = certificate = None
    if tokens or named is not None:
        documents = {} if named is None else {"CLONER_CLIENTS": named}
        clients = WatchedSetting(documents, lambda texts: clients_of(texts.get("CLONER_CLIENTS"), tokens))
    if pem:
        certificate = WatchedSetting(pem, server_certificate_of)
    async with watching(*(one for one in (clients, certificate) if one is not None)):
        yield clients, certificate


def listen(
    server: grpc.aio.Server, settings: Settings, certificate: WatchedSetting[ServerCertificate] | None
) -> int:
    """Binds the server to its address and returns the port. Raises RuntimeError if that fails."""
    where = address(settings.cloner_host, settings.cloner_port)
    if certificate is None:
        return server.add_insecure_port(where)
    shown = server_credentials(lambda: certificate.current, mutual=settings.cloner_tls_client_ca is not None)
    return server.add_secure_port(where, shown)


@asynccontextmanager
async def health_beside(settings: Settings, port: int, servicer: Health) -> AsyncIterator[None]:
    """Serves the health, and nothing else, to this machine.

    Its health check speaks no TLS, and is answered also while strangers hold every connection there may be.
    """
    server = grpc.aio.server(
        options=(("grpc.max_allowed_incoming_connections", MOST_CHECKS), *_patience(settings))
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(health_target(settings.cloner_host, port))
    except RuntimeError:
        log.warning("health is not told to this machine, python -m cloner.health will not find it")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def _patience(settings: Settings) -> tuple[tuple[str, int], ...]:
    """How long a connection may take to say what it wants: gRPC itself waits for one minute or two.

    The first is for TLS and the first frame of HTTP/2, the second for the answer to ours.
    """
    longest = max(1, round(1000 * settings.body_timeout_seconds))
    return ("grpc.server_handshake_timeout_ms", longest), ("grpc.http2.settings_timeout", longest)


def server_of(
    settings: Settings,
    tracing: TracerProvider,
    *,
    service: CloningService,
    admission: Admission,
    clients: WatchedSetting[Clients] | None,
    draining: Draining,
    measures: Measures,
    meters: MeterProvider,
) -> tuple[grpc.aio.Server, Health]:
    """The server with all its services, not started, and its health."""
    grace = max(CALL_GRACE_SECONDS, settings.watch_seconds + WATCH_GRACE_SECONDS)
    access = AccessControl(lambda: None if clients is None else clients.current, measures)
    server = grpc.aio.server(
        interceptors=(
            draining,
            RpcServerTracing(tracing, meters=meters, known=METHODS, trusted=access.knows),
            access,
            admission,
        ),
        options=(
            # One more is closed as soon as it is accepted, and its client tries again.
            ("grpc.max_allowed_incoming_connections", settings.cloner_max_connections),
            ("grpc.max_receive_message_length", admission.hard_limit),
            ("grpc.max_connection_age_grace_ms", round(1000 * grace)),
            *_patience(settings),
            *TRANSPORT,
        ),
    )
    add_CloningServiceServicer_to_server(service, server)
    health_servicer = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.cloner_reflection:
        serve_reflection(server, (SERVICE, health.SERVICE_NAME))
    return server, health_servicer
