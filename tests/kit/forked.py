"""Cloners, gateways and commands of ours in processes of their own that start fast.

They are forked from a process that has imported everything, which takes a tenth of the processor time of
`python -m cloner`. What that does beside is tested where processes are. A cloner is killed for real, and goes by a
clock that a test moves. It decodes samples itself, unless AUDIO_WORKERS gives it processes for that: starting one of
those takes as much as all the rest.
"""

import asyncio
import mmap
import os
import runpy
import signal
import sys
import tempfile
import time
import warnings
import weakref
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from functools import cache
from pathlib import Path

import uvloop
from opentelemetry.sdk.trace import TracerProvider

from cloner.audio.inspection import InspectionLimits
from cloner.server import serving
from cloner.settings import Settings
from environment import read
from telemetry import logs
from tests.kit import audio_worker
from tests.kit.child import Child
from tests.kit.inspection import WithoutWorker
from tests.kit.python import python

__all__ = ["Clock", "Forked", "Program", "become", "completed", "import_everything", "program", "started"]

# What OpenTelemetry reads while it is imported. All else is read when something is made of it.
READ_BY_IMPORTS = (
    "OTEL_SPAN_",
    "OTEL_ATTRIBUTE_",
    "OTEL_EVENT_",
    "OTEL_LINK_",
    "OTEL_PROPAGATORS",
    "OTEL_PYTHON_",
)


class Clock:
    """The time of everybody in one test: the real one and what was jumped so far, unless it stands still."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="precall-clock-") as made:
            made.truncate(mmap.PAGESIZE)
            self._open(os.dup(made.fileno()))

    def _open(self, file: int) -> None:
        self.file = file
        weakref.finalize(self, os.close, file)
        # How far it was moved, and when it stands.
        self._told = memoryview(mmap.mmap(file, mmap.PAGESIZE)).cast("d")

    @classmethod
    def of_file(cls, file: int) -> "Clock":
        """The same clock, in a process that has its file."""
        clock = cls.__new__(cls)
        clock._open(file)
        return clock

    def __call__(self) -> float:
        return (self._told[1] or time.time()) + self._told[0]

    def jump(self, seconds: float) -> None:
        """Moves the time of every process at once."""
        self._told[0] += seconds

    @contextmanager
    def standing(self) -> Iterator[float]:
        """A block in which no time passes, unless it jumps. Yields the time at which it begins."""
        self._told[1] = began = time.time()
        yield self()
        self._told[0] -= time.time() - began
        self._told[1] = 0.0


class Forked:
    """A cloner process with the settings that an environment would give it. Its log is appended to a file.

    The `rhythm` is what `serving` takes beside: how often it looks, and how long it waits.
    """

    def __init__(self, clock: Clock, log: Path, environ: dict[str, str], **rhythm: float) -> None:
        self._answers, told = os.pipe()
        os.set_blocking(self._answers, False)
        with log.open("ab") as written:
            files = [None, written.fileno(), written.fileno(), told, clock.file]
            self._child = Child(_serve, environ, rhythm, files=files)
        os.close(told)
        self.pid = self._child.pid

    async def port(self, seconds: float = 30.0) -> int:
        """Where it listens, once it does."""
        async with asyncio.timeout(seconds):
            while True:
                with suppress(BlockingIOError):
                    told = os.read(self._answers, 16)
                    assert told, "a cloner died by itself"
                    return int(told)
                await asyncio.sleep(0.005)

    @property
    def alive(self) -> bool:
        """Whether it was not killed."""
        return self._child.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL: whatever it was at, it is at no more."""
        self._child.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1


class Program:
    """`python -m module` under way, with as much of `asyncio.subprocess.Process` as tests use."""

    def __init__(self, child: Child, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._child = child
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(child, self._end)
        self.pid = child.pid
        self.stdout = stdout
        self.stderr = stderr

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._child)
        self._ended.set()

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the number of the signal that ended it, below zero; None while it runs."""
        return self._child.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        self._child.send(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int | None:
        """Waits until it has ended; its `returncode`."""
        await self._ended.wait()
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Waits until it has ended; what it wrote and was not read."""
        written = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return written[0], written[1]


@asynccontextmanager
async def started(
    module: str,
    *,
    environ: Mapping[str, str],
    folder: Path | None = None,
    imports: bool = False,
    output: int | None = None,
) -> AsyncIterator[Process | Program]:
    """`python -m module`, forked unless a test wants `imports` or sets what they read.

    If it is given an `output`, a fork writes there.
    """
    imports = imports or any(name.startswith(READ_BY_IMPORTS) for name in environ)
    async with (
        python("-m", module, env=environ, cwd=folder)
        if imports
        else program(module, environ=environ, folder=folder, output=output) as begun
    ):
        yield begun


@asynccontextmanager
async def program(
    module: str, *, environ: Mapping[str, str], folder: Path | None = None, output: int | None = None
) -> AsyncIterator[Program]:
    """`python -m module`, with nothing in its environment but this. Killed if it still runs as the block ends."""
    import_everything()
    async with AsyncExitStack() as stack:
        pipes = [os.pipe() for _ in range(2)]
        files = [None, *(theirs for _, theirs in pipes)]
        if output is not None:
            files[1] = output
        child = stack.enter_context(closing(Child(become, module, (), dict(environ), folder, files=files)))
        for _, theirs in pipes:
            os.close(theirs)
        started = Program(child, *[await _reader(ours, stack) for ours, _ in pipes])
        try:
            yield started
        finally:
            started.kill()
            await started.communicate()


async def _reader(ours: int, stack: AsyncExitStack) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
    )
    stack.callback(transport.close)
    return reader


async def completed(
    module: str, *arguments: str, environ: dict[str, str], folder: Path | None = None, told: bytes = b""
) -> tuple[int, str, str]:
    """Exit status, output and errors of `python -m module`, which finds what it is told on standard input."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(told)
        given.seek(0)
        files = [each.fileno() for each in (given, output, errors)]
        child = Child(become, module, arguments, environ, folder, files=files)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(child, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(child)
            child.close()
        written = []
        for each in (output, errors):
            each.seek(0)
            written.append(each.read().decode())
        return child.returncode, *written


@cache
def import_everything() -> None:
    """Returns once there is a process to fork from. The first fork waits for it, and would hold up a loop."""
    with closing(Child(_nothing, files=[])) as child:
        child.wait()


def _nothing() -> None:
    pass


def become(module: str, arguments: tuple[str, ...], environ: dict[str, str], folder: Path | None) -> None:
    """Runs in the fork: `python -m module`."""
    assert not any(name.startswith(READ_BY_IMPORTS) for name in environ), "a variable that imports read"
    os.environ.clear()
    os.environ.update(environ)
    if folder is not None:
        os.chdir(folder)
    if environ.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    if module == "cloner":
        # What starts its audio workers.
        sys.executable = audio_worker.python()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve(environ: dict[str, str], rhythm: dict[str, float], told: int, clock: int) -> None:
    logs.configure("cloner", level="INFO", form="json")
    settings = read(Settings, environ)
    limits = InspectionLimits(most=settings.voice_clone_max_duration, enough=settings.voice_clone_min_sound)
    inspector = None if "AUDIO_WORKERS" in environ else WithoutWorker(limits)
    uvloop.run(_listen(Clock.of_file(clock), told, settings, inspector, rhythm))


async def _listen(
    clock: Clock, told: int, settings: Settings, inspector: WithoutWorker | None, rhythm: dict[str, float]
) -> None:
    tracing = TracerProvider(shutdown_on_exit=False)
    async with serving(settings, tracing, now=clock, inspector=inspector, **rhythm) as port:
        os.write(told, str(port).encode())
        await asyncio.Event().wait()
