"""Channels to a target: how they behave, and what TLS they speak."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

__all__ = ["KEPT_BYTES", "SERVICE_CONFIG", "Tls", "TlsInvalid", "opened"]

Pem: TypeAlias = bytes | Path
Contents: TypeAlias = Mapping[str, bytes]

# Published: any client of the service may use this file, in any language.
SERVICE_CONFIG = Path(__file__).parent / "service_config.json"

# gRPC does not keep larger requests for another try once it has begun to send them.
KEPT_BYTES = 2 * 1_048_576

# What the label of a PEM says that the part needs.
LABELS = {"ca": "CERTIFICATE", "cert": "CERTIFICATE", "key": "PRIVATE KEY"}

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.per_rpc_retry_buffer_size", KEPT_BYTES),
    # A proxy from the environment is for the internet, and the server is not there.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config", SERVICE_CONFIG.read_text()),
    # A name is looked up again when a server ends a connection, as each server regularly does: so added
    # servers are found. By default this happens at most every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # By default a server that was restarted may stay away for two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this is how long one attempt to connect may take. On a busy machine, or with TLS over
    # some distance, a tenth of a second is too short, and the call that waits for it would fail.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Notices a server that vanished or stands still without a word while a call waits for it, within fifteen
    # seconds. gRPC 1.85 bounds the answer to a ping by the third of these alone.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Otherwise only two pings are sent at that pace while nothing else is, and then one a minute.
    ("grpc.http2.max_pings_without_data", 0),
)


class TlsInvalid(ValueError):
    """A certificate or a key cannot be read or used. Its text holds none of them."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS, each part as PEM or as the path of a PEM file, which is read again when it changes."""

    ca: Pem | None = None
    """The authority that must have signed the server's certificate; without it, those that gRPC trusts."""

    cert: Pem | None = None
    """The certificate that this client shows, for mutual TLS; `key` goes with it."""

    key: Pem | None = None
    server_name: str | None = None
    """The name that the server's certificate must have, if it differs from the target's."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise TlsInvalid("cert and key go together")

    @property
    def may_change(self) -> bool:
        """Whether any of it comes from a file."""
        return any(isinstance(part, Path) for part in (self.ca, self.cert, self.key))

    def read(self) -> Contents:
        """What is shown and trusted now. Raises TlsInvalid."""
        parts = {"ca": self.ca, "cert": self.cert, "key": self.key}
        return {name: _pem(name, part) for name, part in parts.items() if part is not None}

    def check(self) -> None:
        """Raises TlsInvalid for files that can never be used."""
        try:
            if isinstance(self.ca, Path):
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca)
            if isinstance(self.cert, Path) and isinstance(self.key, Path):
                # Without a password OpenSSL would ask on the terminal.
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.cert, self.key, password="")
        except OSError as failure:  # of which an SSLError is one
            why = failure.reason if isinstance(failure, ssl.SSLError) else failure.strerror
            raise TlsInvalid(f"certificates cannot be used ({why})") from None


def opened(
    target: str,
    contents: Contents | None,
    *,
    server_name: str | None,
    max_message_bytes: int,
    retries: bool,
) -> grpc.aio.Channel:
    """A channel that belongs to the running loop. Without `contents` it speaks plain text.

    Without `retries` gRPC sends nothing again by itself.
    """
    options = [
        *OPTIONS,
        # A failed call is not sent again: the server has tried again itself, and tells gRPC not to. Only
        # calls that a stopping server left without an answer are sent again.
        ("grpc.enable_retries", int(retries)),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]
    if contents is None:
        return grpc.aio.insecure_channel(target, options=options)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    credentials = grpc.ssl_channel_credentials(contents.get("ca"), contents.get("key"), contents.get("cert"))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _pem(name: str, part: Pem) -> bytes:
    try:
        content = part.read_bytes() if isinstance(part, Path) else part
    except OSError as failure:
        raise TlsInvalid(f"{name} cannot be read ({failure.strerror})") from None
    if b"-----BEGIN " not in content:
        raise TlsInvalid(f"{name} is not PEM")
    if f"{LABELS[name]}-----".encode() not in content:
        raise TlsInvalid(f"{name} holds no {LABELS[name].lower()}")
    return content
