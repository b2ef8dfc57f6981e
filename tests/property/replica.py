"""One cloner in a process of its own, which is started fast and killed for real.

A forkserver has imported everything beforehand, so a replica serves within half a second, and its
clock is one that the test moves.
"""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from cloner.server import serving
from cloner.settings import Settings
from environment import Secret
from telemetry import logs
from tests.kit.cloning import TICK_SECONDS

__all__ = ["SECRETS", "Clock", "Replica"]

PR_SET_PDEATHSIG = 1
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
SECRETS = {"elevenlabs_api_key": "key-of-the-emulator", "caller_hash_key": "key-of-the-hashes"}


class Clock:
    """The time of everybody in one test: the real one, and what was jumped so far."""

    def __init__(self) -> None:
        self.offset: Any = CONTEXT.Value("d", 0.0, lock=False)

    def __call__(self) -> float:
        return time.time() + self.offset.value

    def jump(self, seconds: float) -> None:
        """Moves the time of every process at once."""
        self.offset.value += seconds


class Replica:
    """A cloner process."""

    def __init__(self, clock: Clock, log: str, settings: dict[str, Any]) -> None:
        self._answers, told = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_serve, args=(clock, told, log, settings), daemon=True)
        self._process.start()
        told.close()

    async def port(self) -> int:
        """Where it listens, once it does."""
        async with asyncio.timeout(30):
            while not self._answers.poll():
                assert self._process.is_alive(), "a cloner died by itself"
                await asyncio.sleep(0.005)
        return self._answers.recv()

    @property
    def alive(self) -> bool:
        """Whether it was not killed."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL: whatever it was at, it is at no more."""
        self._process.kill()
        self._process.join()
        self._answers.close()


def _serve(clock: Clock, told: Connection, log: str, settings: dict[str, Any]) -> None:
    # The forkserver ends with the tests, however these end; a replica goes with it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    logs.configure("cloner", level="INFO", form="json")
    asyncio.run(_listen(clock, told, settings))


async def _listen(clock: Clock, told: Connection, settings: dict[str, Any]) -> None:
    secrets = {name: Secret(value) for name, value in SECRETS.items()}
    chosen = Settings(**secrets, **settings)
    async with serving(
        chosen, TracerProvider(shutdown_on_exit=False), now=clock, tick_seconds=TICK_SECONDS
    ) as port:
        told.send(port)
        await asyncio.Event().wait()
