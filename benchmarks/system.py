"""Gateway, cloner and emulator as processes of their own, and what they have used."""

import hashlib
import hmac
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import httpx
import psutil

from demo.processes import running

__all__ = ["SECRET", "TOKEN", "Encode", "System", "peak"]

SECRET = "not-a-secret-at-all"  # noqa: S105 - it signs what goes to this machine's loopback
TOKEN = "not-a-secret-either"  # noqa: S105 - as above

Encode = Callable[[httpx.Client, bytes, int], httpx.Request]


class System:
    """Gateway, cloner and emulator, started for one measurement.

    A clone takes the emulator `create_latency` seconds; `workers` of the cloner's look at samples.
    """

    def __init__(self, *, create_latency: float = 0.0, workers: int = 1) -> None:
        self._create_latency = create_latency
        self._workers = workers

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        folder = self._stack.enter_context(TemporaryDirectory(prefix="precall-"))
        _, provider = self._stack.enter_context(
            running("emulator", {
                "EMULATOR_PORT": "0", "EMULATOR_API_KEY": "k", "EMULATOR_LATENCY_SECONDS": "0",
                "EMULATOR_CREATE_LATENCY_SECONDS": str(self._create_latency),
                "EMULATOR_VOICE_LIMIT": "100000", "EMULATOR_MONTHLY_LIMIT": "none",
            })
        )  # fmt: skip
        quiet = {"LOG_LEVEL": "WARNING"}
        cloner, target = self._stack.enter_context(
            running("cloner", {
                "CLONER_PORT": "0", "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
                "ELEVENLABS_BASE_URL": provider, "ELEVENLABS_API_KEY": "k",
                "AUDIO_WORKERS": str(self._workers), **quiet,
            })
        )  # fmt: skip
        gateway, url = self._stack.enter_context(
            running("gateway", {
                "PRECALL_WEBHOOK_HOST": "127.0.0.1", "PRECALL_WEBHOOK_PORT": "0", "CLONER_TARGET": target,
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, "CONVERSATION_INIT_TOKEN": TOKEN, **quiet,
            })
        )  # fmt: skip
        self.url = url
        self._http = self._stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
        parent = psutil.Process(cloner.pid)
        worker, *_ = parent.children()
        self.processes = {"gateway": psutil.Process(gateway.pid), "cloner": parent, "worker": worker}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def deliver(self, encode: Encode, sample: bytes, number: int) -> float:
        """Delivers the sample of the caller of this number; the milliseconds until it was answered."""
        request = encode(self._http, sample, number)
        stamp = str(int(time.time()))
        digest = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.read(), hashlib.sha256)
        request.headers["ElevenLabs-Signature"] = f"t={stamp},v0={digest.hexdigest()}"
        began = time.perf_counter()
        self._http.send(request).raise_for_status()
        return (time.perf_counter() - began) * 1000

    def cpu(self) -> dict[str, float]:
        """The CPU-ms that each process has used so far."""
        return {
            name: (process.cpu_times().user + process.cpu_times().system) * 1000
            for name, process in self.processes.items()
        }

    def peaks(self) -> dict[str, float]:
        """The most memory that each process has held, in MB."""
        return {name: peak(process.pid) for name, process in self.processes.items()}


def peak(pid: int) -> float:
    """The most memory that a process has held, in MB, as Linux counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
