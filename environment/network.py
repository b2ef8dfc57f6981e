"""Addresses and networks as operators write them, and as peers and headers show them."""

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Self

__all__ = ["Address", "Networks", "Proxies", "Sources", "entries", "ip_address"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST = 64
MAPPED_BITS = 96

# Where ElevenLabs calls from, as it publishes: the United States, Europe and Asia, and then the residency
# workspaces of Europe, India and Singapore.
ELEVENLABS = (
    "34.67.146.145", "34.59.11.47", "35.204.38.71", "34.147.113.54", "35.185.187.110", "35.247.157.189",
    "34.77.234.246", "34.140.184.144", "34.93.26.174", "34.93.252.69", "34.87.23.17", "34.126.179.103",
)  # fmt: skip


class Networks:
    """A set of IP addresses, given by addresses and networks."""

    __slots__ = ("_networks",)

    words: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Words that stand for several addresses."""

    expected: ClassVar[str] = "must be IP addresses or networks such as 10.0.0.0/8, comma-separated"

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    @classmethod
    def read(cls, text: str) -> Self:
        """Takes what an operator wrote. Raises ValueError, which says what is expected."""
        given = entries(text)
        try:
            return cls([_network(one) for entry in given for one in cls.words.get(entry.lower(), [entry])])
        except ValueError:
            raise ValueError(cls.expected) from None

    def __contains__(self, address: object) -> bool:
        return any(address in network for network in self._networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and other._networks == self._networks

    def __hash__(self) -> int:
        return hash(self._networks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self._networks))})"


class Sources(Networks):
    """Where requests may come from."""

    __slots__ = ()
    words: ClassVar[Mapping[str, Sequence[str]]] = {"elevenlabs": ELEVENLABS}
    expected: ClassVar[str] = (
        "must be IP addresses, networks such as 203.0.113.0/24 or the word elevenlabs, comma-separated"
    )


class Proxies(Networks):
    """The proxies that are trusted to report where a request comes from."""

    __slots__ = ()
    expected: ClassVar[str] = (
        "must be IP addresses or networks such as 10.0.0.0/8, comma-separated, and not everybody (/0)"
    )

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__(networks)
        # If every address is a trusted proxy, a request's source would be whatever its sender writes.
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError


def entries(text: str) -> list[str]:
    """What a comma-separated text lists. Raises ValueError if that is nothing."""
    found = [part.strip(" \t") for part in text.split(",") if part.strip(" \t")]
    if not found:
        raise ValueError("must name at least one")
    return found


def ip_address(text: str) -> Address | None:
    """The address that a text names, or None. A zone is dropped, and IPv4 within IPv6 is IPv4."""
    return None if len(text) > LONGEST else _read(text)


# One request asks for its source several times, and most requests come from a few.
@lru_cache(maxsize=256)
def _read(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= MAPPED_BITS:
        return ipaddress.IPv4Network((mapped, network.prefixlen - MAPPED_BITS))
    return network
