"""Answers HEAD like GET, wherever GET is answered. The server leaves the content out."""

from typing import Any

from telemetry.http_server import Application, Receive, Send

__all__ = ["AnsweringHead"]


class AnsweringHead:
    """Wraps an ASGI application, which sees a GET."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server looks at the method to see whether there is any content to send.
        asked = {**scope, "method": "GET"}
        await self._app(asked, receive, send)
        if "path_template" in asked:
            scope["path_template"] = asked["path_template"]
