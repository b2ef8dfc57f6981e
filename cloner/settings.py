"""The cloner's settings. Each field is the environment variable of the same name."""

import ipaddress
import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from environment import Secret

__all__ = ["MEBIBYTE", "Settings"]

MEBIBYTE = 1_048_576
SHORTEST_SECRET = 16

Positive = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Database = Annotated[str, Meta(pattern=r"^(sqlite:///.+|postgres(ql)?://.+)$")]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$")]


class Settings(Struct, frozen=True, kw_only=True):
    """What an operator may set. README.md describes each variable."""

    elevenlabs_api_key: Secret
    elevenlabs_base_url: Url = "https://api.elevenlabs.io"

    cloner_host: str = "127.0.0.1"
    cloner_port: Port = 50051

    cloner_token: Secret | None = None
    cloner_max_requests: Annotated[int, Meta(ge=1)] = 64
    body_timeout_seconds: Positive = 10.0

    database_url: Database = "sqlite:///precall.sqlite3"
    caller_hash_key: Secret | None = None
    precall_deployment: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}$")] | None = None

    default_first_message: str = "Hallo {name}, fijn dat je belt!"

    voice_clone_min_duration: Annotated[float, Meta(ge=0)] = 3.0
    voice_clone_max_duration: Positive = 600.0
    voice_clone_min_sample_rate: Annotated[int, Meta(ge=0)] = 16_000
    voice_clone_max_size_mb: Positive = 10.0

    voice_clone_auto_delete: bool = True
    voice_clone_keep_hours: Annotated[float, Meta(ge=0)] = 24.0
    voice_reuse: Literal["caller", "sample", "never"] = "caller"
    voice_check_minutes: Positive = 10.0

    enrolment_keep_days: Annotated[float, Meta(ge=0)] = 30.0
    require_consent: bool = False

    agent_update: Literal["auto", "always", "never"] = "auto"
    agent_check_seconds: Annotated[float, Meta(ge=0)] = 60.0
    call_presumed_minutes: Positive = 15.0
    call_max_minutes: Positive = 120.0
    registry_keep_days: Positive = 30.0
    reconcile_seconds: Positive = 600.0
    reconcile_grace_seconds: Annotated[float, Meta(ge=0)] = 120.0

    provider_concurrency: Annotated[int, Meta(ge=1)] = 5
    provider_queue: Annotated[int, Meta(ge=0)] = 1_000
    provider_timeout_seconds: Positive = 60.0
    provider_attempts: Annotated[int, Meta(ge=1)] = 4

    audio_workers: Annotated[int, Meta(ge=1)] = 2
    sample_buffer_mb: Positive = 512.0

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    shutdown_grace_seconds: Annotated[float, Meta(ge=0)] = 30.0
    drain_seconds: Annotated[float, Meta(ge=0)] = 2.0

    def __post_init__(self) -> None:
        strange = set(re.findall(r"\{([^{}|]*)", self.default_first_message)) - {"name"}
        if strange or not self.default_first_message.strip():
            raise ValueError("DEFAULT_FIRST_MESSAGE: expected a sentence with {name} as its only placeholder")
        if self.voice_clone_min_duration > self.voice_clone_max_duration:
            raise ValueError("VOICE_CLONE_MIN_DURATION: expected at most VOICE_CLONE_MAX_DURATION")
        if self.cloner_token is None and not _is_loopback(self.cloner_host):
            raise ValueError("CLONER_TOKEN is required unless CLONER_HOST is a loopback address")
        if self.caller_hash_key is None and not self.database_url.startswith("sqlite:"):
            raise ValueError("CALLER_HASH_KEY is required unless DATABASE_URL is SQLite")
        for name, secret in (("CLONER_TOKEN", self.cloner_token), ("CALLER_HASH_KEY", self.caller_hash_key)):
            if secret is not None and len(secret.reveal()) < SHORTEST_SECRET:
                raise ValueError(f"{name}: expected at least {SHORTEST_SECRET} characters")

    @property
    def max_sample_bytes(self) -> int:
        """How large a sample may be."""
        return int(self.voice_clone_max_size_mb * MEBIBYTE)

    @property
    def max_message_bytes(self) -> int:
        """How large a gRPC request may be: the sample and what surrounds it, and no less than 16 MiB."""
        return max(16 * MEBIBYTE, self.max_sample_bytes + MEBIBYTE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
