"""The emulator as one object, for the container and for tests alike."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import uvicorn
from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from emulator.agents import Agents
from emulator.call_control import call_router
from emulator.calls import Calls
from emulator.control import control_router
from emulator.errors import ERRORS, Refused
from emulator.faults import Fault, Faults
from emulator.journal import Received, Requests
from emulator.permissions import Permissions
from emulator.provider import provider_router, provider_routes
from emulator.settings import Settings
from emulator.voices import Voices
from emulator.wire import Wire

HTTPRequest = Request[Any, Any, Any]

logger = logging.getLogger("emulator")

# Turns of the loop after which what asyncio has just accepted is surely known to uvicorn.
TURNS_TO_ACCEPT = 5


class Emulator:
    """One workspace of the provider, in memory.

    `voices`, `agents`, `calls`, `permissions`, `faults` and `requests` may be read and changed at any time,
    from the loop it listens on. They outlive `listening`, which may be entered again: that is a provider that
    was down for a while.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """Build a fresh workspace; nothing is opened yet. The clock gives Unix seconds."""
        routes = provider_routes()
        self.settings = settings
        self.voices = Voices(limit=settings.voice_limit, monthly_limit=settings.monthly_limit, clock=clock)
        self.agents = Agents(voices=self.voices, clock=clock)
        self.calls = Calls(agents=self.agents, voices=self.voices, clock=clock)
        self.faults = Faults(routes)
        self.requests = Requests()
        self.permissions = Permissions()
        self._wire = Wire(
            app=self._serve,
            routes=routes,
            requests=self.requests,
            faults=self.faults,
            latency=settings.latency,
            clock=clock,
        )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["workspace"] = self
        await _application()(scope, receive, send)

    @contextlib.asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve on the running loop; port 0 is any free one. Yields the base URL once requests are answered.

        On the way out, requests under way are hung up on. Raises `OSError` where the address cannot be had.
        """
        bound = _bind(host, port)
        _application()  # not at the first request, which would wait for it
        name = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            self._wire,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        server = _Server(config)
        self._wire.open()
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            await server.serves.wait()
            yield f"http://{name}:{bound.getsockname()[1]}"
        finally:
            self._wire.close()
            server.leave.set()
            await serving


@cache
def _application() -> Litestar:
    """The routes. One application serves every workspace: making one takes as long as a usual test."""
    return Litestar(
        route_handlers=[provider_router(), control_router(), call_router()],
        dependencies={
            **{
                part: _workspace_part(part)
                for part in ("settings", "voices", "agents", "calls", "faults", "requests", "permissions")
            },
            "received": Provide(_received, sync_to_thread=False),
            "fault": Provide(_fault, sync_to_thread=False),
        },
        exception_handlers={
            Refused: _answer_refusal,
            HTTPException: _answer_http_exception,
            Exception: _answer_bug,
        },
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


class _Server(uvicorn.Server):
    """Says when it serves, ends without uvicorn's pauses, and leaves signals to whoever owns the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serves = asyncio.Event()
        self.leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serves.set()

    async def main_loop(self) -> None:
        while not self.leave.is_set():
            await self.on_tick(0)  # keeps the Date header right
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.leave.wait(), timeout=1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets  # closed with their servers
        # An asyncio.Server that closes leaves open what it has just accepted (python/cpython#109564). When no
        # Python that we support does that any more, this loop and its turns can go.
        for server in self.servers:
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
        await _turns(TURNS_TO_ACCEPT)
        for server in self.servers:
            server.close()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await _turns(1)  # in which each is told that it is closed

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _turns(count: int) -> None:
    """Lets the loop do so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


class _Protocol(HttpToolsProtocol):
    """Lets `emulator.wire` close the connection, which ASGI has no message for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}  # copied into each scope's "state"


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
    # Inherited by each connection. asyncio does it for sockets that name their protocol, which these do not;
    # without it every answer waits 40 ms for the client's delayed ACK.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _workspace_part(part: str) -> Provide:
    def find(scope: Scope) -> Any:
        return getattr(scope["state"]["workspace"], part)

    return Provide(find, sync_to_thread=False)


def _received(scope: Scope) -> Received:
    received: Received = scope["state"]["received"]
    return received


def _fault(scope: Scope) -> Fault:
    fault: Fault = scope["state"]["fault"]
    return fault


def _answer_refusal(request: HTTPRequest, refusal: Refused) -> Response[bytes]:
    answer = refusal.error.answer(request.scope["state"]["received"].trace_id)
    return Response(answer.body, status_code=answer.status, headers=answer.headers)


def _answer_http_exception(_: HTTPRequest, error: HTTPException) -> Response[dict[str, str]]:
    return Response({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


def _answer_bug(_: HTTPRequest, error: Exception) -> Response[Any]:
    logger.error("bug in the emulator: %s", type(error).__name__)
    return Response(ERRORS["string_detail"].body, status_code=500)
