"""Addresses as operators write them: where to listen, and what to speak to.

Each type is a text that was checked; its `read` raises ValueError, which says what is expected.
"""

import ipaddress
import re
import urllib.parse
from typing import Annotated, Self

from msgspec import Meta

__all__ = ["BaseUrl", "Host", "Port", "Target", "address", "is_loopback"]

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
# `[v6]:port` or `name:port`.
HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:/]+)):(?P<port>[0-9]{1,5})")
# The API's own paths begin with a version, so the address must not end with one.
VERSION = re.compile(r"v[0-9]+")

VENDOR = "elevenlabs.io"

Port = Annotated[int, Meta(ge=0, le=65_535)]
"""A port to listen on; 0 takes any free one."""


class Host(str):
    """An address or a name to listen on; an IPv6 address with or without brackets."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Takes `0.0.0.0`, `::`, `[::1]`, `localhost` and the like, and no port."""
        if not _is_host(_bare(text)):
            raise ValueError("must be an IP address or a host name, without a port")
        return cls(text)


class Target(str):
    """The target of a gRPC channel."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Takes those targets of gRPC's naming document that make sense here, each with its port."""
        scheme, separator, rest = text.partition(":")
        match scheme if separator else "":
            case "dns":
                # With an authority, the name server to ask: dns://10.0.0.2/cloner:50051.
                found = re.fullmatch(r"(//(?P<server>[^/]*)/)?(?P<name>[^/]+)", rest)
                server = found["server"] if found else None
                fits = found is not None and _is_host_and_port(found["name"])
                fits = fits and (not server or _is_host(_bare(server)) or _is_host_and_port(server))
            case "ipv4" | "ipv6":
                listed = rest.replace("%5B", "[").replace("%5D", "]").split(",")
                fits = all(_is_host_and_port(one, version=int(scheme[-1])) for one in listed)
            case "unix" | "unix-abstract":
                fits = (
                    bool(rest)
                    and (not rest.startswith("//") or rest.startswith("///"))
                    and rest.isprintable()
                )
            case _:
                fits = _is_host_and_port(text)
        if not fits:
            raise ValueError(
                "must be host:port, [v6]:port, dns:///host:port, ipv4:address:port,... or unix:path, "
                "and no URL"
            )
        return cls(text)


class BaseUrl(str):
    """The root of the ElevenLabs API, below which its paths begin."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Takes `https://host`, with a port or the path of a proxy; a slash at its end does not matter."""
        expected = ValueError("must be http(s)://host[:port], without /v1, credentials or a query")
        try:
            url = urllib.parse.urlsplit(text)
            port = url.port
        except ValueError as fault:
            raise expected from fault
        host = url.hostname or ""
        netloc = f"[{host}]" if ":" in host else host
        if (
            url.scheme not in {"http", "https"}
            or not re.fullmatch(r"[!-~]+", text)
            or not _is_host(host)
            or port == 0
            or url.netloc.lower() not in {netloc, f"{netloc}:{port}"}
            or "?" in text
            or "#" in text
            or any(VERSION.fullmatch(part) for part in url.path.split("/"))
        ):
            raise expected
        is_vendor = host == VENDOR or host.endswith(f".{VENDOR}")
        if is_vendor and not (url.scheme == "https" and host.startswith("api.") and url.path in {"", "/"}):
            raise ValueError(f"must be https://api.{VENDOR}, or the like for another region")
        return cls(text)


def address(host: str, port: int) -> str:
    """Host and port as one text, with IPv6 addresses in brackets."""
    bare = _bare(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        found = ipaddress.ip_address(_bare(host))
    except ValueError:
        # A name, as resolvers accept it: in any case, and with the dot of the root or without.
        return host.lower().removesuffix(".") == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (found if mapped is None else mapped).is_loopback


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_host(text: str, version: int | None = None) -> bool:
    try:
        return version in {None, ipaddress.ip_address(text).version}
    except ValueError:
        pass
    # A name of digits alone, or one that ends in digits, is a mistyped address.
    last = text.rstrip(".").rpartition(".")[2]
    return version is None and NAME.fullmatch(text) is not None and ".." not in text and not last.isdigit()


def _is_host_and_port(text: str, version: int | None = None) -> bool:
    found = HOST_AND_PORT.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= 65_535:
        return False
    if found["v6"] is not None:
        return version in {None, 6} and _is_host(found["v6"], 6)
    return version in {None, 4} and _is_host(found["name"], version)
