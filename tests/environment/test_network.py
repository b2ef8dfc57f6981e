import sys

import pytest

from environment import Proxies, Sources, ip_address

# As ElevenLabs publishes them.
ELEVENLABS = [
    "34.67.146.145", "34.59.11.47", "35.204.38.71", "34.147.113.54", "35.185.187.110", "35.247.157.189",
    "34.77.234.246", "34.140.184.144", "34.93.26.174", "34.93.252.69", "34.87.23.17", "34.126.179.103",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.1", ["10.0.0.1", "::ffff:10.0.0.1"], ["10.0.0.2", "::a00:1", "::1"]),
        ("10.0.0.0/8 , 192.0.2.0/24", ["10.255.0.1", "192.0.2.9"], ["11.0.0.1", "192.0.3.0"]),
        ("2001:db8::/32", ["2001:db8::1", "2001:DB8:0::1%eth0"], ["2001:db9::1", "32.1.13.184"]),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.1.2.3"]),
        ("fe80::1", ["fe80::1%eth0", "fe80::1"], ["fe80::2%eth0"]),
        ("::/0", ["::1", "2001:db8::1"], ["127.0.0.1"]),
    ],
)
def test_networks(text: str, inside: list[str], outside: list[str]) -> None:
    """An address is in a network however either is written; IPv4 within IPv6 is IPv4."""
    found = Sources.read(text)

    assert [True] * len(inside) == [ip_address(one) in found for one in inside]
    assert [False] * len(outside) == [ip_address(one) in found for one in outside]


@pytest.mark.parametrize("word", ["elevenlabs", "ElevenLabs", "10.0.0.0/8,elevenlabs"])
def test_elevenlabs(word: str) -> None:
    """The word stands for the addresses that ElevenLabs calls from, and for no others."""
    found = Sources.read(word)

    assert [True] * 12 == [ip_address(one) in found for one in ELEVENLABS]
    assert [] == [one for one in ("34.67.146.144", "34.67.146.146", "8.8.8.8") if ip_address(one) in found]


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1/8", "10.0.0.256", "10.0.0", "010.0.0.1", "10", "localhost", "10.0.0.0/33", "10.0.0.0-10.0.0.9",
        "10.0.0.1:80", "[::1]", "::1/129", "*", "10.0.0.1 10.0.0.2", "10.0.0.1;10.0.0.2", ",", "eleven labs",
        "fe80::/10%eth0", "10.0.0.1,proxy.internal",
    ],
)  # fmt: skip
def test_no_networks(text: str) -> None:
    """What is neither address nor network is refused."""
    for kind in (Sources, Proxies):
        with pytest.raises(ValueError, match=r"^must (be IP addresses|name at least one)"):
            kind.read(text)


@pytest.mark.parametrize("text", ["elevenlabs", "0.0.0.0/0", "::/0", "10.0.0.1,::/0"])
def test_no_proxies(text: str) -> None:
    """Neither ElevenLabs nor everybody is a proxy that is believed about others."""
    with pytest.raises(ValueError, match="not everybody"):
        Proxies.read(text)


@pytest.mark.parametrize(
    "text", ["", "unknown", "1.2.3", "1.2.3.4.5", "::1::", "1" * 100_000, "%eth0", "\u0661.1.1.1"]
)
def test_no_address(text: str) -> None:
    """A text that is no address is none."""
    assert ip_address(text) is None


def test_long_text_is_not_kept() -> None:
    """Whatever a stranger sends in the place of an address takes up no memory once it was read."""
    text = "1" * 10_000
    before = sys.getrefcount(text)

    assert ip_address(text) is None
    assert before == sys.getrefcount(text)
