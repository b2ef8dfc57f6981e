"""One answer, complete, before any of it is sent."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status, headers and body of an answer; its length is worked out when it is sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name, `content-length` left out."""
    body: bytes = b""
