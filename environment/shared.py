"""The settings that gateway and cloner have in common."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from environment.size import LARGEST_SAMPLE_MEBIBYTES, MEBIBYTE

__all__ = ["SharedSettings"]


class SharedSettings(Struct, frozen=True, kw_only=True):
    """What both processes are told, and mostly in the same words."""

    default_region: str | None = None
    """The country, by its two letters, of numbers that are written without one."""

    voice_clone_max_size_mb: Annotated[float, Meta(gt=0, le=LARGEST_SAMPLE_MEBIBYTES)] = 10.0

    body_timeout_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 10.0
    """A body that has not arrived in full by then is refused."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    shutdown_grace_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 30.0

    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 2.0
    """How long requests are still taken after SIGTERM, while the health says that we are not ready."""

    @property
    def max_sample_bytes(self) -> int:
        """The largest sample that is taken."""
        return int(self.voice_clone_max_size_mb * MEBIBYTE)

    @property
    def max_message_bytes(self) -> int:
        """How large a gRPC request may be: the sample and what surrounds it, and no less than 16 MiB."""
        return max(16 * MEBIBYTE, self.max_sample_bytes + MEBIBYTE)
