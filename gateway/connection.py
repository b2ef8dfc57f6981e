"""One client's connection: uvicorn's, with limits on what comes before a body.

uvicorn itself waits for ever for the end of a request's headers, keeps headers of any size, answers
what is not HTTP with plain text, and loses the body of a request that offers an upgrade. This goes
when uvicorn (0.54 as of writing) has such limits of its own.
"""

import asyncio
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.problems import ANSWERS, Problem

__all__ = ["Connection"]

HEADER_SECONDS = 10.0
# For all headers together, and for any piece of input that nothing came of.
HEADER_BYTES = 32_768
UPGRADE = (b"upgrade", b"connection", b"http2-settings")


class HeadersTooLarge(Exception):
    """Raised through the parser, which calls it an invalid request."""


class Connection(HttpToolsProtocol):
    """Ends a connection whose headers are too slow or too large, or that is one too many."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _idle_bytes = 0

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_clock()
        if len(self.connections) > self._most:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._idle_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self._idle_bytes > HEADER_BYTES:
            self.send_400_response("")
        elif self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            # Something came that is no request yet, such as empty lines.
            self._start_clock()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._idle_bytes = 0
        self._start_clock()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        if not self._offers_upgrade():
            self._stop_clock()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own text is not told.
        """Answers what cannot be read as HTTP, unless another answer has begun."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_answer())
        self.transport.close()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # Some clients offer HTTP/2 with every first request. The parser then takes what follows
            # for another protocol; declining the offer means reading it again without.
            rest = data[offer.args[0] :]
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
            for name, value in self.headers:
                if name not in UPGRADE:
                    head += [name, b": ", value, b"\r\n"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"".join([*head, b"\r\n", rest]))

    def _offers_upgrade(self) -> bool:
        # CONNECT always reads as an offer. It is none that could be declined.
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _count(self, size: int) -> None:
        self._idle_bytes = 0
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            raise HeadersTooLarge

    def _start_clock(self) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _answer() -> bytes:
    _, error_code, _ = ANSWERS["MALFORMED_BODY"]
    content = msgspec.json.encode(
        Problem(
            error_code=error_code,
            reason="MALFORMED_BODY",
            error_message="The request is not HTTP/1.1, or its headers are too large.",
            conversation_id=None,
            trace_id=None,
        )
    )
    head = (
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content
