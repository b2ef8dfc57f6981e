"""What is measured, and what it is measured with: processes of their own on the loopback."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from benchmarks.deliveries import SECRET, TOKEN
from demo.processes import ProcessFailed, running, started

__all__ = ["Subject", "Usage", "peer", "provider", "system", "traced"]

PEER = Path(__file__).parent / "peer"
PEER_WORKERS = 2
MEBIBYTE = 1_048_576
# What Linux makes of this: the most that a process has held is counted anew.
FORGET_PEAK = "5"


class Usage(NamedTuple):
    """What the processes of a subject used, by the part that they play."""

    cpu_ms: dict[str, float]
    peak_mb: dict[str, float]


class Subject:
    """One system that takes deliveries, as its processes.

    The worker that looks at samples shows root alone, and no other process of its user, how many files it has
    open and what it shares with others. For anybody else neither is counted.
    """

    def __init__(self, name: str, url: str, parts: dict[str, list[psutil.Process]]) -> None:
        self.name = name
        self.url = url
        self.parts = parts
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """From here on is counted."""
        for process in self._processes():
            with suppress(PermissionError):  # then its peak counts from its start
                Path(f"/proc/{process.pid}/clear_refs").write_text(FORGET_PEAK)
        self._before = self._cpu()

    def used(self) -> Usage:
        """CPU-ms and peak of memory since `begin`."""
        after = self._cpu()
        return Usage(
            {part: after[part] - self._before[part] for part in self.parts},
            {part: sum(map(_peak, each)) for part, each in self.parts.items()},
        )

    def resident_mb(self) -> float:
        """The memory that all of them hold now."""
        return sum(process.memory_info().rss for process in self._processes()) / MEBIBYTE

    def proportional_mb(self) -> float:
        """The memory that all of them hold now, what they share counted once."""
        return sum(map(_proportional, self._processes()))

    def descriptors(self) -> int:
        """The files and sockets that all of them have open now."""
        open_now = 0
        for process in self._processes():
            with suppress(psutil.AccessDenied):
                open_now += process.num_fds()
        return open_now

    def _processes(self) -> list[psutil.Process]:
        return [process for each in self.parts.values() for process in each]

    def _cpu(self) -> dict[str, float]:
        return {part: sum(map(_cpu_ms, each)) for part, each in self.parts.items()}


@contextmanager
def provider() -> Iterator[str]:
    """Runs the stand-in for ElevenLabs, and yields its address."""
    with running("benchmarks.provider", {}) as (_, url):
        yield url


def traced(collector: str) -> dict[str, str]:
    """The settings with which everything is traced, and sent there."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_TRACES_SAMPLER": "always_on",
        # What is compared with has none.
        "OTEL_METRICS_EXPORTER": "none",
    }


@contextmanager
def system(
    elevenlabs: str, *, name: str = "Precall", database: str | None = None, **settings: str
) -> Iterator[Subject]:
    """Runs gateway and cloner, with a SQLite file of their own unless a database is given."""
    # Nobody balances who would have to hear that they end.
    quiet = {"LOG_LEVEL": "WARNING", "DRAIN_SECONDS": "0", **settings}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="precall-bench-"))
        cloner, target = stack.enter_context(
            running("cloner", {
                "CLONER_PORT": "0", "DATABASE_URL": database or f"sqlite:///{folder}/precall.sqlite3",
                "CALLER_HASH_KEY": "not-a-secret-at-all-not-at-all-0",
                "ELEVENLABS_BASE_URL": elevenlabs, "ELEVENLABS_API_KEY": "k",
                # The stand-in lists no voices.
                "RECONCILE_SECONDS": "1000000",
                **quiet,
            })
        )  # fmt: skip
        gateway, url = stack.enter_context(
            running("gateway", {
                "PRECALL_WEBHOOK_HOST": "127.0.0.1", "PRECALL_WEBHOOK_PORT": "0", "CLONER_TARGET": target,
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, "CONVERSATION_INIT_TOKEN": TOKEN,
                # Counted as by default, and never too many.
                "RATE_LIMIT_AGENT": "1000000/minute",
                **quiet,
            })
        )  # fmt: skip
        parent = psutil.Process(cloner.pid)
        parts = {"gateway": [psutil.Process(gateway.pid)], "cloner": [parent], "audio": parent.children()}
        yield Subject(name, url, parts)


@contextmanager
def peer(elevenlabs: str, *, name: str = "monolith", **settings: str) -> Iterator[Subject]:
    """Runs the monolith with two workers, in the environment that the recipe made for it."""
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        raise ProcessFailed("the monolith has no environment: run the benchmark by `just bench`")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [
        str(python), "-m", "uvicorn", "monolith:app", "--app-dir", str(PEER), "--port", str(port),
        "--workers", str(PEER_WORKERS), "--no-access-log",
    ]  # fmt: skip
    given = {
        "ELEVENLABS_WEBHOOK_SECRET": SECRET, "ELEVENLABS_BASE_URL": elevenlabs, "ELEVENLABS_API_KEY": "k",
    }  # fmt: skip
    ready = r"Application startup complete"
    with started("monolith", command, {**given, **settings}, ready=ready, times=PEER_WORKERS) as (process, _):
        parent = psutil.Process(process.pid)
        processes = [parent, *parent.children(recursive=True)]
        yield Subject(name, f"http://127.0.0.1:{port}", {"monolith": processes})


def _cpu_ms(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system) * 1000


def _peak(process: psutil.Process) -> float:
    """The most memory that a process has held, in MB, as Linux counts it."""
    return _kilobytes(Path(f"/proc/{process.pid}/status").read_text(), "VmHWM:") / 1024


def _proportional(process: psutil.Process) -> float:
    """The memory that a process holds, in MB, with its part of what it shares."""
    try:
        return _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup").read_text(), "Pss:") / 1024
    except PermissionError:
        return _kilobytes(Path(f"/proc/{process.pid}/status").read_text(), "RssAnon:") / 1024


def _kilobytes(told: str, name: str) -> float:
    return sum(int(line.split()[1]) for line in told.splitlines() if line.startswith(name))
