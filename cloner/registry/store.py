"""Runs transactions: plain functions, in threads that own the connections, for whoever awaits them."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeAlias, TypeVar

import structlog

from cloner.measures import UNMEASURED
from cloner.registry.transaction import RegistryBusy, RegistryUnavailable, Transaction
from telemetry.parts import part

__all__ = ["Job", "Store"]

P = ParamSpec("P")
T = TypeVar("T")

Job: TypeAlias = Callable[[Transaction], Any]

log = structlog.get_logger()

# The names of OpenTelemetry's conventions for databases. The operation is the name of our function, which
# says more than its statements would.
DB_SYSTEM, DB_OPERATION = "db.system.name", "db.operation.name"

# Callers wait until their own deadlines; this bounds how many wait.
MOST_WAITING = 10_000
# If nothing was answered for so long, the database counts as unreachable and not only as busy.
RECENT_SECONDS = 1.0


class Store(ABC):
    """A database that is up to date. `name` and `created_at` are those of the deployment.

    A transaction is a function whose first argument is the Transaction; its other arguments are passed along
    with it. It is committed before its result is returned. A caller may stop waiting: the transaction is then
    carried out to its end, or never begun.
    """

    postgres: ClassVar[bool]
    """Whether several processes on several machines may share it."""

    def __init__(self) -> None:
        self.name = ""
        self.created_at = 0.0
        self.measures = UNMEASURED
        self._waiting = 0
        # Since when reads, and writes, were asked for without an answer, and when the last of them had one.
        self._asked: dict[str, float] = {}
        self._written_at = self._read_at = time.monotonic()

    @property
    def gone(self) -> bool:
        """Whether the database is lost to this process, which must be started anew."""
        return False

    @property
    def silent_seconds(self) -> float:
        """For how long reads, or writes, have been asked for and none was answered; 0 after an answer."""
        now = time.monotonic()
        return max((now - asked for asked in self._asked.values()), default=0.0)

    @property
    def write_seconds(self) -> float:
        """How many seconds ago the last transaction that may change something was carried out."""
        return time.monotonic() - self._written_at

    async def write(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """What the transaction returns, once it is committed. Raises RegistryUnavailable and RegistryBusy."""
        job = self._write(lambda transaction: work(transaction, *args, **named))
        return await self._waited("write", _name_of(work), job)

    async def write_at(
        self,
        agent_id: str,
        work: Callable[Concatenate[Transaction, P], T],
        /,
        *args: P.args,
        **named: P.kwargs,
    ) -> T:
        """As `write`, for a transaction that locks the calls at an agent.

        Those that wait for one agent leave room for the others.
        """
        job = self._write_at(agent_id, lambda transaction: work(transaction, *args, **named))
        return await self._waited("write", _name_of(work), job)

    async def read(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """What a transaction that changes nothing returns; it waits for no lock.

        It sees everything that was committed before it was called. Raises RegistryUnavailable and
        RegistryBusy.
        """
        job = self._read(lambda transaction: work(transaction, *args, **named))
        return await self._waited("read", _name_of(work), job)

    async def look_through(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """As `read`, for what may go through many rows and no call waits for, such as a page of a list.

        Few of these are carried out at once, however many ask, so that calls find the database free. Those
        whose callers no longer wait are never begun.
        """
        job = self._look_through(lambda transaction: work(transaction, *args, **named))
        return await self._waited("read", _name_of(work), job)

    @abstractmethod
    async def close(self) -> None:
        """Waits for what is running, and closes every connection."""

    @abstractmethod
    async def _write(self, job: Job) -> Any: ...

    async def _write_at(self, agent_id: str, job: Job) -> Any:  # noqa: ARG002 - where only one writes, nobody waits
        return await self._write(job)

    @abstractmethod
    async def _read(self, job: Job) -> Any: ...

    @abstractmethod
    async def _look_through(self, job: Job) -> Any: ...

    async def _waited(self, kind: str, name: str, work: Coroutine[Any, Any, T]) -> T:
        if self._waiting >= MOST_WAITING:
            work.close()
            raise self.late_failure(asyncio.get_running_loop().time() - RECENT_SECONDS)
        self._waiting += 1
        self._asked.setdefault(kind, time.monotonic())
        answered = True
        began = time.perf_counter()
        try:
            system = "postgresql" if self.postgres else "sqlite"
            with part("registry", {DB_SYSTEM: system, DB_OPERATION: name}, work=name):
                return await work
        except (RegistryUnavailable, asyncio.CancelledError):
            answered = False
            raise
        finally:
            self._waiting -= 1
            self.measures.transaction_ended(name, seconds=time.perf_counter() - began)
            if answered:
                self._asked.pop(kind, None)
                if kind == "write":
                    self._written_at = time.monotonic()
                else:
                    self._read_at = time.monotonic()

    def late_failure(self, since: float) -> Exception:
        """The failure of a caller that asked at `since`, on the loop's clock, and got no answer in time.

        If another write was committed meanwhile, the database can be reached and is only busy. Where no write
        waits, a read that was answered says so, too; one that can only be read is out of reach.
        """
        answered_at = self._written_at if "write" in self._asked else max(self._written_at, self._read_at)
        if time.monotonic() - answered_at < asyncio.get_running_loop().time() - since:
            return RegistryBusy()
        log.warning("registry did not answer in time")
        return RegistryUnavailable()


def _name_of(work: Callable[..., object]) -> str:
    """The name of a transaction, such as `calls.begin`."""
    return f"{work.__module__.rpartition('.')[2]}.{work.__name__}"
