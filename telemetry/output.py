"""Standard output as a handler of log lines that keeps nobody waiting.

Who reads the output may stop reading, and the disk below it may be full. Neither may hold up a call, a start
or a stop: lines wait in a bounded queue, and one thread writes them in their order. Lines that find the queue
full, or cannot be written, are lost. Once there is room the log says how many.
"""

import logging
import os
import select
import sys
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TextIO

import structlog

__all__ = ["Output"]

log = structlog.get_logger()

# Some megabytes of them.
MOST_LINES = 10_000
# How many are taken from the queue at once.
BATCH = 100
# How much is written at once, beside the end of a line that was torn. Others may write to the same pipe,
# which takes so much in one piece.
TOGETHER = select.PIPE_BUF - 1
# How long the last lines may take when the process ends.
LAST_SECONDS = 2.0


class Output(logging.Handler):
    """Writes the lines of a process in a thread of its own, until the block ends.

    At most `most` lines wait, and the last of them `last_seconds` as the block ends. This is made in the
    process that writes: a fork has no such thread.
    """

    def __init__(
        self, stream: TextIO | None = None, *, most: int = MOST_LINES, last_seconds: float = LAST_SECONDS
    ) -> None:
        super().__init__()
        stream = stream or sys.stdout
        # Not through the stream, whose lock the thread would hold for as long as nobody reads: Python needs
        # that lock to end. There is no stream if the process was begun with its standard output closed.
        self._file = None if stream is None else stream.fileno()
        self._encoding = "utf-8" if stream is None else stream.encoding
        self._most = most
        self._last_seconds = last_seconds
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        # Each is changed by one party alone: whoever holds the lock of the handler, and the thread.
        self._refused = 0
        self._failed = 0
        self._told = 0
        self._is_torn = False
        self._writer = threading.Thread(target=self._write_all, name="output", daemon=True)

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.put(None)
        self._writer.join(self._last_seconds)

    def emit(self, record: logging.LogRecord) -> None:
        """Formats the line now, since it tells of the current task, and leaves the rest to the thread."""
        try:
            self._put(self.format(record))
        except Exception:  # noqa: BLE001 - whatever a library logs
            # logging's own way would be to print the line, and what it holds.
            if record.name != __name__:
                place = f"{record.pathname}:{record.lineno}"
                log.warning("log line not written, its values do not fit its text", place=place)

    def write(self, line: str) -> None:
        """Writes a line that is not about an event, behind those that wait."""
        self.acquire()
        try:
            self._put(line)
        finally:
            self.release()

    def _put(self, line: str) -> None:
        if self._lines.qsize() < self._most:
            self._lines.put(line)
        else:
            self._refused += 1

    def _write_all(self) -> None:
        is_open = True
        # The last thing to be written may be how many lines were lost.
        while is_open or not self._lines.empty():
            lines = [self._lines.get()]
            lines += [self._lines.get() for _ in range(min(self._lines.qsize(), BATCH))]
            is_open = is_open and None not in lines
            for data in self._together(line for line in lines if line is not None):
                self._write(data)

    def _together(self, lines: Iterable[str]) -> Iterator[bytes]:
        """What is written at once: whole lines. A long line is written alone."""
        data = b""
        for line in lines:
            encoded = f"{line}\n".encode(self._encoding, "backslashreplace")
            if data and len(data) + len(encoded) > TOGETHER:
                yield data
                data = b""
            data += encoded
        if data:
            yield data

    def _write(self, whole: bytes) -> None:
        if self._file is None:
            return
        # What was left of a line after a failure must not become the beginning of another one.
        data = b"\n" * self._is_torn + whole
        written = 0
        try:
            while written < len(data):
                written += _written(self._file, data[written:])
        except OSError:
            self._failed += data.count(b"\n", max(written, self._is_torn))
        if written:
            self._is_torn = not data[:written].endswith(b"\n")
        lost = self._refused + self._failed - self._told
        if lost and written == len(data) and self._lines.qsize() <= self._most // 2:
            self._told += lost
            log.warning("log lines were lost, standard output did not take them", lines=lost)


def _written(file: int, data: bytes) -> int:
    """How much of the data the file took. Waits until it takes some."""
    try:
        return os.write(file, data)
    except BlockingIOError:  # whoever made the pipe may have said that it does not block
        select.select([], [file], [])
        return 0
