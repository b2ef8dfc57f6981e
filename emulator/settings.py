"""The settings of the emulator."""

import asyncio
import difflib
import ipaddress
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

T = TypeVar("T")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


KNOWN = {
    "EMULATOR_HOST", "EMULATOR_PORT", "EMULATOR_API_KEY", "EMULATOR_CREATE_LATENCY_SECONDS",
    "EMULATOR_LATENCY_SECONDS", "EMULATOR_VOICE_LIMIT", "EMULATOR_MONTHLY_LIMIT",
    "EMULATOR_REPLICAS",  # docker-compose.yml's own
}  # fmt: skip
# What Kubernetes tells every container about a service called "emulator".
OF_SERVICE = re.compile(
    r"EMULATOR_(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


class Latency(NamedTuple):
    """How long a call takes: a random time between the two, in seconds."""

    least: float
    most: float

    async def spend(self) -> None:
        """Take that long."""
        await asyncio.sleep(random.SystemRandom().uniform(self.least, self.most))


NO_LATENCY = Latency(0, 0)
USUAL_CREATE_LATENCY = Latency(2, 5)
USUAL_LATENCY = Latency(0.05, 0.2)


class SettingsError(Exception):
    """At least one variable is malformed; the message is one line and names them all."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that may differ between two emulators."""

    host: str = "127.0.0.1"
    port: int = 8090
    """0 for any free port."""
    api_key: str = field(default="emulator-key", repr=False)
    create_latency: Latency = USUAL_CREATE_LATENCY
    """Spent by `POST /v1/voices/add` between accepting the form and making the voice."""
    latency: Latency = USUAL_LATENCY
    """Spent by every other call of the provider's API before any work."""
    voice_limit: int = 30
    monthly_limit: int | None = 95
    """Voices added or edited in a month; None for no limit, as on some plans."""
    log_level: str = "INFO"


def from_environ(environ: Mapping[str, str]) -> Settings:
    """Read the settings; an unset or empty variable means its default.

    Raises `SettingsError`, which names each variable at fault and never repeats its value.
    """
    faults: list[str] = []

    def read(variable: str, parse: Callable[[str], T], default: T) -> T:
        text = environ.get(variable, "").strip()
        if not text or _is_link(variable, text):
            return default
        try:
            return parse(text)
        except ValueError as error:
            faults.append(f"{variable} must be {error}")
            return default

    settings = Settings(
        host=read("EMULATOR_HOST", _host, Settings.host),
        port=read("EMULATOR_PORT", _port, Settings.port),
        api_key=read("EMULATOR_API_KEY", _api_key, "emulator-key"),
        create_latency=read("EMULATOR_CREATE_LATENCY_SECONDS", _latency, Settings.create_latency),
        latency=read("EMULATOR_LATENCY_SECONDS", _latency, Settings.latency),
        voice_limit=read("EMULATOR_VOICE_LIMIT", _count, Settings.voice_limit),
        monthly_limit=read("EMULATOR_MONTHLY_LIMIT", _count_or_none, Settings.monthly_limit),
        log_level=read("LOG_LEVEL", _log_level, Settings.log_level),
    )
    if faults:
        raise SettingsError("; ".join(faults))
    return settings


def oddities(environ: Mapping[str, str]) -> list[str]:
    """Messages about variables that stop nothing: a line each, without a value."""
    told = []
    for name in sorted(environ):
        if not name.startswith("EMULATOR_") or not environ[name].strip():
            continue
        if _is_link(name, environ[name].strip()):
            if name in KNOWN:
                told.append(
                    f"{name} was set by an orchestrator for a service of that name: it counts as not set"
                )
        elif name not in KNOWN and not OF_SERVICE.fullmatch(name):
            near = difflib.get_close_matches(name, sorted(KNOWN), n=1)
            told.append(f"unknown variable {name}{f', did you mean {near[0]}?' if near else ''}")
    return told


def _is_link(variable: str, text: str) -> bool:
    return variable.endswith("_PORT") and re.fullmatch(r"(tcp|udp|sctp)://\S+", text) is not None


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ValueError("a host name or an address, without a port") from error
    elif not re.fullmatch(r"[0-9A-Za-z._-]+", host):
        raise ValueError("a host name or an address, without a port")
    return host


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("a number from 0 to 65535")
    return int(text)


def _api_key(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("printable ASCII without spaces")
    return text


def _latency(text: str) -> Latency:
    found = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,6})?)(?:-([0-9]{1,4}(?:\.[0-9]{1,6})?))?", text)
    if found:
        latency = Latency(float(found[1]), float(found[2] or found[1]))
        if latency.least <= latency.most:
            return latency
    raise ValueError("seconds, such as 0.2, or a range of them, such as 2-5")


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("a whole number of at most nine digits")
    return int(text)


def _count_or_none(text: str) -> int | None:
    if text == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("a whole number of at most nine digits, or none")
    return int(text)


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
    return text.upper()
