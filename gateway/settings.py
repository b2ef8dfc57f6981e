"""The gateway's settings. Each field is an environment variable, its name in lower case."""

import re
from typing import Annotated, Literal, get_args

from msgspec import Meta, field

from callerid import e164, region_fault
from environment import (
    MEBIBYTE,
    CountStorage,
    Host,
    Key,
    Pem,
    Port,
    Proxies,
    Rate,
    SharedSettings,
    Sources,
    Target,
    Token,
    pem_faults,
)

__all__ = ["MAX_INITIATION_BYTES", "PLACEHOLDER", "RESERVED", "Leaf", "Settings"]

# `{name}` or `{name|friend}`: a fact of the call, and the text for a call without it.
PLACEHOLDER = re.compile(
    r"\{(name|date_of_birth|phone_number|agent_id|conversation_id|voice_id)(?:\|([^{}]*))?\}"
)
# Every answer carries this variable, so that an event after the call can be matched with it.
RESERVED = "precall_call_id"
RESERVED_PREFIX = "system__"

# What ElevenLabs sends before a call has a few hundred bytes; the headers of a SIP call may add to that.
MAX_INITIATION_BYTES = 262_144

# A leaf of `conversation_config_override` that an answer may hold.
Leaf = Literal["tts.voice_id", "agent.first_message"]


class Settings(SharedSettings, frozen=True, kw_only=True):
    """Checked when built: a ValueError names every setting at fault."""

    elevenlabs_webhook_secret: tuple[Key, ...]
    """Several while a secret is being replaced: a signature under any of them is accepted."""

    precall_webhook_host: Host = Host("0.0.0.0")  # noqa: S104 - a container serves on all its addresses
    precall_webhook_port: Port = 3005

    cloner_target: Target = Target("localhost:50051")
    cloner_token: tuple[Token, ...] = ()
    """The first goes with every call to the cloner, as `authorization: Bearer <token>`."""

    cloner_tls_ca: Pem | None = None
    """The authority that must have signed the cloner's certificate. If this or our own certificate is set,
    TLS is spoken."""

    cloner_tls_client_cert: Pem | None = None
    """The certificate that we show the cloner, for mutual TLS."""

    cloner_tls_client_key: Pem | None = None

    precall_budget_ms: Annotated[int, Meta(ge=200, le=3_600_000)] = 15_000
    """From the first byte of a body until its answer has left."""

    precall_fallback: Literal["error", "default_voice"] = "error"
    """The answer to a signed delivery that could not be prepared."""

    conversation_init_token: tuple[Token, ...] = ()
    """What `Authorization: Bearer` must carry at the initiation webhook: one of these, several while one is
    being replaced. Without any, a signature is required."""

    conversation_init_budget_ms: Annotated[int, Meta(ge=200, le=3_600_000)] = 2_500
    """From the headers of an initiation webhook until its answer has left."""

    own_numbers: tuple[str, ...] = ()
    """The numbers that our agents call from. If the caller is one of these the call is outbound, and the
    called number is the person's."""

    dynamic_variables: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Names and values. A text may hold placeholders."""

    override_leaves: tuple[Leaf, ...] = get_args(Leaf)

    body_least_bytes_per_second: Annotated[float, Meta(gt=0, le=1_048_576)] = 8_192.0
    """A body that comes more slowly, after the first five seconds, is refused."""

    body_buffer_mb: Annotated[float, Meta(gt=0, le=1_048_576)] = 512.0
    """The bytes of all bodies in flight. Bodies that nobody has signed yet are dropped first; then signed
    ones are refused."""

    post_call_max_mb: Annotated[float, Meta(gt=0, le=4_096)] = 100.0
    """The largest event after a call that is accepted. Recordings come as such events, and are not held."""

    post_call_held_mb: Annotated[float, Meta(gt=0, le=4_096)] = 8.0
    """The largest event after a call that is held, and so read, as a whole."""

    post_call_timeout_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    """An event after a call that has not arrived in full by then is refused."""

    rate_limit_agent: Rate = Rate("100/minute")
    """How many deliveries are prepared for one agent."""

    rate_limit_source: Rate = Rate("off")
    """How many deliveries are taken from one address, or from one network of 64 bits of IPv6."""

    rate_limit_storage: CountStorage = CountStorage("memory://")
    """Where these two are counted."""

    allowed_sources: Sources | None = None
    """Where webhooks may come from; from everywhere if it is not set."""

    trusted_proxies: Proxies | None = None
    """The proxies that are trusted to report where a request comes from."""

    precall_max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    """How many connections may be open. One more evicts another, an idle one first: see `Places`."""

    precall_keep_alive_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 75
    """A connection that is idle for so long is closed. Whoever sends should close it before, or may send a
    delivery at that very moment."""

    @property
    def max_body_bytes(self) -> int:
        """The largest body that is read.

        In base64 a sample is a third larger; line ends add a little, and escaped slashes a sixth where it is
        quiet PCM.
        """
        return self.max_sample_bytes * 2 + 65_536

    @property
    def max_sending_bytes(self) -> int:
        """What the largest delivery takes while it is sent to the cloner: its bytes, and gRPC's copy."""
        return 2 * (self.max_sample_bytes + 16_384)

    @property
    def max_event_bytes(self) -> int:
        """The largest event after a call that is read."""
        return int(self.post_call_max_mb * MEBIBYTE)

    @property
    def max_held_event_bytes(self) -> int:
        """The largest event after a call that is held."""
        return int(self.post_call_held_mb * MEBIBYTE)

    @property
    def max_buffered_bytes(self) -> int:
        """How many bytes of bodies are held at the same time."""
        return int(self.body_buffer_mb * MEBIBYTE)

    @property
    def unverified_bytes(self) -> dict[str, int]:
        """How many of these bytes may belong to bodies that are not verified yet, for each kind of body."""
        parts = {
            "deliveries": (8, self.max_body_bytes),
            "events": (2, self.max_held_event_bytes),
            "initiations": (1, MAX_INITIATION_BYTES),
        }
        return {
            kind: max(self.max_buffered_bytes * of // 16, largest) for kind, (of, largest) in parts.items()
        }

    def __post_init__(self) -> None:
        faults = [fault for name, value in self.dynamic_variables.items() for fault in _faults(name, value)]
        if not any(secret.reveal() for secret in self.elevenlabs_webhook_secret):
            faults.append("ELEVENLABS_WEBHOOK_SECRET is required")
        if self.max_buffered_bytes < max(self.max_body_bytes, self.max_sending_bytes):
            faults.append("BODY_BUFFER_MB must hold the largest sample twice, and a little more")
        if self.max_buffered_bytes < self.max_held_event_bytes:
            faults.append("BODY_BUFFER_MB must hold POST_CALL_HELD_MB")
        if fault := region_fault(self.default_region):
            faults.append(fault)
        elif any(e164(number, self.default_region) is None for number in self.own_numbers):
            faults.append(
                "OWN_NUMBERS: expected telephone numbers such as +31612345678, comma-separated; "
                "national ones need DEFAULT_REGION"
            )
        pem = {
            name: document.reveal()
            for name, document in (
                ("CLONER_TLS_CA", self.cloner_tls_ca),
                ("CLONER_TLS_CLIENT_CERT", self.cloner_tls_client_cert),
                ("CLONER_TLS_CLIENT_KEY", self.cloner_tls_client_key),
            )
            if document is not None
        }
        faults += pem_faults(
            pem,
            certificate="CLONER_TLS_CLIENT_CERT",
            key="CLONER_TLS_CLIENT_KEY",
            authorities="CLONER_TLS_CA",
        )
        if faults:
            raise ValueError(*faults)


def _faults(name: str, value: object) -> list[str]:
    """What is wrong with a dynamic variable. The text may hold its name, but not its template."""
    faults = []
    if not name.strip():
        faults.append("DYNAMIC_VARIABLES: a variable has no name")
    if name == RESERVED or name.startswith(RESERVED_PREFIX):
        faults.append(f"DYNAMIC_VARIABLES: the name {name} is reserved")
    if isinstance(value, str) and re.search(r"[{}]", PLACEHOLDER.sub("", value)):
        faults.append(
            f"DYNAMIC_VARIABLES: {name} holds a brace that is not a placeholder; known are "
            "name, date_of_birth, phone_number, agent_id, conversation_id and voice_id"
        )
    return faults
