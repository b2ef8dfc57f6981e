"""Starts emulator, cloner and gateway for the demo, and connects them."""

import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from subprocess import Popen
from tempfile import TemporaryDirectory

from rich.status import Status

from demo.processes import running, stop

__all__ = ["System", "start"]


@dataclass(frozen=True, kw_only=True)
class System:
    """Where the processes are, and the secrets that they accept."""

    emulator: str
    cloner: str
    gateway: str
    secret: str
    token: str
    tracing: tuple["Popen[str]", ...]

    def stop(self) -> None:
        """Stops the processes that send spans, the gateway first, and waits until the last span is sent."""
        for process in self.tracing:
            stop(process)


def start(
    stack: ExitStack,
    status: Status,
    collector: str,
    *,
    of_emulator: Mapping[str, str] | None = None,
    of_cloner: Mapping[str, str] | None = None,
    of_gateway: Mapping[str, str] | None = None,
) -> System:
    """Starts all three on free ports of the loopback; they end, and their folder goes, with the stack.

    `of_emulator`, `of_cloner` and `of_gateway` are further settings of the one process.
    """
    folder = stack.enter_context(TemporaryDirectory(prefix="precall-demo-"))
    secret, token = secrets.token_hex(16), secrets.token_hex(16)
    both = {
        "DRAIN_SECONDS": "0",  # nobody balances here
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "500", "LOG_LEVEL": "WARNING",
        "OTEL_METRICS_EXPORTER": "none",
    }  # fmt: skip
    status.update("starting the emulator of the ElevenLabs API")
    _, emulator = stack.enter_context(
        running(
            "emulator", {"EMULATOR_PORT": "0", "EMULATOR_API_KEY": "no-key-needed", **(of_emulator or {})}
        )
    )
    status.update("starting the cloner")
    cloner, cloner_address = stack.enter_context(
        running(
            "cloner",
            {
                "CLONER_PORT": "0",
                "AUDIO_WORKERS": "1",
                "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
                "ELEVENLABS_BASE_URL": emulator,
                "ELEVENLABS_API_KEY": "no-key-needed",
                "REQUIRE_CONSENT": "true",
                "VOICE_CLONE_KEEP_HOURS": "0",
                **both,
                **(of_cloner or {}),
            },
        )
    )
    status.update("starting the gateway")
    gateway, gateway_address = stack.enter_context(
        running(
            "gateway",
            {
                "PRECALL_WEBHOOK_HOST": "127.0.0.1",
                "PRECALL_WEBHOOK_PORT": "0",
                "CLONER_TARGET": cloner_address,
                "ELEVENLABS_WEBHOOK_SECRET": secret,
                "CONVERSATION_INIT_TOKEN": token,
                **both,
                **(of_gateway or {}),
            },
        )
    )
    return System(
        emulator=emulator,
        cloner=cloner_address,
        gateway=gateway_address,
        secret=secret,
        token=token,
        tracing=(gateway, cloner),
    )
