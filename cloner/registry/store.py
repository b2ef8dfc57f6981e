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

# Names of OpenTelemetry's conventions for databases. What is asked is a function of ours: its name says more
# than its statements would.
DB_SYSTEM, DB_OPERATION = "db.system.name", "db.operation.name"

# Whoever calls waits until its own deadline; this bounds the memory of those who wait.
MOST_WAITING = 10_000
# A database that nobody could write to for so long, while so many wanted to, is not only busy.
RECENT_SECONDS = 1.0


class Store(ABC):
    """A database that is up to date. `name` and `created_at` are those of the deployment.

    A transaction is a function whose first argument is the Transaction; the others are given behind it.
    It is committed before it is answered. Whoever stops waiting harms nothing: the transaction is
    carried out to its end, or never begun.
    """

    postgres: ClassVar[bool]
    """Whether several processes on several machines may share it."""

    def __init__(self) -> None:
        self.name = ""
        self.created_at = 0.0
        self.measures = UNMEASURED
        self._waiting = 0
        # When something was first asked that nothing was answered since, and when it last was answered.
        self._asked: dict[str, float] = {}
        self._heard = {"write": time.monotonic()}

    @property
    def gone(self) -> bool:
        """Whether the database is not there any more, and will not be before this process is started anew."""
        return False

    @property
    def silent_seconds(self) -> float:
        """For how long it has answered nothing of what it was asked to read, or to write; 0 if it has."""
        now = time.monotonic()
        return max((now - asked for asked in self._asked.values()), default=0.0)

    @property
    def write_seconds(self) -> float:
        """How long ago it last carried out a transaction that may change something."""
        return time.monotonic() - self._heard["write"]

    async def write(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """What the transaction returns, once it is committed. Raises RegistryUnavailable and RegistryBusy."""
        job = self._write(lambda transaction: work(transaction, *args, **named))
        return await self._waited("write", _named(work), job)

    async def read(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """What a transaction that changes nothing returns; it waits for no lock.

        It sees whatever was committed before it was asked. Raises RegistryUnavailable and RegistryBusy.
        """
        job = self._read(lambda transaction: work(transaction, *args, **named))
        return await self._waited("read", _named(work), job)

    @abstractmethod
    async def close(self) -> None:
        """Waits for what is running, and closes every connection."""

    @abstractmethod
    async def _write(self, job: Job) -> Any: ...

    @abstractmethod
    async def _read(self, job: Job) -> Any: ...

    async def _waited(self, kind: str, name: str, work: Coroutine[Any, Any, T]) -> T:
        if self._waiting >= MOST_WAITING:
            work.close()
            raise self.missed(asyncio.get_running_loop().time() - RECENT_SECONDS)
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
                self._heard[kind] = time.monotonic()

    def missed(self, since: float) -> Exception:
        """Why somebody who asked at that time, on the loop's clock, was not answered in time.

        A database that others have written to meanwhile can be reached.
        """
        if self.write_seconds < asyncio.get_running_loop().time() - since:
            return RegistryBusy()
        log.warning("registry did not answer in time")
        return RegistryUnavailable()


def _named(work: Callable[..., object]) -> str:
    """The name of a transaction, such as `calls.begin`."""
    return f"{work.__module__.rpartition('.')[2]}.{work.__name__}"
