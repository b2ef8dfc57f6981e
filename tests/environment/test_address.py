import pytest

from environment import BaseUrl, Host, Target, address, is_loopback


@pytest.mark.parametrize(
    "text",
    [
        "localhost:50051", "cloner:50051", "my_cloner:50051", "10.0.0.1:50051", "[::1]:50051", "[fe80::1%eth0]:1",
        "cloner.ns.svc.cluster.local.:50051", "dns:///cloner:50051", "dns:cloner:50051", "dns:///[::1]:50051",
        "dns://10.0.0.2/cloner:50051", "dns://10.0.0.2:53/cloner:50051", "ipv4:10.0.0.5:50051,10.0.0.6:50051",
        "ipv6:[::1]:50051", "ipv6:[::1]:50051,[::2]:50051", "ipv6:%5B::1%5D:50051", "unix:cloner.sock",
        "unix:///run/cloner.sock", "unix-abstract:cloner",
    ],
)  # fmt: skip
def test_target(text: str) -> None:
    """What gRPC takes is taken as it stands."""
    assert text == Target.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://cloner:50051", "https://cloner", "https://", "tcp://10.0.0.1:50051", "grpc://cloner:50051", "cloner",
        "10.0.0.1", "::1", "::1:50051", "[::1]", "cloner:", ":50051", "cloner:0", "cloner:65536", "cloner:grpc",
        "cloner:-1", "10.0.0.256:50051", "dns:///cloner", "dns:///", "dns://cloner:50051", "dns:///http://cloner:1",
        "ipv4:cloner:50051", "ipv4:10.0.0.5", "ipv4:[::1]:50051", "ipv4:", "ipv6:10.0.0.1:50051", "ipv6:::1:50051",
        "unix:", "unix://run/cloner.sock", "clo ner:50051", "cloner:50051/", "cloner:50051,other:50051",
        "cloner\u200b:50051", "cloner\u00a0:50051", "\u0441loner:50051", '"cloner:50051"', "a..b:1", "-a:1",
    ],
)  # fmt: skip
def test_no_target(text: str) -> None:
    """What nothing could ever be reached by is refused."""
    with pytest.raises(ValueError, match=r"^must be host:port"):
        Target.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://api.elevenlabs.io", "https://api.elevenlabs.io/", "HTTPS://API.elevenlabs.io",
        "https://api.eu.residency.elevenlabs.io", "https://api.elevenlabs.io:443", "http://emulator:8090",
        "http://127.0.0.1:8090/", "http://[::1]:8090", "https://proxy.example/elevenlabs", "http://localhost",
    ],
)  # fmt: skip
def test_base_url(text: str) -> None:
    """The API, the emulator, and a proxy that has the API below a path."""
    assert text == BaseUrl.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://api.elevenlabs.io/v1", "https://api.elevenlabs.io/v1/", "https://api.elevenlabs.io/v2/voices",
        "https://api.elevenlabs.io/docs", "http://api.elevenlabs.io", "https://elevenlabs.io",
        "https://www.elevenlabs.io", "http://emulator:8090/v1", "https://proxy.example/elevenlabs/v1",
        "https://user:pass@api.elevenlabs.io", "https://key@api.elevenlabs.io", "https://api.elevenlabs.io?x=1",
        "https://api.elevenlabs.io#x", "https://api.elevenlabs.io/?", "https://", "https:///v1", "api.elevenlabs.io",
        "tcp://10.0.0.1:8090", "ftp://api.elevenlabs.io", "http://emulator:port", "http://emulator:0",
        "http://emulator:65536", "http://[::1", "http://10.0.0.256", "https://api.elevenlabs.io\u200b",
        "https://api elevenlabs.io", '"https://api.elevenlabs.io"', "https://:8090",
    ],
)  # fmt: skip
def test_no_base_url(text: str) -> None:
    """What no path of the API could stand behind is refused."""
    with pytest.raises(ValueError, match=r"^must be http"):
        BaseUrl.read(text)


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "127.0.0.1", "::", "[::]", "::1", "fe80::1%eth0", "localhost", "a.b-c"]
)
def test_host(text: str) -> None:
    """Addresses of both kinds, and names."""
    assert text == Host.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:3005",
        "[::1]:3005",
        "http://localhost",
        "10.0.0.256",
        "1.2.3",
        "[::1",
        "two words",
        "*",
        "é",
        "a\u200b",
    ],
)
def test_no_host(text: str) -> None:
    """A port, a URL, or what is neither address nor name."""
    with pytest.raises(ValueError, match=r"^must be an IP address or a host name"):
        Host.read(text)


def test_address() -> None:
    """Only IPv6 stands in brackets, whether or not it did before."""
    assert ["[::]:1", "[::]:1", "127.0.0.1:1", "localhost:1"] == [
        address(host, 1) for host in ("::", "[::]", "127.0.0.1", "localhost")
    ]


def test_loopback() -> None:
    """What only this machine reaches."""
    here = (
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
        "localhost",
        "LocalHost",
        "localhost.",
    )
    not_here = (
        "0.0.0.0",
        "::",
        "[::]",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "cloner",
        "localhost.example",
        "127.example",
    )

    assert [True] * 8 + [False] * 8 == [is_loopback(host) for host in (*here, *not_here)]
