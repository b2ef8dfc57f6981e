"""What the bytes of a voice sample are, found out by decoding all of them in a worker process.

                             at fault                 what to do
    SampleUnreadable         the sample               refuse it
    InspectionUnavailable    nobody: too much work    try again later

This process never parses a sample. A worker (`cloner.inspection`) does, where the worst of samples
can do no more than use up the time and the memory it was given; it is then refused, and the worker
is replaced.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from cloner.finding import Finding, Format, Reply

__all__ = ["Audio", "InspectionUnavailable", "Inspector", "SampleUnreadable"]

log = structlog.get_logger()

START_SECONDS = 30.0  # for a worker to import what it needs on a machine that is busy starting
LONGEST_PAUSE = 5.0  # between two tries to start one
LONGEST_REPLY = 4_096

# A worker parses what strangers send, so of the environment, with our secrets, it gets what Python needs.
INHERITED = frozenset({"PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL"})

UPLOADED_AS: dict[Format, tuple[str, str]] = {
    "wav": ("audio/wav", "wav"),
    "mp3": ("audio/mpeg", "mp3"),
    "ogg": ("audio/ogg", "ogg"),
    "opus": ("audio/ogg", "ogg"),
    "flac": ("audio/flac", "flac"),
    "m4a": ("audio/mp4", "m4a"),
    "webm": ("audio/webm", "webm"),
}


class SampleUnreadable(Exception):
    """Not a recording that can be decoded, or not within the limits. The text can be shown."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"Voice sample unreadable: it {problem}")


class InspectionUnavailable(Exception):
    """No worker was free in time, or none could be started. Nothing is wrong with the sample."""

    def __init__(self, message: str = "Too many voice samples at once, try again later") -> None:
        super().__init__(message)


class Audio(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample is, whatever its headers claim.

    `format` is wav, mp3, ogg (Vorbis or FLAC in OGG), opus (in OGG), flac, m4a (any audio in MP4 or
    QuickTime) or webm; `media_type` and `extension` are what to upload it as. `sample_rate` is the
    decoder's, so 48000 for Opus. `peak_dbfs` is the loudest number in any channel, and above 0 where
    a float or lossy format says so.
    """

    format: Format
    media_type: str
    extension: str
    duration_seconds: float
    sample_rate: int
    peak_dbfs: float


class Inspector:
    """Owns the worker processes; inspections run side by side in them, the others wait their turn.

    `async with` returns once every worker is ready, or raises InspectionUnavailable. Enter it before
    a gRPC server is made: a worker holds none of its parent's sockets, but starting one beside a busy
    server takes longer. A worker that dies is replaced; none outlives this process, however it ends.

    A sample may cost `wall_seconds`, `cpu_seconds` of processor time and `memory_mb` of addresses,
    and waits for its turn at most `wall_seconds`, among at most `waiting` others.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        wall_seconds: float = 5.0,
        cpu_seconds: int = 5,
        memory_mb: int = 1024,
        max_seconds: float,
        waiting: int = 64,
    ) -> None:
        self._workers = workers
        self._wall_seconds = wall_seconds
        self._capacity = workers + waiting
        self._arguments = (str(max_seconds), str(cpu_seconds), str(memory_mb))
        self._unfinished: set[_Job] = set()
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._alive: set[_Worker] = set()
        self._tending: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> frozenset[int]:
        """The worker processes there are at the moment."""
        return frozenset(worker.pid for worker in self._alive)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._stop_all)
            try:
                async with asyncio.TaskGroup() as starting:
                    started = [starting.create_task(self._start()) for _ in range(self._workers)]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            undo.pop_all()
        self._tending = [asyncio.create_task(self._tend(task.result())) for task in started]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        self._tending = []
        for job in self._unfinished:
            job.fail(InspectionUnavailable("The service is stopping"))
        await self._stop_all()

    async def inspect(self, sample: bytes) -> Audio:
        """Says what the sample is. The duration of one longer than `max_seconds` is only that: longer.

        Raises SampleUnreadable or InspectionUnavailable. May be cancelled at any time.
        """
        if len(self._unfinished) >= self._capacity or not self._tending:
            raise InspectionUnavailable
        job = _Job(sample)
        self._unfinished.add(job)
        self._jobs.put_nowait(job)
        try:
            async with asyncio.timeout(self._wall_seconds):
                await job.begun.wait()
            # A try, a fresh worker and another try: the two tries are timed where they are made.
            async with asyncio.timeout(3 * self._wall_seconds):
                finding = await job.done
        except TimeoutError:
            raise InspectionUnavailable from None
        finally:
            self._unfinished.discard(job)
            job.abandon()
        media_type, extension = UPLOADED_AS[finding.format]
        return Audio(media_type=media_type, extension=extension, **msgspec.structs.asdict(finding))

    async def _tend(self, worker: "_Worker") -> None:
        """Gives one worker after the other one job after the other."""
        job: _Job | None = None
        coming = asyncio.create_task(self._jobs.get())
        try:
            while True:
                if worker.gone:
                    log.warning("inspection worker replaced", exit_status=await self._stop(worker))
                    worker = await self._replacement()
                if job is None:
                    await asyncio.wait((coming, worker.line), return_when=asyncio.FIRST_COMPLETED)
                    if worker.line.done():  # nothing was asked, so this is its end
                        worker.gone = True
                        continue
                    job = coming.result()
                    coming = asyncio.create_task(self._jobs.get())
                if not await self._work(worker, job):
                    job = None
        finally:
            coming.cancel()

    async def _work(self, worker: "_Worker", job: "_Job") -> bool:
        """Does the job, whoever still waits for it; says whether it needs another worker and another try."""
        if job.done.done():
            return False
        job.begun.set()
        job.tries += 1
        try:
            with _file_of(job.sample) as descriptor, contextlib.suppress(ConnectionError):
                worker.ask(descriptor)  # its end, if it has just died, is heard below
        except OSError as failure:  # no descriptor or no memory left, here
            log.error("sample not handed over", problem=failure.strerror)
            job.fail(InspectionUnavailable())
            return False
        await asyncio.wait((worker.line,), timeout=self._wall_seconds)
        if not worker.line.done():
            job.fail(SampleUnreadable("takes too long to decode"))
            worker.gone = True
            return False
        reply = _reply(worker.heard())
        if reply is None:
            worker.gone = True
            if await self._stop(worker) == -signal.SIGXCPU:
                job.fail(SampleUnreadable("takes too long to decode"))
            elif job.tries > 1:
                job.fail(SampleUnreadable("cannot be decoded"))
            return not job.done.done()
        if reply.finding is None:
            job.fail(SampleUnreadable(reply.fault))
        else:
            job.succeed(reply.finding)
        return False

    async def _start(self) -> "_Worker":
        try:
            worker = _Worker(self._arguments)
        except OSError as failure:
            raise InspectionUnavailable(f"No inspection worker can start: {failure.strerror}") from failure
        self._alive.add(worker)
        await asyncio.wait((worker.line,), timeout=START_SECONDS)
        if not worker.line.done() or _reply(worker.heard()) is None:
            status = await self._stop(worker)
            raise InspectionUnavailable(f"An inspection worker did not start (exit status {status})")
        return worker

    async def _replacement(self) -> "_Worker":
        pause = 0.1
        while True:
            try:
                return await self._start()
            except InspectionUnavailable as failure:
                log.error("no inspection worker", problem=str(failure))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _stop(self, worker: "_Worker") -> int:
        status = await worker.stop()
        self._alive.discard(worker)
        return status

    async def _stop_all(self) -> None:
        await asyncio.gather(*map(self._stop, tuple(self._alive)))


class _Job:
    """A sample somebody waits to hear about, for as long as they do."""

    def __init__(self, sample: bytes) -> None:
        self.sample = sample
        self.tries = 0
        self.begun = asyncio.Event()
        self.done: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()

    def succeed(self, finding: Finding) -> None:
        if not self.done.done():
            self.done.set_result(finding)

    def fail(self, failure: Exception) -> None:
        self.begun.set()
        if not self.done.done():
            self.done.set_exception(failure)

    def abandon(self) -> None:
        """Lets the sample go; the job may stay in the queue for a while."""
        self.sample = b""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # nobody may be left to hear it, which asyncio would complain about


class _Worker:
    """One process and our end of the socket to it. `line` is done when it said something, or ended."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._said = b""
        self.gone = False
        self.line: asyncio.Future[bytes] = self._loop.create_future()
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                # Not asyncio's or uvloop's: this one runs none of gRPC's fork handlers. In the loop's own
                # thread: the worker dies with the thread that started it.
                self._process = subprocess.Popen(  # noqa: S603 - all of it is ours
                    [sys.executable, "-P", "-m", "cloner.inspection", str(theirs.fileno()), *arguments],
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError:
                self._socket.close()
                raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, descriptor: int) -> None:
        """Hands over a sample. One byte, to a worker that waits for it: it never blocks."""
        socket.send_fds(self._socket, [b"?"], [descriptor])

    def heard(self) -> bytes:
        """What it said; empty if it ended. From now on `line` is about the next."""
        line = self.line.result()
        self.line = self._loop.create_future()
        if self.gone:
            self.line.set_result(b"")
        return line

    async def stop(self) -> int:
        """Kills it unless it is dead, and returns its exit status; may be called again."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self.gone = True
        self._process.kill()
        # Giving back a gigabyte takes the kernel a moment, in which a wait would hold up the loop.
        return await asyncio.to_thread(self._process.wait)

    def _readable(self) -> None:
        try:
            said = self._socket.recv(LONGEST_REPLY)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self._said += said
        if not said or len(self._said) > LONGEST_REPLY:
            self._loop.remove_reader(self._socket)
            self.gone = True
            self._said = b"\n"
        line, newline, rest = self._said.partition(b"\n")
        if newline and not self.line.done():
            self._said = rest
            self.line.set_result(line)


def _reply(line: bytes) -> Reply | None:
    """What a worker says, or None if it ended or talks nonsense."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError:
        return None


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    # One thread: numpy reserves 40 MB of addresses for each it might need.
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}


@contextlib.contextmanager
def _file_of(sample: bytes) -> Iterator[int]:
    """A nameless file with the sample in it. Written for 10 MB in 2 ms; as a pickle it would take 28."""
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            descriptor = os.memfd_create("sample")
            stack.callback(os.close, descriptor)
        else:
            descriptor = stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        written = 0
        while written < len(sample):
            written += os.pwrite(descriptor, memoryview(sample)[written:], written)
        yield descriptor
