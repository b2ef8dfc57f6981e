"""How a gateway stops without losing a delivery: answers announce the end of their connections.

A client that keeps its connection may send a request at the very moment at which we close it, and then cannot
know whether we got it. A client that reads `Connection: close` sends its next request elsewhere.
"""

from typing import Any

from telemetry.http_server import Application, Receive, Send

__all__ = ["Draining"]

CLOSE = (b"connection", b"close")


class Draining:
    """Wraps an ASGI application. Once it has begun, every answer closes its connection."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._begun = False

    def begin(self) -> None:
        """Notes that the process is to stop."""
        self._begun = True

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        async def last(message: Any) -> None:
            if self._begun and message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if CLOSE not in headers:
                    message["headers"] = [*headers, CLOSE]
            await send(message)

        await self._app(scope, receive, last)
