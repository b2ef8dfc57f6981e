"""The cloner's settings. Each field is the environment variable of the same name."""

import re
from typing import Annotated, Literal

from msgspec import Meta

from callerid import region_fault
from cloner.clients import clients_of
from cloner.database_url import DEFAULT_URL, address_problem, is_sqlite
from cloner.transport_security import documents_of, faults_of
from environment import (
    MEBIBYTE,
    ApiKey,
    BaseUrl,
    Host,
    Key,
    Pem,
    Port,
    SecretUrl,
    SharedSettings,
    Token,
    Toml,
    is_loopback,
)

__all__ = ["Settings"]

# A bound for every duration: nobody waits longer, and nothing is kept for longer.
YEARS = 100
Seconds = Annotated[float, Meta(ge=0, le=YEARS * 366 * 86_400)]
Minutes = Annotated[float, Meta(gt=0, le=YEARS * 366 * 1_440)]
Hours = Annotated[float, Meta(ge=0, le=YEARS * 366 * 24)]
Days = Annotated[float, Meta(ge=0, le=YEARS * 366)]
Deployment = Annotated[
    str, Meta(pattern=r"^[a-z0-9-]{1,32}$", description='at most 32 characters of a-z, 0-9 and "-"')
]


class Settings(SharedSettings, frozen=True, kw_only=True):
    """What an operator may set. docs/CONFIGURATION.md describes each variable."""

    elevenlabs_api_key: ApiKey
    elevenlabs_base_url: BaseUrl = BaseUrl("https://api.elevenlabs.io")

    cloner_host: Host = Host("127.0.0.1")
    cloner_port: Port = 50051

    cloner_token: tuple[Token, ...] = ()
    """A call must carry one of these, or a token of a client of `cloner_clients`."""
    cloner_clients: Toml | None = None
    """Who may call which methods, in the TOML that `cloner/clients.py` describes."""

    cloner_tls_cert: Pem | None = None
    cloner_tls_key: Pem | None = None
    cloner_tls_client_ca: Pem | None = None
    """If set, a client must show a certificate that one of these has signed."""
    cloner_insecure: bool = False
    """Whether plain text may be spoken beyond this machine."""
    cloner_reflection: bool = True
    """Whether a client may ask which services there are."""

    cloner_max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    cloner_max_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    watch_max: Annotated[int, Meta(ge=1, le=100_000)] = 100
    watch_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 300.0

    database_url: SecretUrl = SecretUrl(DEFAULT_URL)
    caller_hash_key: Key | None = None
    precall_deployment: Deployment | None = None

    default_first_message: str = "Hallo {name}, fijn dat je belt!"

    voice_clone_min_duration: Seconds = 3.0
    voice_clone_max_duration: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    voice_clone_min_sound: Seconds = 1.0
    voice_clone_min_sample_rate: Annotated[int, Meta(ge=0, le=768_000)] = 16_000

    voice_clone_auto_delete: bool = True
    voice_clone_keep_hours: Hours = 24.0
    voice_reuse: Literal["caller", "sample", "never"] = "caller"
    voice_check_minutes: Minutes = 10.0

    enrolment_keep_days: Days = 30.0
    require_consent: bool = False

    agent_update: Literal["auto", "always", "never"] = "auto"
    agent_check_seconds: Seconds = 60.0
    call_presumed_minutes: Minutes = 15.0
    call_max_minutes: Minutes = 120.0
    registry_patience_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 10.0
    registry_keep_days: Annotated[float, Meta(gt=0, le=YEARS * 366)] = 30.0
    reconcile_seconds: Annotated[float, Meta(gt=0, le=YEARS * 366 * 86_400)] = 600.0
    reconcile_grace_seconds: Seconds = 120.0

    provider_concurrency: Annotated[int, Meta(ge=1, le=1_000)] = 5
    provider_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 1_000
    provider_timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    provider_attempts: Annotated[int, Meta(ge=1, le=100)] = 4

    audio_workers: Annotated[int, Meta(ge=1, le=256)] = 2
    sample_buffer_mb: Annotated[float, Meta(gt=0, le=1_048_576)] = 512.0

    def __post_init__(self) -> None:
        faults = []
        strange = set(re.findall(r"\{([^{}|]*)", self.default_first_message)) - {"name"}
        if strange or not self.default_first_message.strip():
            faults.append("DEFAULT_FIRST_MESSAGE must be a sentence with {name} as its only placeholder")
        if re.fullmatch(r"(['\"`]).*\1", self.default_first_message, re.DOTALL):
            faults.append("DEFAULT_FIRST_MESSAGE must not stand in quotes: they would be part of it")
        if fault := region_fault(self.default_region):
            faults.append(fault)
        if self.voice_clone_min_duration > self.voice_clone_max_duration:
            faults.append("VOICE_CLONE_MIN_DURATION must be at most VOICE_CLONE_MAX_DURATION")
        if self.voice_clone_min_sound > self.voice_clone_max_duration:
            faults.append("VOICE_CLONE_MIN_SOUND must be at most VOICE_CLONE_MAX_DURATION")
        faults += self._access_faults()
        if problem := address_problem(self.database_url):
            faults.append(f"DATABASE_URL: {problem}")
        elif self.caller_hash_key is None and not is_sqlite(self.database_url):
            faults.append("CALLER_HASH_KEY is required unless DATABASE_URL is SQLite")
        if faults:
            raise ValueError(*faults)

    def _access_faults(self) -> list[str]:
        """What is wrong with who may call, and with TLS."""
        faults = []
        if not is_loopback(self.cloner_host):
            if not self.cloner_token and self.cloner_clients is None:
                faults.append(
                    "CLONER_TOKEN or CLONER_CLIENTS is required unless CLONER_HOST is a loopback address"
                )
            if self.cloner_tls_cert is None and not self.cloner_insecure:
                faults.append(
                    "CLONER_TLS_CERT is required unless CLONER_HOST is a loopback address, "
                    "or CLONER_INSECURE=true says that plain text will do"
                )
        faults += faults_of({name: document.reveal() for name, document in self.tls_documents.items()})
        try:
            clients_of(
                None if self.cloner_clients is None else self.cloner_clients.reveal(), self.cloner_token
            )
        except ValueError as fault:
            faults += fault.args
        return faults

    @property
    def tls_documents(self) -> dict[str, Pem]:
        """The documents of TLS, by the names of their variables; empty where TLS is not spoken."""
        return documents_of(self.cloner_tls_cert, self.cloner_tls_key, self.cloner_tls_client_ca)

    @property
    def sample_buffer_bytes(self) -> int:
        """How many bytes of requests and samples are held at once."""
        return int(self.sample_buffer_mb * MEBIBYTE)
