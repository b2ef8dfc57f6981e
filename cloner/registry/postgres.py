"""The registry in Postgres: a few threads, each with a connection while it is at a transaction.

Nothing outlives a transaction: no statement is prepared, and settings and locks end with it. So a pooler that
gives each transaction another connection may stand between.

The pool of psycopg is not used: it connects in the background, so that whoever waits learns by a time-out
alone that the server refuses, and a connection that hangs in a transaction is left to whoever has it.
"""

import asyncio
import contextlib
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import psycopg
import structlog
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PollingStatus
from psycopg.pq.abc import PGcancelConn

from cloner.registry.server_problem import is_bug, server_problem
from cloner.registry.statement import Statement
from cloner.registry.store import Job, Store
from cloner.registry.transaction import Lock, RegistryUnavailable, Row, checked

__all__ = ["PostgresStore", "PostgresTransaction", "connected"]

log = structlog.get_logger()

CONNECTIONS = 10
# Of these at most so many for the calls at one agent: one is at work, the next one waits for its lock.
AT_ONE_AGENT = 2
# Beside these: for what goes through many rows while no call waits for it.
LOOKING_THROUGH = 2
# A transaction that takes longer is given up, by the server, and a moment later by us. What only reads is no
# transaction, so the server is told by us that nobody waits any more.
SERVER_SECONDS = 9
LONGEST_SECONDS = 10.0
# How often a transaction that was in conflict with another is run anew.
ATTEMPTS = 8
WATCH_SECONDS = 1.0
# Whoever finds none free waits so long before making another. Most transactions are over sooner; with 10 ms,
# four at once went on sharing one connection, at half of their rate.
WAIT_SECONDS = 0.002
# If Postgres gives no more connections, it is not asked for one for so long: those that there are go round.
REFUSED_SECONDS = 5.0
# A connection that nobody needed for so long is closed, as others may be waiting for it. One is kept.
IDLE_SECONDS = 60.0
CANCEL_SECONDS = 5.0
UNDER_WAY = (PollingStatus.READING, PollingStatus.WRITING)
# Defaults, which the URL may override.
DEFAULTS: dict[str, str | int] = {
    "application_name": "precall",
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# One message to the server. The time limits also end the locks of a client that is suspended within a
# transaction.
BEGIN = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '{SERVER_SECONDS}s';"
    f" SET LOCAL idle_in_transaction_session_timeout = '{SERVER_SECONDS}s'"
).encode()
LOCK = b"SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, %(kind)s))"
# A conflict with another transaction, which is over by now.
MET = (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation)
# The server that we are connected to may not write any more; another one may by now.
DEMOTED = errors.ReadOnlySqlTransaction

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


class NoneFree(psycopg.OperationalError):
    """Postgres gives no more connections, and of those that there are none became free in time."""


class PostgresTransaction:
    """A transaction on a Postgres connection."""

    def __init__(self, connection: Connection) -> None:
        self._cursor = connection.cursor()

    def lock(self, kind: Lock, name: str) -> None:
        self._cursor.execute(LOCK, checked({"name": name, "kind": kind}))

    def one(self, statement: Statement, /, **values: object) -> Row | None:
        return self._cursor.execute(statement.postgres, checked(values)).fetchone()

    def all(self, statement: Statement, /, **values: object) -> list[Row]:
        return self._cursor.execute(statement.postgres, checked(values)).fetchall()

    def run(self, statement: Statement, /, **values: object) -> int:
        return self._cursor.execute(statement.postgres, checked(values)).rowcount


class PostgresStore(Store):
    """A registry in a database that several machines may share.

    If a connection proves dead before anything was committed, it is replaced by a new one, once. A
    transaction that was in conflict with another is run anew, a bounded number of times. `first` is a
    connection to begin with, which is the store's from then on. If Postgres gives no more connections, those
    that there are go round, in the order of who came.
    """

    postgres = True

    def __init__(
        self,
        url: str,
        first: Connection | None = None,
        *,
        longest_seconds: float = LONGEST_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        refused_seconds: float = REFUSED_SECONDS,
    ) -> None:
        super().__init__()
        self._url = url
        self._longest_seconds = longest_seconds
        self._idle_seconds = idle_seconds
        self._refused_seconds = refused_seconds
        self._watch_seconds = min(WATCH_SECONDS, idle_seconds)
        self._threads = ThreadPoolExecutor(CONNECTIONS, "registry")
        # The places at an agent, for as long as somebody has one or waits for one.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._looking = ThreadPoolExecutor(LOOKING_THROUGH, "registry-look")
        # With the time when it was given back. The connection that was used last is taken first, so that
        # those that nobody needs stay idle.
        self._free = [] if first is None else [(first, time.monotonic())]
        self._running: dict[Connection, float] = {}
        self._cut: set[Connection] = set()
        # How many there are, or are being made.
        self._open = len(self._free)
        self._lock = threading.Lock()
        self._becomes_free = threading.Condition(self._lock)
        # Who waits because there are no more to be had, and until when that is believed.
        self._queue: deque[object] = deque()
        self._refused_until = 0.0
        self._watch: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        for threads in (self._threads, self._looking):
            await asyncio.to_thread(threads.shutdown)
        if self._watch is not None:
            self._watch.cancel()
        while self._free:
            self._free.pop()[0].close()

    async def _write(self, job: Job) -> Any:
        return await self._in_thread(self._threads, job, begin=True)

    async def _write_at(self, agent_id: str, job: Job) -> Any:
        places = self._places.get(agent_id)
        if places is None:
            places = self._places[agent_id] = asyncio.Semaphore(AT_ONE_AGENT)
        await places.acquire()
        return await self._in_thread(self._threads, job, begin=True, over=places.release)

    async def _read(self, job: Job) -> Any:
        # Each statement sees what was committed before it, within a transaction and without.
        return await self._in_thread(self._threads, job, begin=False)

    async def _look_through(self, job: Job) -> Any:
        return await self._in_thread(self._looking, job, begin=False)

    async def _in_thread(
        self,
        threads: ThreadPoolExecutor,
        job: Job,
        *,
        begin: bool,
        over: Callable[[], None] | None = None,
    ) -> Any:
        """What the job returns. Calls `over` when no thread has it any more, whoever still waits."""
        loop = asyncio.get_running_loop()
        if self._watch is None:
            self._watch = loop.call_later(self._watch_seconds, self._watched)
        try:
            running = threads.submit(self._carried_out, job, begin)
        except RuntimeError as failure:  # the store is closed
            if over is not None:
                over()
            raise RegistryUnavailable from failure
        if over is not None:
            running.add_done_callback(lambda _: loop.call_soon_threadsafe(over))
        future = asyncio.wrap_future(running)
        del running
        try:
            return await future
        finally:
            # A failure refers to this call, and the future to the failure: such a cycle would keep a sample.
            del future

    def _carried_out(self, job: Job, begin: bool) -> Any:  # noqa: FBT001 - from one place only
        """What the job returns. Runs in a thread."""
        met = 0
        reconnected = False
        while True:
            committing = False
            connection: Connection | None = None
            try:
                connection = self._taken()
                if begin:
                    connection.execute(BEGIN)
                outcome = job(PostgresTransaction(connection))
                committing = True
                if begin:
                    connection.execute(b"COMMIT")
            except psycopg.Error as failure:
                usable, cut = self._given_back(connection, keep=not isinstance(failure, DEMOTED))
                if isinstance(failure, MET) and met < ATTEMPTS:
                    met += 1
                    time.sleep(random.uniform(0, 0.01 * met))  # noqa: S311 - so that not both come back at once
                    continue
                nothing_done = connection is not None and not (committing and begin)
                if nothing_done and not usable and not cut and not reconnected:
                    reconnected = True
                    self._drop_free()
                    continue
                if type(failure) is psycopg.ProgrammingError or is_bug(failure.sqlstate or ""):
                    raise
                # The text may hold values and addresses.
                cause = failure.sqlstate or server_problem(failure)
                log.warning("registry not available", reason=type(failure).__name__, cause=cause)
                raise RegistryUnavailable from failure
            except BaseException:
                self._given_back(connection, keep=True)
                raise
            self._given_back(connection, keep=True)
            return outcome

    def _taken(self) -> Connection:
        """A connection that nobody else has until it is given back."""
        try:
            # Who waits in the queue comes first.
            connection = self._awaited() if self._queue else self._free.pop()[0]
        except IndexError:
            connection = self._awaited()
        with self._lock:
            self._running[connection] = time.monotonic() + self._longest_seconds
        return connection

    def _awaited(self) -> Connection:
        """A connection that becomes free in a moment, a new one or, if none is to be had, the next one."""
        until = time.monotonic() + self._longest_seconds
        with self._becomes_free:
            if self._open and self._refused_until > time.monotonic():
                if (freed := self._in_turn(until)) is not None:
                    return freed
                if self._open:
                    raise NoneFree("too many connections")
            elif self._queue:
                # Whoever comes now finds out whether there are more again; the others wait on meanwhile.
                self._refused_until = time.monotonic() + self._refused_seconds
            elif self._open and self._becomes_free.wait_for(lambda: self._free, WAIT_SECONDS):
                with contextlib.suppress(IndexError):  # somebody else was faster
                    return self._free.pop()[0]
            self._open += 1
        try:
            made = connected(self._url)
        except BaseException as failure:
            with self._becomes_free:
                self._open -= 1
                self._becomes_free.notify_all()
                # Whatever the server says: while others are of use, they are for everybody. One that says
                # nothing has taken the time that there was.
                if isinstance(failure, psycopg.Error) and not isinstance(failure, errors.ConnectionTimeout):
                    self._refused_until = time.monotonic() + self._refused_seconds
                    if (freed := self._in_turn(until)) is not None:
                        return freed
            raise
        self._refused_until = 0.0
        return made

    def _in_turn(self, until: float) -> Connection | None:
        """The next connection that is free once it is our turn; None if there are none, or not in time."""
        mine = object()
        self._queue.append(mine)
        try:
            while self._open and (left := until - time.monotonic()) > 0:
                if self._queue[0] is mine:
                    with contextlib.suppress(IndexError):  # none is free yet
                        return self._free.pop()[0]
                self._becomes_free.wait(left)
            return None
        finally:
            self._queue.remove(mine)
            self._becomes_free.notify_all()

    def _given_back(self, connection: Connection | None, *, keep: bool) -> tuple[bool, bool]:
        """Whether the connection can be used again, and whether it was cut off for taking too long."""
        if connection is None:
            return False, False
        if (
            not connection.closed
            and connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE
        ):
            with contextlib.suppress(psycopg.Error):
                connection.execute(b"ROLLBACK")
        with self._lock:
            del self._running[connection]
            cut = connection in self._cut
            self._cut.discard(connection)
            usable = keep and not cut and not connection.closed
            if usable:
                self._free.append((connection, time.monotonic()))
            else:
                connection.close()
                self._open -= 1
            # In a queue only the first one takes it, and all have to look; otherwise anybody does.
            self._becomes_free.notify(CONNECTIONS + LOOKING_THROUGH if self._queue else 1)
        return usable, cut

    def _drop_free(self) -> None:
        """Closes the connections that nobody has. Whatever ended one has most likely ended them all."""
        with self._lock, contextlib.suppress(IndexError):  # none is left
            while True:
                self._free.pop()[0].close()
                self._open -= 1
                self._becomes_free.notify_all()

    def _watched(self) -> None:
        """Cuts off connections that no longer answer, so that no thread waits for ever.

        It also closes those that nobody has needed for a while.
        """
        self._watch = None
        now = time.monotonic()
        cancelling: list[PGcancelConn] = []
        with self._lock:
            for connection, ends in self._running.items():
                if ends < now and connection not in self._cut:
                    self._cut.add(connection)
                    with contextlib.suppress(psycopg.Error):
                        cancelling.append(connection.pgconn.cancel_conn())
                    with contextlib.suppress(OSError, psycopg.Error):
                        _cut_off(connection)
            with contextlib.suppress(IndexError):  # one was taken meanwhile
                while len(self._free) > 1 and self._free[0][1] < now - self._idle_seconds:
                    self._free.pop(0)[0].close()
                    self._open -= 1
            # One that was just taken is not among those that are running yet.
            at_rest = self._open == len(self._free) <= 1
        if cancelling:
            # Nobody waits for it, nor does the end of this process.
            threading.Thread(target=_cancel, args=(cancelling,), name="cancelling", daemon=True).start()
        if not at_rest:
            self._watch = asyncio.get_running_loop().call_later(self._watch_seconds, self._watched)


def connected(url: str) -> Connection:
    """A connection that begins no transaction by itself and prepares nothing. Raises psycopg.Error."""
    told = conninfo_to_dict(url)
    defaults = {name: value for name, value in DEFAULTS.items() if name not in told}
    # Its type knows parameters of its own alone, and not those of the server's library.
    return psycopg.connect(url, autocommit=True, prepare_threshold=None, **defaults)  # type: ignore[arg-type]


def _cut_off(connection: Connection) -> None:
    """Ends the connection while a thread waits for it; the next step of that thread then fails."""
    with socket.socket(fileno=os.dup(connection.fileno())) as its:
        its.shutdown(socket.SHUT_RDWR)


def _cancel(cancelling: list[PGcancelConn]) -> None:
    """Has the server end statements, which it would not by itself. Blocks the thread for some seconds.

    Polls, because `PGcancelConn.blocking` lets no other thread run meanwhile.
    """
    for each in cancelling:
        until = time.monotonic() + CANCEL_SECONDS
        with contextlib.suppress(psycopg.Error, OSError):
            each.start()
            wanted = PollingStatus.WRITING  # what libpq has to be waited for with before the first look
            while wanted in UNDER_WAY:
                ready = selectors.EVENT_READ if wanted == PollingStatus.READING else selectors.EVENT_WRITE
                with selectors.DefaultSelector() as selector:
                    selector.register(each.socket, ready)
                    if not selector.select(until - time.monotonic()):
                        break
                wanted = PollingStatus(each.poll())
        each.finish()
