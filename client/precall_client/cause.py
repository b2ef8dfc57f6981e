"""Tells by gRPC's own text what is in the way of a connection."""

__all__ = ["cause_of"]

# What the texts of gRPC hold, and what that means, the more precise first. They are no contract: one that
# is not known any more only leaves the cause empty.
MEANINGS = (
    ("lookup failed", "host name not found"),
    ("Connection refused", "connection refused"),
    ("CERTIFICATE_VERIFY_FAILED", "certificate not trusted"),
    ("Hostname Verification", "certificate of another host"),
    ("WRONG_VERSION_NUMBER", "no TLS spoken there"),
    ("handshake", "TLS handshake failed"),
    ("Failed parsing HTTP/2", "no gRPC spoken there"),
    ("Socket closed", "connection closed"),
    ("Connection reset", "connection closed"),
    ("No route to host", "host not reachable"),
    ("Network is unreachable", "host not reachable"),
)


def cause_of(text: str | None) -> str:
    """The meaning of a text in words of ours, as the text can hold anything; empty if it is not known."""
    folded = (text or "").casefold()
    return next((meaning for known, meaning in MEANINGS if known.casefold() in folded), "")
