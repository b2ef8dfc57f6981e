"""HTTP/2 by hand, for what no gRPC client can be made to do: bodies that stall, and bytes that are no call."""

import asyncio
import struct
from collections import defaultdict

__all__ = ["Wire"]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
FIRST_WINDOW = 65_535


class Wire:
    """One connection. Sends no more than the other side's windows allow, and reads whatever comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = 1
        self._first = FIRST_WINDOW
        self._room: dict[int, int] = {0: FIRST_WINDOW}
        self._moved = asyncio.Condition()
        self.ended: dict[int, bytes] = {}  # the last headers of each stream that the server ended
        self._headers: dict[int, bytes] = defaultdict(bytes)
        self.sent: dict[int, int] = defaultdict(int)
        self.told_to_go = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, port: int) -> "Wire":
        """A connection to a server on this machine."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        return cls(reader, writer)

    async def close(self) -> None:
        """Breaks the connection off."""
        self._reading.cancel()
        self._writer.transport.abort()
        await asyncio.gather(self._reading, return_exceptions=True)

    def begin(self, path: str, *, content_type: str = "application/grpc", **metadata: str) -> int:
        """Sends the headers of a call, and returns its stream."""
        stream, self._next = self._next, self._next + 2
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "te": "trailers", "content-type": content_type, **metadata,
        }  # fmt: skip
        self._room[stream] = self._first
        block = b"".join(_literal(name, value) for name, value in fields.items())
        self._writer.write(_frame(HEADERS, END_HEADERS, stream, block))
        return stream

    def ping(self) -> None:
        """Asks whether the other side is there."""
        self._writer.write(_frame(PING, 0, 0, bytes(8)))

    async def send(self, stream: int, body: bytes | memoryview, *, end: bool = False) -> None:
        """Sends as much of the body as the server takes; returns early when it ends the stream."""
        while body and stream not in self.ended:
            async with self._moved:
                await self._moved.wait_for(
                    lambda: stream in self.ended or min(self._room[0], self._room[stream]) > 0
                )
            size = min(len(body), self._room[0], self._room[stream], 16_384)
            if stream in self.ended or size <= 0:
                continue
            piece, body = body[:size], body[size:]
            self._room[0] -= size
            self._room[stream] -= size
            self.sent[stream] += size
            self._writer.write(_frame(DATA, END_STREAM if end and not body else 0, stream, piece))
            await self._writer.drain()

    async def end_of(self, stream: int, *, seconds: float = 20) -> bytes:
        """The headers with which the server ended a stream."""
        async with asyncio.timeout(seconds), self._moved:
            await self._moved.wait_for(lambda: stream in self.ended)
        return self.ended[stream]

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
                self._take(kind, flags, stream, await self._reader.readexactly(length))
                async with self._moved:
                    self._moved.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:
                    for each in self._room:
                        if each:
                            self._room[each] += value - self._first
                    self._first = value
            self._writer.write(_frame(SETTINGS, ACK, 0, b""))
        elif kind == GOAWAY:
            self.told_to_go = True
        elif kind == PING and not flags & ACK:
            self._writer.write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._room[stream] = self._room.get(stream, 0) + int.from_bytes(payload)
        elif kind == HEADERS:
            self._headers[stream] = payload
        if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RST_STREAM:
            self.ended.setdefault(stream, self._headers[stream])


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: str, value: str) -> bytes:
    """A header as HPACK writes one that is neither known nor to be remembered."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text.encode()
    out, size = bytearray((127,)), size - 127
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    out.append(size)
    return bytes(out) + text.encode()
