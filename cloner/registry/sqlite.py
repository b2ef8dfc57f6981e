"""The registry in a SQLite file: one thread writes, one reads, and one looks through many rows."""

import asyncio
import contextlib
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from cloner.registry.statement import Statement
from cloner.registry.store import Job, Store
from cloner.registry.transaction import Lock, RegistryNotOpened, RegistryUnavailable, Row, checked

__all__ = ["SqliteStore", "SqliteTransaction", "connected", "made_private"]

log = structlog.get_logger()

# How long another process may lock the file.
BUSY_SECONDS = 10.0
# How long SQLite itself waits. Its pauses grow to 100 ms, in which others get ahead, so we try again instead.
BUSY_MS = 50
MOST_AT_ONCE = 200
STATEMENTS = 256
CACHE_KIB = 32_768
# What looks through many rows needs each of them once.
LOOKING_CACHE_KIB = 2_048


class SqliteTransaction:
    """A transaction on a SQLite connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lock(self, kind: Lock, name: str) -> None:
        """Whoever writes is alone."""

    def one(self, statement: Statement, /, **values: object) -> Row | None:
        # A statement is over, and lets others go on, only when all of its rows are read.
        rows = self._connection.execute(statement.sqlite, checked(values)).fetchall()
        return rows[0] if rows else None

    def all(self, statement: Statement, /, **values: object) -> list[Row]:
        return self._connection.execute(statement.sqlite, checked(values)).fetchall()

    def run(self, statement: Statement, /, **values: object) -> int:
        return self._connection.execute(statement.sqlite, checked(values)).rowcount


class SqliteStore(Store):
    """A registry in a file of this machine.

    All writes that wait share one commit. Each has a savepoint, so that its failure undoes nothing else.
    Reads take no lock. A file that is deleted, replaced or emptied is not written to any more.
    """

    postgres = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._missing = False
        with contextlib.ExitStack() as begun:
            self._writing, self._reading, self._looking = (
                begun.enter_context(contextlib.closing(connected(path))) for _ in range(3)
            )
            for reader in (self._reading, self._looking):
                reader.execute("PRAGMA query_only=ON")
                # The writer waits in short turns of its own; a reader leaves the waiting to SQLite.
                reader.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
            self._looking.execute(f"PRAGMA cache_size=-{LOOKING_CACHE_KIB}")
            self._files = self._seen()
            # Nothing failed, so they stay open.
            begun.pop_all()
        self._write_lane = _Lane("registry-write", self._write_all)
        self._read_lane = _Lane("registry-read", partial(self._read_all, self._reading))
        # One at a time, so that each is still waited for when it is begun.
        self._look_lane = _Lane("registry-look", partial(self._read_all, self._looking), at_once=1)

    @property
    def gone(self) -> bool:
        return self._missing

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._write_lane.end()
        self._read_lane.end()
        self._look_lane.end()
        self._looking.close()
        self._reading.close()
        self._writing.close()

    async def _write(self, job: Job) -> object:
        return await self._write_lane.put(job)

    async def _read(self, job: Job) -> object:
        return await self._read_lane.put(job)

    async def _look_through(self, job: Job) -> object:
        return await self._look_lane.put(job)

    def _write_all(self, tasks: "list[_Task]") -> None:
        """Runs all tasks in one transaction of SQLite."""
        connection, transaction = self._writing, SqliteTransaction(self._writing)
        try:
            self._require_file()
            _until_free(lambda: connection.execute("BEGIN IMMEDIATE"))
            for task in tasks:
                if len(tasks) == 1:
                    task.outcome = task.job(transaction)
                else:
                    _run_separately(connection, transaction, task)
            connection.execute("COMMIT")
            # What was committed into a file that was deleted or replaced is lost.
            self._require_file()
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait are told
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            for task in tasks:
                task.failure = task.failure or failure

    def _read_all(self, connection: sqlite3.Connection, tasks: "list[_Task]") -> None:
        """Answers all tasks from one snapshot of the file, taken after the last of them was queued."""
        transaction = SqliteTransaction(connection)
        try:
            self._require_file()
            connection.execute("BEGIN")
            for task in tasks:
                try:
                    task.outcome = task.job(transaction)
                except Exception as failure:  # noqa: BLE001 - as above
                    task.failure = failure
        except Exception as failure:  # noqa: BLE001 - as above
            for task in tasks:
                task.failure = task.failure or failure
        finally:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _seen(self) -> list[tuple[int, int]]:
        """Device and inode of the database and its log; empty if the database was emptied."""
        stats = [os.stat(f"{self._path}{suffix}") for suffix in ("", "-wal")]  # noqa: PTH116 - one call each
        return [(stat.st_dev, stat.st_ino) for stat in stats] if stats[0].st_size else []

    def _require_file(self) -> None:
        """Raises RegistryUnavailable if the file was deleted, replaced or emptied."""
        try:
            missing = self._seen() != self._files
        except OSError:
            missing = True
        if missing != self._missing:
            self._missing = missing
            if missing:
                log.error(
                    "registry file deleted or replaced; no work is taken without it", file=str(self._path)
                )
            else:
                log.info("registry file back in its place", file=str(self._path))
        if missing:
            raise RegistryUnavailable


class _Task:
    """A transaction, what came of it, and the future of whoever waits for it."""

    __slots__ = ("failure", "future", "job", "outcome")

    def __init__(self, job: Job, future: "asyncio.Future[object]") -> None:
        self.job = job
        self.future = future
        self.outcome: object = None
        self.failure: Exception | None = None

    def tell(self) -> None:
        """Answers whoever waits, if somebody still does. Nothing else can be done with the task then."""
        future, failure = self.future, self.failure
        # A failure refers to whoever ran this task and to whoever waits: such a cycle would keep the sample.
        del self.future, self.failure
        if future.done():
            return
        if failure is None:
            future.set_result(self.outcome)
        else:
            future.set_exception(failure)


class _Lane:
    """A thread that runs what is queued, in order, each time all that is there; `at_once` at most."""

    def __init__(
        self, name: str, work: Callable[[list[_Task]], None], *, at_once: int = MOST_AT_ONCE
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._ended = False

    def put(self, job: Job) -> "asyncio.Future[object]":
        """Queues a job and returns its result. Raises RegistryUnavailable."""
        if self._ended:
            raise RegistryUnavailable
        future = asyncio.get_running_loop().create_future()
        self._tasks.put(_Task(job, future))
        return future

    def end(self) -> None:
        """Waits until everything that was queued is done."""
        self._ended = True
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch = [self._tasks.get()]
            while len(batch) < self._at_once:
                try:
                    batch.append(self._tasks.get_nowait())
                except queue.Empty:
                    break
            going_on = None not in batch
            # A job that nobody waits for any more is not begun.
            tasks = [task for task in batch if task is not None and not task.future.cancelled()]
            if tasks:
                self._work(tasks)
                _told(tasks)


def connected(path: Path) -> sqlite3.Connection:
    """A connection that begins no transaction by itself."""
    with contextlib.ExitStack() as begun:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
        )
        begun.callback(connection.close)
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        _until_free(lambda: connection.execute("PRAGMA journal_mode=WAL"))
        # What was committed is on the disk, also after a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        # The first read creates the log beside the file.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        # Nothing failed, so it stays open.
        begun.pop_all()
    return connection


def made_private(path: Path) -> None:
    """Makes the file, created or found, readable for its owner alone.

    SQLite gives its other files the same mode. Raises RegistryNotOpened.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise RegistryNotOpened(f"DATABASE_URL: {path} is not a file")
        finally:
            os.close(file)
        for suffix in ("", "-wal", "-shm"):
            # A file of another owner may be shared on purpose.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                Path(f"{path}{suffix}").chmod(0o600)
    except FileNotFoundError as failure:
        folder = Path(os.path.realpath(path)).parent
        raise RegistryNotOpened(f"DATABASE_URL: the folder {folder} does not exist") from failure
    except OSError as failure:
        raise RegistryNotOpened(
            f"DATABASE_URL: {path} can be neither written nor made ({failure.strerror})"
        ) from failure


def _until_free(step: Callable[[], object]) -> None:
    """Repeats a step while another process locks the file, for BUSY_SECONDS at most."""
    ends = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as failure:
            busy = failure.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > ends:
                raise


def _run_separately(connection: sqlite3.Connection, transaction: SqliteTransaction, task: _Task) -> None:
    """Runs one of several transactions; what it changed is undone if it fails."""
    connection.execute("SAVEPOINT task")
    try:
        task.outcome = task.job(transaction)
    except Exception as failure:  # noqa: BLE001 - told to whoever waits for it
        task.failure = failure
        # A full disk may have ended the transaction of all; then this fails, for all.
        connection.execute("ROLLBACK TO task")
    connection.execute("RELEASE task")


def _is_bug(failure: sqlite3.Error) -> bool:
    """Whether a statement of ours is wrong, so that waiting would not help."""
    if not isinstance(failure, sqlite3.OperationalError):
        # DatabaseError itself stands for a file that is damaged, or no database at all.
        return type(failure) is not sqlite3.DatabaseError
    # Somebody may have taken the tables away.
    refused = getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    return refused and not str(failure).startswith("no such table")


def _told(tasks: list[_Task]) -> None:
    """Hands over all results at once: waking a loop costs more than handing over one result."""
    for task in tasks:
        if isinstance(task.failure, sqlite3.Error) and not _is_bug(task.failure):
            # The text of the error may hold values; its name says enough.
            reason = getattr(task.failure, "sqlite_errorname", type(task.failure).__name__)
            log.warning("registry not available", reason=reason)
            task.failure = RegistryUnavailable()
    loops = {task.future.get_loop() for task in tasks}
    for loop in loops:
        theirs = [task for task in tasks if task.future.get_loop() is loop]
        # On a loop that is closed nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, theirs)


def _tell(tasks: list[_Task]) -> None:
    for task in tasks:
        task.tell()
