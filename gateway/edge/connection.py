"""One client's connection: uvicorn's, with limits on everything that is not a body.

uvicorn itself waits for ever for the end of a request's headers, keeps headers of any size and number, reads
and keeps every pipelined request, takes trailers for headers, answers what is not HTTP with plain
text, loses the body of a request that offers an upgrade, and waits for ever for a client that does not read
its answer. When uvicorn (0.54 as of writing) has such limits itself, this module can go.
"""

import secrets
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.edge.body import has_body
from gateway.edge.clock import Clock
from gateway.edge.pacing import Pacing
from gateway.edge.places import EXTENSION, Activity, Places
from gateway.edge.problems import ANSWERS, Problem
from gateway.measures import UNMEASURED, Measures

__all__ = ["Connection", "Connections"]

HEADER_SECONDS = 10.0
# For all headers together, and for any input that has not become a request.
HEADER_BYTES = 32_768
HEADERS = 256
# How long an answer may wait to be read: while it is written, and after the connection is closed.
ANSWER_SECONDS = 10.0
CLOSE_SECONDS = 3.0
# What all clients together may pipeline: send before the answer to an earlier request.
PIPELINED_BYTES = 16 * 1_048_576
# A chunked body with more pieces than this must have enough bytes in each.
CHUNKS = 4_096
CHUNK_BYTES = 64
CHUNKED_NEED = 1 << 40
# How often one read may be cut in the middle of a body.
CUTS = 64

END = b"\r\n\r\n"
UPGRADE = (b"upgrade", b"connection", b"http2-settings")


class NotTaken(Exception):
    """Raised through the parser, which reports an invalid request."""


class Connections:
    """What all connections share."""

    def __init__(self, most: int, measures: Measures = UNMEASURED) -> None:
        self.places = Places(most)
        self.measures = measures
        measures.observe_connections(lambda: self.places.taken)
        self.pacing = Pacing()
        self._pipelined: dict[Connection, int] = {}
        self._pipelined_bytes = 0

    def keep_pipelined(self, connection: "Connection", size: int) -> None:
        """Notes how much a connection has pipelined. If it is too much, the oldest is dropped."""
        self.forget_pipelined(connection)
        self._pipelined[connection] = size
        self._pipelined_bytes += size
        while self._pipelined_bytes > PIPELINED_BYTES:
            next(iter(self._pipelined)).drop_pipelined()

    def forget_pipelined(self, connection: "Connection") -> None:
        """Notes that nothing pipelined is kept for the connection any more."""
        self._pipelined_bytes -= self._pipelined.pop(connection, 0)


class Flow(FlowControl):
    """Keeps the reading paused while pipelined bytes are kept."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """Answers one request after the other; ends a connection that is too slow, too large or one too many."""

    flow: Flow

    refuse: Callable[[], None] | None = None
    """Refuses the request that is under way at once; None if it cannot be refused."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        # How long it may be idle, may take for headers, and may leave an answer unread.
        self._idle, self._heading, self._stalled = Clock(), Clock(), Clock()
        self._pipelined = b""
        # Of the request that is being read: the size of its headers, whether they are complete, what is left
        # of a body of known length, the pieces of one of unknown length, and whether that is complete.
        self._header_bytes = self._idle_bytes = 0
        self._headed = False
        self._left: int | None = None
        self._chunks = self._chunked_bytes = 0
        self._whole = False
        self._tail = b""

    def mark_verified(self) -> None:
        """Notes that the sender of the request under way is known."""
        self.refuse = None
        self._connections.places.note(self, Activity.KNOWN)

    def evict(self, *, at_once: bool) -> None:
        """Closes the connection to free its place for another one."""
        self._connections.measures.connection_refused("gave_way")
        if self.refuse is not None and not at_once:
            self.refuse()
            self._start_stalled(CLOSE_SECONDS)
        elif at_once or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._leave()

    def drop_pipelined(self) -> None:
        """Drops what was pipelined: the connection closes after the next answer."""
        self._forget_pipelined()
        self.cycle.keep_alive = False

    # What the transport calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._await_head()
        if not self._connections.places.enter(self):
            self._connections.measures.connection_refused("full")
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._idle, self._heading, self._stalled):
            clock.stop()
        self._forget_pipelined()
        self._connections.places.leave(self)
        super().connection_lost(exc)
        self.refuse = None

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._take(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stalled(ANSWER_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.stop()
        if self.transport.is_closing():
            self._start_stalled(CLOSE_SECONDS)

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._answering():
            raise NotTaken  # Nothing is read ahead: this request hides in the last piece of a malformed body.
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]  # ASGI lets a server add its own
        self._header_bytes = self._idle_bytes = 0
        self._headed = self._whole = False
        self._chunks = self._chunked_bytes = 0
        self._await_head()
        self._connections.places.note(self, Activity.BEGINNING)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._headed:
            return  # A trailer. What the body is judged by came before it.
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            raise NotTaken

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        if self.parser.get_method() == b"CONNECT":
            raise NotTaken
        if self.parser.should_upgrade():
            return
        self._headed = True
        self._left = next((int(value) for name, value in self.headers if name == b"content-length"), None)
        self._heading.stop()
        self._connections.places.note(self, Activity.ASKING)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Counts the pieces of a chunked body, each of which costs more than its bytes."""
        self._chunks += 1
        if self._chunks > CHUNKS and self._chunked_bytes < self._chunks * CHUNK_BYTES:
            raise NotTaken

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if self._left is None:
            self._chunked_bytes += len(body)
        else:
            self._left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self._whole = True
            self._left = None
            super().on_message_complete()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        self.refuse = None
        pipelined = self._forget_pipelined()
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_stalled(CLOSE_SECONDS)
            return
        self._connections.places.note(self, Activity.IDLE)
        if pipelined:
            self._unset_keepalive_if_required()
            self._take(pipelined)

    def timeout_keep_alive_handler(self) -> None:
        self._idle.set(self.loop.time(), self._leave)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._start_stalled(CLOSE_SECONDS)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own text is not told
        """Answers what is not HTTP, unless another answer has begun."""
        self._connections.measures.connection_refused("unreadable")
        if not self._under_way() or not self.cycle.response_started:
            head, content = _answer()
            # The method is known before the rest of the line, which may be what cannot be read.
            is_head = self.parser.get_method() == b"HEAD"
            self.transport.write(head if is_head else head + content)
        if self._under_way():
            # The handler of the request learns that nobody waits any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._leave()

    def _unset_keepalive_if_required(self) -> None:
        super()._unset_keepalive_if_required()
        self._idle.stop()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        begin = super()._start_asgi_task
        # A body of unknown size may be large.
        need = (CHUNKED_NEED if has_body(self.headers) else 0) if self._left is None else self._left
        self._connections.pacing.take(lambda: None if cycle.disconnected else begin(cycle, app), need)

    # How what arrives is read

    def _take(self, data: bytes) -> None:
        """Reads up to the end of a request. What comes after that waits for the answer."""
        at = cuts = 0
        whole = memoryview(data)
        try:
            while at < len(data) and not self.transport.is_closing():
                if self._answering():
                    self._keep_pipelined(data[at:])
                    return
                end = self._end(data, at) if cuts < CUTS or not self._headed else len(data)
                self._idle_bytes += end - at
                self._feed(whole[at:end])
                self._tail = (self._tail + data[max(at, end - 3) : end])[-3:]
                at, cuts = end, cuts + 1
                if self._idle_bytes > HEADER_BYTES:
                    self.send_400_response("")
        except httptools.HttpParserError:
            self.send_400_response("")
        if not (self._heading.runs or self._under_way() or self.transport.is_closing()):
            # Bytes arrived that are no request yet, such as empty lines.
            self._await_head()

    def _end(self, data: bytes, at: int) -> int:
        """How far the data may be read without reading into another request."""
        if self._headed and self._left is not None and not self._whole:
            return min(len(data), at + self._left)
        # Headers end in an empty line, and so does a chunked body, with trailers or without.
        split = (self._tail + data[at : at + 3]).find(END)
        if split >= 0:
            return max(at + 1, at + split + len(END) - len(self._tail))
        found = data.find(END, at)
        return found + len(END) if found >= 0 else len(data)

    def _feed(self, data: memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Some clients offer HTTP/2 with every first request. The parser then takes what follows for
            # another protocol; declining the offer means that the headers are parsed again without it.
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
            for name, value in self.headers:
                if name not in UPGRADE:
                    head += [name, b": ", value, b"\r\n"]
                elif name == b"connection" and b"close" in value.lower():
                    head.append(b"connection: close\r\n")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"".join([*head, b"\r\n"]))

    def _under_way(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _answering(self) -> bool:
        """Whether a request was read to its end, and its answer is not."""
        return self._whole and self._under_way()

    def _keep_pipelined(self, data: bytes) -> None:
        if not self.cycle.keep_alive:
            return
        self._pipelined += data
        self.flow.held = True
        self.flow.pause_reading()
        self._connections.keep_pipelined(self, len(self._pipelined))

    def _forget_pipelined(self) -> bytes:
        data, self._pipelined = self._pipelined, b""
        self.flow.held = False
        self._connections.forget_pipelined(self)
        return data

    def _count(self, size: int) -> None:
        self._idle_bytes = 0
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            raise NotTaken

    # How it ends

    def _leave(self) -> None:
        """Closes the connection once the last answer has been sent, or a little later anyway."""
        if not self.transport.is_closing():
            self.transport.close()
        self._start_stalled(CLOSE_SECONDS)

    def _await_head(self) -> None:
        self._heading.set(self.loop.time() + HEADER_SECONDS, self._leave)

    def _start_stalled(self, seconds: float) -> None:
        self._stalled.set(self.loop.time() + seconds, self.transport.abort)


def _answer() -> tuple[bytes, bytes]:
    """The answer, head and content."""
    _, error_code, _ = ANSWERS["MALFORMED_BODY"]
    content = msgspec.json.encode(
        Problem(
            error_code=error_code,
            reason="MALFORMED_BODY",
            error_message="The request is not HTTP/1.1, its method is unknown, or its headers are too large.",
            conversation_id=None,
            # Nothing of it is traced. Whoever files answers by this id has one for each.
            trace_id=secrets.token_hex(16),
        )
    )
    head = (
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode(), content
