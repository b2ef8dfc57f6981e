"""Oddities of a process's environment that stop nothing, and are logged at every start."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from environment.secret import Secret, takes_file

__all__ = ["Remark", "is_injected", "remarks"]

PREFIXES = ("PRECALL_", "CLONER_", "VOICE_CLONE_")
"""A variable that begins with one of these is meant for us. Any other is if it is nearly one of our names."""
# How much of a name must be as in one of ours: of ten letters one may be wrong.
FAIRLY_CLOSE, VERY_CLOSE = 0.6, 0.9

KNOWN = frozenset({
    "CLONER_CLIENTS", "CLONER_CLIENTS_FILE", "CLONER_HOST", "CLONER_INSECURE",
    "CLONER_MAX_CONNECTIONS", "CLONER_MAX_REQUESTS",
    "CLONER_PORT", "CLONER_REFLECTION", "CLONER_TARGET", "CLONER_TLS_CA", "CLONER_TLS_CA_FILE",
    "CLONER_TLS_CERT", "CLONER_TLS_CERT_FILE", "CLONER_TLS_CLIENT_CA", "CLONER_TLS_CLIENT_CA_FILE",
    "CLONER_TLS_CLIENT_CERT", "CLONER_TLS_CLIENT_CERT_FILE", "CLONER_TLS_CLIENT_KEY",
    "CLONER_TLS_CLIENT_KEY_FILE", "CLONER_TLS_KEY", "CLONER_TLS_KEY_FILE", "CLONER_TOKEN",
    "CLONER_TOKEN_FILE",
    "PRECALL_BUDGET_MS", "PRECALL_DEPLOYMENT", "PRECALL_FALLBACK", "PRECALL_KEEP_ALIVE_SECONDS",
    "PRECALL_MAX_CONNECTIONS", "PRECALL_WEBHOOK_HOST", "PRECALL_WEBHOOK_PORT",
    "VOICE_CLONE_AUTO_DELETE", "VOICE_CLONE_KEEP_HOURS", "VOICE_CLONE_MAX_DURATION",
    "VOICE_CLONE_MAX_SIZE_MB", "VOICE_CLONE_MIN_DURATION", "VOICE_CLONE_MIN_SAMPLE_RATE",
    "VOICE_CLONE_MIN_SOUND",
    # docker-compose.yml reads these, and one .env file may serve it as well as the processes.
    "PRECALL_PUBLISH_ADDRESS",
})  # fmt: skip
"""The variables of every process: one file may serve them all."""

# What Kubernetes, and Docker's links before it, set in every container for a service called "cloner":
# CLONER_PORT itself, CLONER_SERVICE_HOST, CLONER_SERVICE_PORT_GRPC, CLONER_PORT_50051_TCP_ADDR.
LINK = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+", re.IGNORECASE)
OF_SERVICE = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


class Remark(NamedTuple):
    """One line for the log."""

    event: str
    variable: str
    is_severe: bool = False
    facts: Mapping[str, str] = {}


def is_injected(name: str, text: str) -> bool:
    """Whether an orchestrator set the variable for a service that is called like one of ours."""
    return name.endswith(("_PORT", "_HOST")) and LINK.fullmatch(text) is not None


def remarks(settings: msgspec.Struct, environ: Mapping[str, str]) -> list[Remark]:
    """The remarks for an operator about the environment of these settings. They repeat no value."""
    return [*_published(settings), *_injected(settings, environ), *_unknown(settings, environ)]


def _published(settings: msgspec.Struct) -> Iterator[Remark]:
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        secrets = value if isinstance(value, tuple) else (value,)
        if any(isinstance(secret, Secret) and secret.is_published for secret in secrets):
            yield Remark(
                "everybody knows this secret: it is published, so change it", field.upper(), is_severe=True
            )


def _injected(settings: msgspec.Struct, environ: Mapping[str, str]) -> Iterator[Remark]:
    for field in settings.__struct_fields__:
        name = field.upper()
        if is_injected(name, environ.get(name, "").strip()):
            yield Remark("an orchestrator set this for a service of that name: it counts as not set", name)


def _unknown(settings: msgspec.Struct, environ: Mapping[str, str]) -> Iterator[Remark]:
    own = {field.name.upper(): takes_file(field.type) for field in msgspec.structs.fields(settings)}
    known = KNOWN | own.keys() | {f"{name}_FILE" for name, taken in own.items() if taken}
    singular = {_singular(name): name for name in known}
    for name in sorted(environ):
        if name in known or OF_SERVICE.fullmatch(name):
            continue
        if is_injected(name, environ[name]) or not environ[name].strip():
            continue
        ours = name.upper().startswith(PREFIXES)
        near = difflib.get_close_matches(
            name.upper(), sorted(known), n=1, cutoff=FAIRLY_CLOSE if ours else VERY_CLOSE
        )
        if not near and (plain := name.removesuffix("_FILE")) in own:
            near = [plain]
        if not near and (one := singular.get(_singular(name.upper()))):
            near = [one]
        if ours or near:
            yield Remark("unknown variable", name, facts={"did_you_mean": near[0]} if near else {})


def _singular(name: str) -> str:
    """The name of one thing, as PROXY of PROXIES and LEAF of LEAVES or LEAFS."""
    return re.sub(r"S$", "", re.sub(r"VES$", "F", re.sub(r"IES$", "Y", name)))
