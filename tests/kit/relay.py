"""A relay between two processes, through which a test makes the far one unreachable, or hang."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Passes bytes on in both directions, from a port of its own to `target`."""

    def __init__(self, target: str) -> None:
        self.taken = 0  # connections, so far
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        # Not an asyncio.Server: one that closes leaves open what it has just accepted (python/cpython#109564).
        self._listener: socket.socket | None = None
        self._accepted: dict[asyncio.Task[None], socket.socket] = {}
        # Keeps the port from all others while nobody listens: connections to it are refused.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.port: int = self._kept.getsockname()[1]

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Relay"]:
        """Listens until the block ends."""
        self._listen()
        try:
            yield self
        finally:
            await self._hang_up()
            self._kept.close()

    async def down(self) -> None:
        """Refuses connections, and cuts those that there are."""
        await self._hang_up()

    async def hang(self) -> None:
        """Takes connections and passes nothing on, in neither direction."""
        self._open.clear()

    async def mend(self) -> None:
        """Passes on again what was held up."""
        self._open.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            accepted, _ = self._listener.accept()
            self.taken += 1
            self._accepted[asyncio.create_task(self._relay(accepted))] = accepted

    async def _hang_up(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        cut, self._accepted = self._accepted, {}
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        for accepted in cut.values():
            accepted.close()

    async def _relay(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        try:
            with contextlib.suppress(OSError):
                await self._open.wait()
                host, _, port = self._target.rpartition(":")
                there, back = await asyncio.open_connection(host, int(port))
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._pass_on(reader, back))
                        both.create_task(self._pass_on(there, writer))
                finally:
                    back.close()
        except (asyncio.CancelledError, ExceptionGroup):
            # Cut off. The streams protocol would complain of a task that was cancelled.
            pass
        finally:
            writer.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        await self._open.wait()
        if sink.can_write_eof():
            sink.write_eof()
