"""Cloners, gateways and commands of ours in processes of their own that start fast.

They are forked from a process that has imported everything, which takes a tenth of the processor time of
`python -m cloner`. What that does beside is tested where processes are. A cloner is killed for real, and goes by a
clock that a test moves. It decodes samples itself, unless AUDIO_WORKERS gives it processes for that: starting one of
those takes as much as all the rest.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
import warnings
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from opentelemetry.sdk.trace import TracerProvider

from cloner import janitor
from cloner.audio.inspection import InspectionLimits
from cloner.server import serving
from cloner.settings import Settings
from environment import read
from telemetry import logs
from tests.kit.inspection import WithoutWorker
from tests.kit.python import python

__all__ = ["Clock", "Forked", "Program", "completed", "import_everything", "program", "started"]

# What OpenTelemetry reads while it is imported. All else is read when something is made of it.
READ_BY_IMPORTS = (
    "OTEL_SPAN_",
    "OTEL_ATTRIBUTE_",
    "OTEL_EVENT_",
    "OTEL_LINK_",
    "OTEL_PROPAGATORS",
    "OTEL_PYTHON_",
)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.kit.preloaded"])


class Clock:
    """The time of everybody in one test: the real one and what was jumped so far, unless it stands still."""

    def __init__(self) -> None:
        self._offset: Any = CONTEXT.Value("d", 0.0, lock=False)
        self._stands: Any = CONTEXT.Value("d", 0.0, lock=False)

    def __call__(self) -> float:
        return (self._stands.value or time.time()) + self._offset.value

    def jump(self, seconds: float) -> None:
        """Moves the time of every process at once."""
        self._offset.value += seconds

    @contextmanager
    def standing(self) -> Iterator[float]:
        """A block in which no time passes, unless it jumps. Yields the time at which it begins."""
        self._stands.value = began = time.time()
        yield self()
        self._offset.value -= time.time() - began
        self._stands.value = 0.0


class Forked:
    """A cloner process with the settings that an environment would give it. Its log is appended to a file."""

    def __init__(
        self, clock: Clock, log: Path, environ: dict[str, str], *, tick_seconds: float = janitor.TICK_SECONDS
    ) -> None:
        self._answers, told = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_serve, args=(clock, told, log, environ, tick_seconds), daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid
        told.close()

    async def port(self, seconds: float = 30.0) -> int:
        """Where it listens, once it does."""
        async with asyncio.timeout(seconds):
            while not self._answers.poll():
                assert self.alive, "a cloner died by itself"
                await asyncio.sleep(0.005)
        return self._answers.recv()

    @property
    def alive(self) -> bool:
        """Whether it was not killed."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL: whatever it was at, it is at no more."""
        if not self._answers.closed:
            self._process.kill()
            self._process.join()
            self._answers.close()


class Program:
    """`python -m module` under way, with as much of `asyncio.subprocess.Process` as tests use."""

    def __init__(self, process: Any, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._ended.set)
        self.pid: int = process.pid
        self.stdout = stdout
        self.stderr = stderr

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the number of the signal that ended it, below zero; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int | None:
        """Waits until it has ended; its `returncode`."""
        await self._ended.wait()
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Waits until it has ended; what it wrote and was not read."""
        written = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return written[0], written[1]


@asynccontextmanager
async def started(
    module: str, *, environ: Mapping[str, str], folder: Path | None = None, imports: bool = False
) -> AsyncIterator[Process | Program]:
    """`python -m module`, forked unless a test wants `imports` or sets what they read."""
    imports = imports or any(name.startswith(READ_BY_IMPORTS) for name in environ)
    async with (
        python("-m", module, env=environ, cwd=folder)
        if imports
        else program(module, environ=environ, folder=folder) as begun
    ):
        yield begun


@asynccontextmanager
async def program(
    module: str, *, environ: Mapping[str, str], folder: Path | None = None
) -> AsyncIterator[Program]:
    """`python -m module`, with nothing in its environment but this. Killed if it still runs as the block ends."""
    import_everything()
    async with AsyncExitStack() as stack:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        process = CONTEXT.Process(
            target=_run_piped,
            args=(module, dict(environ), folder, [theirs for _, theirs in pipes]),
            daemon=True,
        )
        process.start()
        for _, theirs in pipes:
            theirs.close()
        started = Program(process, *[await _reader(ours, stack) for ours, _ in pipes])
        try:
            yield started
        finally:
            started.kill()
            await started.communicate()


async def _reader(ours: Connection, stack: AsyncExitStack) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), ours)
    stack.callback(transport.close)
    return reader


async def completed(
    module: str, *arguments: str, environ: dict[str, str], folder: Path | None = None, told: bytes = b""
) -> tuple[int, str, str]:
    """Exit status, output and errors of `python -m module`, which finds what it is told on standard input."""
    with tempfile.TemporaryDirectory(prefix="precall-streams-") as made:
        streams = [Path(made) / name for name in ("in", "out", "err")]
        streams[0].write_bytes(told)
        process = CONTEXT.Process(
            target=_run, args=(module, arguments, environ, folder, streams), daemon=True
        )
        process.start()
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(process.sentinel)
            process.kill()
            process.join()
        return process.exitcode, streams[1].read_text(), streams[2].read_text()


def import_everything() -> None:
    """Returns once there is a process to fork from. The first fork waits for it, and would hold up a loop."""
    process = CONTEXT.Process()
    process.start()
    process.join()


def _begin(streams: list[Path]) -> None:
    _begin_with(
        [
            os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for number, path in enumerate(streams)
        ]
    )


def _begin_with(streams: list[int]) -> None:
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    for number, opened in enumerate(streams):
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", buffering=1, closefd=False) for number in range(3)
    )


def _end_with_the_tests() -> None:
    # However they end. What they are forked from stays as long as any fork.
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def _run(
    module: str, arguments: tuple[str, ...], environ: dict[str, str], folder: Path | None, streams: list[Path]
) -> None:
    _begin(streams)
    _become(module, arguments, environ, folder)


def _run_piped(module: str, environ: dict[str, str], folder: Path | None, written: list[Connection]) -> None:
    _begin_with([os.open(os.devnull, os.O_RDONLY), *(os.dup(each.fileno()) for each in written)])
    for each in written:
        each.close()
    _become(module, (), environ, folder)


def _become(module: str, arguments: tuple[str, ...], environ: dict[str, str], folder: Path | None) -> None:
    os.environ.clear()
    os.environ.update(environ)
    if folder is not None:
        os.chdir(folder)
    if environ.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve(clock: Clock, told: Connection, log: Path, environ: dict[str, str], tick_seconds: float) -> None:
    _begin([Path(os.devnull), log, log])
    logs.configure("cloner", level="INFO", form="json")
    settings = read(Settings, environ)
    limits = InspectionLimits(most=settings.voice_clone_max_duration, enough=settings.voice_clone_min_sound)
    inspector = None if "AUDIO_WORKERS" in environ else WithoutWorker(limits)
    uvloop.run(_listen(clock, told, settings, inspector, tick_seconds))


async def _listen(
    clock: Clock, told: Connection, settings: Settings, inspector: WithoutWorker | None, tick_seconds: float
) -> None:
    tracing = TracerProvider(shutdown_on_exit=False)
    async with serving(settings, tracing, now=clock, inspector=inspector, tick_seconds=tick_seconds) as port:
        told.send(port)
        await asyncio.Event().wait()
