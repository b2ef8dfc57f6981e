"""Where a request comes from: the address of its peer, or the one that trusted proxies report.

    X-Forwarded-For: 203.0.113.7, 10.0.0.5                   each proxy adds, at the end, whom it heard from
    Forwarded: for="[2001:db8::7]:4711";proto=https, for=10.0.0.5

Read from the end: the first address that is no trusted proxy is the source. A sender can forge everything
before it. If an entry is not an address, the source is the proxy that wrote it. If the two headers disagree,
the source is unknown, because most proxies pass on the one that they do not write themselves. It is not set
to the proxy's own address, which ALLOWED_SOURCES may contain.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

from environment import Address, Networks, ip_address
from telemetry.http_server import Application, Receive, Send

__all__ = ["SourceRefused", "Sourced", "admit", "network", "source"]

# `1.2.3.4:5678`, `[::1]` and `[::1]:5678`; an IPv6 address without brackets has no port.
WITH_PORT = re.compile(r"\[(?P<v6>[^\[\]]+)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")
PAIR = re.compile(r"""[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"([^"\\]*)"|([^" \t,;=]*))[ \t]*""")
# The prefix that one household or one server usually has for itself.
V6_PREFIX = 64

Read = Callable[[str], Address | None]


class SourceRefused(Exception):
    """Webhooks are not accepted from where this request comes from."""

    reason = "PERMISSION_DENIED"
    message = "Webhooks are not taken from this address."


class Sourced:
    """Wraps an ASGI application: its scope's client is the source, with port 0 if a proxy reported it.

    It is None where nobody can tell the source.
    """

    def __init__(self, app: Application, trusted: Networks | None) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        # A server on a Unix socket has no peer's address.
        if scope["type"] == "http" and scope["client"] and (peer := ip_address(scope["client"][0])):
            found: Address | None = peer
            if self._trusted is not None and peer in self._trusted:
                found = _reported(scope["headers"], peer, self._trusted)
            port = scope["client"][1] if found is peer else 0
            scope["client"] = None if found is None else (str(found), port)
        await self._app(scope, receive, send)


def source(scope: Any) -> Address | None:
    """The source of a request, where it has an address that is known."""
    client = scope.get("client")
    return ip_address(client[0]) if client else None


def admit(scope: Any, allowed: Networks | None) -> None:
    """Raises SourceRefused for a request from outside the allowed networks, or from nobody knows where."""
    address = source(scope)
    if allowed is not None and (address is None or address not in allowed):
        raise SourceRefused


def network(address: Address | None) -> str:
    """The text by which a source is counted: for IPv6 its network, in which it may choose any address.

    All sources that are not known count as one.
    """
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, V6_PREFIX), strict=False))
    return str(address)


def _reported(headers: Iterable[tuple[bytes, bytes]], peer: Address, trusted: Networks) -> Address | None:
    """The source of the request, as the trusted peer reports it; None where two headers disagree."""
    headers = list(headers)
    chains = [_hops(headers, b"x-forwarded-for"), _hops(headers, b"forwarded")]
    reported = {
        _first_stranger(hops, peer, trusted, read)
        for hops, read in zip(chains, (_address, _forwarded), strict=True)
        if hops
    }
    if len(reported) > 1:
        return None
    return reported.pop() if reported else peer


def _hops(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """What each proxy wrote, the last first. Commas within quotes belong to the text."""
    written = b",".join(value for key, value in headers if key == name).decode("latin-1")
    return [hop for part in reversed(written.split(",")) if (hop := part.strip(" \t"))]


def _first_stranger(hops: list[str], peer: Address, trusted: Networks, read: Read) -> Address:
    found = peer
    for hop in hops:
        address = read(hop)
        if address is None:
            return found
        found = address
        if found not in trusted:
            return found
    return found


def _forwarded(element: str) -> Address | None:
    """The address in an element of Forwarded: None for a hidden name, and for what cannot be read."""
    pairs = [PAIR.fullmatch(part) for part in element.split(";")]
    named = [pair[2] or pair[3] or "" for pair in pairs if pair and pair[1].lower() == "for"]
    return _address(named[0]) if all(pairs) and len(named) == 1 else None


def _address(text: str) -> Address | None:
    found = WITH_PORT.fullmatch(text)
    return ip_address((found["v6"] or found["v4"]) if found else text)
