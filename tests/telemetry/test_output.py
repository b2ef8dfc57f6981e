import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from telemetry.output import Output

# More than a pipe holds.
LINE = "x" * 1_000
MORE_THAN_FITS = 100


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where lines are read, and where they are written."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def log(output: Output, text: str, *values: object) -> None:
    """Writes a line as a logger would."""
    output.handle(logging.makeLogRecord({"msg": text, "args": values}))


def written_later(reader: int) -> list[str]:
    """The lines that an output writes after its block, to the end: then its file may be closed."""
    *_, thread = (one for one in threading.enumerate() if one.name == "output")
    os.set_blocking(reader, False)
    taken = b""
    while thread.is_alive():
        with suppress(BlockingIOError):
            taken += os.read(reader, 65_536)
        thread.join(0.001)
    with suppress(BlockingIOError):
        taken += os.read(reader, 65_536)
    return taken.decode().splitlines()


def fill(writer: int) -> None:
    """Writes lines to the pipe until it takes no more."""
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, f"{LINE}\n".encode())
    os.set_blocking(writer, True)


def test_order(pipe: tuple[int, int]) -> None:
    """Lines leave in the order in which they were written, and all of them, before the block has ended."""
    reader, writer = pipe
    with os.fdopen(writer, "w", encoding="ascii") as file, Output(file) as output:
        for number in range(500):
            log(output, "%d", number)
        output.write("conv é")

    written = os.read(reader, 65_536).decode().splitlines()
    assert [*map(str, range(500)), r"conv \xe9"] == written


def test_two_who_write(pipe: tuple[int, int]) -> None:
    """Lines of two processes that have one pipe do not mix, however slowly it is read."""
    reader, writer = pipe
    numbers = range(1_000)
    with ThreadPoolExecutor() as pool:
        with (
            os.fdopen(os.dup(writer), "w") as one,
            os.fdopen(writer, "w") as other,
            Output(one) as first,
            Output(other) as second,
        ):
            for number in numbers:
                log(first, "%d a" + "a" * 100, number)
                log(second, "%d b" + "b" * 100, number)
            reading = pool.submit(Path(f"/proc/self/fd/{reader}").read_text)
        written = reading.result().splitlines()

    for letter in "ab":
        expected = [f"{number} {letter * 101}" for number in numbers]
        assert expected == [line for line in written if letter in line]


def test_nobody_reads(pipe: tuple[int, int]) -> None:
    """A line never waits. What is too much is lost, and its number told once there is room."""
    reader, writer = pipe
    with ThreadPoolExecutor() as pool, capture_logs() as told:
        with os.fdopen(writer, "w") as file, Output(file, most=MORE_THAN_FITS) as output:
            for _ in range(10 * MORE_THAN_FITS):
                log(output, LINE)
            reading = pool.submit(Path(f"/proc/self/fd/{reader}").read_text)
        kept = reading.result().splitlines()

    assert {LINE} == set(kept)
    assert 10 * MORE_THAN_FITS - len(kept) == sum(line["lines"] for line in told)


def test_loss_at_the_end(pipe: tuple[int, int]) -> None:
    """What was lost is told also where there is room only once the block is ending."""
    reader, writer = pipe

    def written(_logger: Any, _method: str, event: EventDict) -> EventDict:
        output.write(event["event"])
        return event

    fill(writer)
    with os.fdopen(writer, "w") as file:
        with Output(file, most=MORE_THAN_FITS, last_seconds=0.0) as output:
            for _ in range(3 * MORE_THAN_FITS):
                log(output, LINE)
        with capture_logs(processors=[written]):
            *kept, told = written_later(reader)

    assert {LINE} == set(kept)
    assert "log lines were lost, standard output did not take them" == told


def test_line_that_nobody_can_format(pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    """It is told where such a line comes from, and not what it holds."""
    reader, writer = pipe
    with os.fdopen(writer, "w") as file, Output(file) as output, capture_logs() as told:
        output.handle(logging.LogRecord("lib", logging.INFO, "lib.py", 7, "%d", ("a secret",), None))
        output.write("the next line")

    event = "log line not written, its values do not fit its text"
    assert [{"log_level": "warning", "event": event, "place": "lib.py:7"}] == told
    assert b"the next line\n" == os.read(reader, 1_000)
    assert ("", "") == tuple(capfd.readouterr())


def test_end_with_nobody_who_reads(pipe: tuple[int, int]) -> None:
    """The end waits for a reader for a bounded time."""
    reader, writer = pipe
    began = time.monotonic()
    with os.fdopen(writer, "w") as file:
        with Output(file, last_seconds=0.05) as output:
            for _ in range(MORE_THAN_FITS):
                log(output, LINE)
        took = time.monotonic() - began
        written = written_later(reader)

    assert 0.05 <= took < 5.0
    assert [LINE] * MORE_THAN_FITS == written


def test_what_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    """A full disk raises nothing, and is told nowhere else."""
    with Path("/dev/full").open("w") as file, Output(file) as output:
        log(output, LINE)

    assert ("", "") == tuple(capfd.readouterr())
