"""Finds out what a voice sample is, by decoding all of it in a worker process.

                             at fault                 what to do
    SampleUnreadable         the sample               refuse it
    InspectionUnavailable    nobody: too much work    try again later

This process never parses a sample. A worker (`cloner.audio.inspection`) does: the worst sample can only use
up the time and memory of the worker. The sample is then refused, and the worker is replaced.
"""

import asyncio
import contextlib
import math
import signal
from collections import deque
from types import TracebackType
from typing import Self

import structlog

from cloner.audio.reply import Finding
from cloner.audio.worker import Worker

__all__ = ["InspectionUnavailable", "Inspector", "SampleUnreadable"]

log = structlog.get_logger()

MOST_CPU_SECONDS = 3_600
# Enough for a worker to import what it needs on a machine that is busy starting. If it were given up too
# early, starting another one would make the machine busier still.
START_SECONDS = 60.0
LONGEST_PAUSE = 5.0  # between two tries to start one
PATIENCE_SECONDS = 5.0  # for a worker to finish a sample that nobody waits for any more


class SampleUnreadable(Exception):
    """Not a recording that can be decoded, or not within the limits. The text can be shown."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"Voice sample unreadable: it {problem}")


class InspectionUnavailable(Exception):
    """No worker was free in time, or none could be started. Nothing is wrong with the sample."""

    def __init__(self, message: str = "Too many voice samples at once, try again later") -> None:
        super().__init__(message)


class Inspector:
    """Owns the worker processes; inspections run side by side in them, the others wait their turn.

    `async with` returns once every worker is ready, or raises InspectionUnavailable. Enter it before
    a gRPC server is made: a worker holds none of its parent's sockets, but starting one beside a busy
    server takes longer. A worker that dies is replaced; none outlives this process, however it ends.

    A sample that costs more than `cpu_seconds` of processor time or `memory_mb` of addresses is refused. How
    long that takes depends on the load of the machine, which is not the sample's fault: a sample that waits
    longer than `wall_seconds` for a worker, or for its answer, fails with InspectionUnavailable. So does one
    whose second worker, too, was killed from outside, as the kernel does where memory is short. At most
    `waiting` samples wait for their turn. Once `enough_sound` seconds are sound, no more is measured.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        wall_seconds: float = 60.0,
        cpu_seconds: int | None = None,
        memory_mb: int = 1024,
        max_seconds: float,
        enough_sound: float = math.inf,
        waiting: int = 64,
    ) -> None:
        self._workers = workers
        self._wall_seconds = wall_seconds
        self._capacity = workers + waiting
        cpu_seconds = enough_cpu_seconds(max_seconds) if cpu_seconds is None else cpu_seconds
        self._arguments = (str(max_seconds), str(enough_sound), str(cpu_seconds), str(memory_mb))
        self._unfinished: set[_Job] = set()
        # Those of them that no worker has taken, in the order in which they came: first those of calls.
        self._calls: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        # Those of no call that workers are at: while there are several workers, one is kept for calls.
        self._begun_others: set[_Job] = set()
        self._came = asyncio.Event()
        self._alive: set[Worker] = set()
        self._tending: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> frozenset[int]:
        """The ids of the worker processes."""
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

    async def inspect(self, sample: bytes, *, call: bool = True) -> Finding:
        """Finds out what the sample is. If it is longer than `max_seconds`, its duration is not measured.

        A sample that no `call` waits for lets those that calls wait for go first.

        Raises SampleUnreadable or InspectionUnavailable. May be cancelled at any time.
        """
        if len(self._unfinished) >= self._capacity or not self._tending:
            raise InspectionUnavailable
        job = _Job(sample)
        self._unfinished.add(job)
        waiting = self._calls if call else self._others
        waiting.append(job)
        self._came.set()
        try:
            async with asyncio.timeout(self._wall_seconds):
                await job.begun.wait()
            # One try, and another one in a fresh worker. Each try has its own time-out where it is made.
            async with asyncio.timeout(3 * self._wall_seconds):
                return await job.done
        except TimeoutError:
            raise InspectionUnavailable from None
        finally:
            self._unfinished.discard(job)
            with contextlib.suppress(ValueError):  # a worker has taken it
                waiting.remove(job)
            job.abandon()
            # A failure refers to this call, and its job to the failure: such a cycle would keep the sample.
            del job

    async def _tend(self, worker: Worker) -> None:
        """Gives jobs to a worker, and replaces the worker when it must be."""
        job: _Job | None = None
        while True:
            if worker.gone:
                status = await self._stop(worker)
                if job is not None:
                    # It may be long until there is another worker for its second try.
                    self._begun_others.discard(job)
                    self._came.set()
                log.warning("inspection worker replaced", cause=worker.gone, exit_status=status)
                worker = await self._replacement()
            if job is None:
                job = await self._next(worker)
            if job is None:
                worker.gone = worker.gone or "nonsense"
            elif not await self._work(worker, job):
                self._begun_others.discard(job)
                self._came.set()
                job = None

    async def _next(self, worker: Worker) -> "_Job | None":
        """The job that is next, once there is one; None if the worker ended before that."""
        while not worker.line.done():  # nothing was asked, so a line is its end
            if self._calls:
                return self._calls.popleft()
            if self._others and len(self._begun_others) < max(1, self._workers - 1):
                job = self._others.popleft()
                self._begun_others.add(job)
                return job
            self._came.clear()
            coming = asyncio.create_task(self._came.wait())
            try:
                await asyncio.wait((coming, worker.line), return_when=asyncio.FIRST_COMPLETED)
            finally:
                coming.cancel()
        return None

    async def _work(self, worker: Worker, job: "_Job") -> bool:
        """Does the job, even if nobody waits for it. Returns whether it needs another try in a new worker."""
        if job.done.done():
            return False
        job.begun.set()
        job.tries += 1
        try:
            worker.ask(job.sample)
        except OSError as failure:  # no descriptor or no memory left, here
            log.error("sample not handed over", problem=failure.strerror)
            job.fail(InspectionUnavailable())
            return False
        await self._listen(worker, job)
        if not worker.line.done():
            job.fail(
                InspectionUnavailable("This machine is too busy to look at the voice sample; try again later")
            )
            worker.gone = "no answer in time"
            return False
        reply = worker.heard()
        if reply is None:
            worker.gone = worker.gone or "nonsense"
            if await self._stop(worker) == -signal.SIGXCPU:
                job.fail(SampleUnreadable("takes too much processor time to decode"))
            elif job.tries > 1:
                # No sample sends SIGKILL: the kernel does, where memory is short, or somebody.
                job.fail(
                    InspectionUnavailable("What looks at voice samples was killed here; try again later")
                    if worker.was_killed
                    else SampleUnreadable("cannot be decoded")
                )
            return not job.done.done()
        if reply.worn_out:
            worker.gone = "memory used up"
        if reply.finding is None:
            job.fail(SampleUnreadable(reply.fault))
        else:
            job.succeed(reply.finding)
        return False

    async def _listen(self, worker: Worker, job: "_Job") -> None:
        """Waits for the worker's answer, but not much longer than somebody waits for the job."""
        await asyncio.wait(
            (worker.line, job.done), timeout=self._wall_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if job.done.done() and not worker.line.done():
            # To start a new worker costs more than to finish a usual sample.
            await asyncio.wait((worker.line,), timeout=PATIENCE_SECONDS)

    async def _start(self) -> Worker:
        try:
            worker = Worker(self._arguments)
        except OSError as failure:
            raise InspectionUnavailable(f"No inspection worker can start: {failure.strerror}") from failure
        self._alive.add(worker)
        await asyncio.wait((worker.line,), timeout=START_SECONDS)
        if not worker.line.done() or worker.heard() is None:
            status = await self._stop(worker)
            raise InspectionUnavailable(f"An inspection worker did not start (exit status {status})")
        return worker

    async def _replacement(self) -> Worker:
        pause = 0.1
        while True:
            try:
                return await self._start()
            except InspectionUnavailable as failure:
                log.error("no inspection worker", problem=str(failure))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _stop(self, worker: Worker) -> int:
        status = await worker.stop()
        self._alive.discard(worker)
        return status

    async def _stop_all(self) -> None:
        await asyncio.gather(*map(self._stop, tuple(self._alive)))


class _Job:
    """A sample, and the result for whoever waits for it."""

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
        """Drops the sample; a worker may still be at it."""
        self.sample = b""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # if nobody waits, asyncio must not log it as never retrieved


def enough_cpu_seconds(max_seconds: float) -> int:
    """Several times the processor time of the costliest honest recording of that length.

    Eight channels of Opus, ten minutes long, take 3 to 6 s; nothing that was tried takes longer.
    """
    return min(5 + math.ceil(max_seconds / 20), MOST_CPU_SECONDS)
