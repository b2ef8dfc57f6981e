import pytest

from environment import CountStorage, Rate


@pytest.mark.parametrize(
    "text", ["100/minute", "1/second", "5/10 seconds", "2 / hour", "1000000/day", "3/2minutes"]
)
def test_rate(text: str) -> None:
    """So many in so long."""
    assert (text, False) == (Rate.read(text), Rate.read(text).is_off)


@pytest.mark.parametrize("text", ["off", "OFF", "Off"])
def test_off(text: str) -> None:
    """No limit."""
    assert Rate.read(text).is_off


@pytest.mark.parametrize(
    "text",
    [
        "0/minute", "-1/minute", "100", "100/", "/minute", "100/fortnight", "1.5/second", "100/minute;5/second",
        "100/0 minutes", "none", "100 per minute", "1e3/minute", "\u0661/minute", "99999999/minute",
    ],
)  # fmt: skip
def test_no_rate(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match=r"^must be a rate such as 100/minute"):
        Rate.read(text)


@pytest.mark.parametrize(
    ("text", "in_memory"),
    [
        ("memory://", True),
        ("redis://cache", False),
        ("redis://:p%40ss@10.0.0.1:6379/0", False),
        ("valkey://user:password@[::1]:6380/15", False),
        ("rediss://cache/?ssl_ca_certs=/run/ca.pem&ssl_certfile=/run/c.pem&ssl_keyfile=/run/k.pem", False),
        ("valkeys://cache:6379", False),
        ("unix:///run/valkey.sock", False),
    ],
)
def test_storage(text: str, in_memory: bool) -> None:
    """In this process or at a server; the URL may hold a password, so it does not show itself."""
    found = CountStorage.read(text)

    assert (text, in_memory, "Secret(***)") == (found.reveal(), found.is_in_memory, repr(found))


@pytest.mark.parametrize(
    "text",
    [
        "memory", "memory://here", "redis://", "redis:///0", "cache:6379", "http://cache", "redis://cache:0",
        "redis://cache:65536", "redis://cache:port", "redis://cache/zero", "redis://cache?db=1", "unix://",
        "redis+cluster://cache:6379", "redis+sentinel://cache:6379/mymaster", "redis://cache?ssl_ca_certs=/ca",
        "rediss://cache?ssl_cert_reqs=none", "rediss://cache?ssl_ca_certs=ca.pem", "redis://[::1", "redis://ca che",
        "redis://cache#1", "unix:///run/valkey.sock?x=1", "rediss://cache?x",
    ],
)  # fmt: skip
def test_no_storage(text: str) -> None:
    """What cannot be meant is refused when it is read, and not when the first delivery comes."""
    with pytest.raises(ValueError, match=r"^must be memory://, unix://"):
        CountStorage.read(text)
