"""Gateway, cloner and emulator as processes of their own, for what needs the emulator's delays."""

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Self

import psutil

from benchmarks.deliveries import SECRET, TOKEN
from demo.processes import running

__all__ = ["System"]


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
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, "CONVERSATION_INIT_TOKEN": TOKEN,
                # Counted as by default, and never too many: what is tried here is overload.
                "RATE_LIMIT_AGENT": "1000000/minute",
                **quiet,
            })
        )  # fmt: skip
        self.url = url
        parent = psutil.Process(cloner.pid)
        worker, *_ = parent.children()
        self.processes = {"gateway": psutil.Process(gateway.pid), "cloner": parent, "worker": worker}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
