import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from environment import Proxies, Rate, Sources
from gateway.edge.source import Sourced

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Awaitable[httpx.Response]]
Document = Callable[..., bytes]

PROXY = "10.0.0.1"
TRUSTED = Proxies.read("10.0.0.0/8, fe80::1, 2001:db8:ffff::/48")
ELSEWHERE = Sources.read("203.0.113.0/24")
LOCAL = Proxies.read("127.0.0.1")

X, F = "X-Forwarded-For", "Forwarded"


async def seen(
    client: tuple[str, int] | None, *headers: tuple[str, str], trusted: Proxies | None = TRUSTED
) -> Any:
    """Where an application sees a request with these headers come from."""
    scope = {
        "type": "http",
        "client": client,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }

    async def app(*_: Any) -> None:
        """Asks nothing and answers nothing."""

    await Sourced(app, trusted)(scope, None, None)
    return scope["client"]


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        # One proxy, and several, each adding whom it heard from.
        ("203.0.113.7", [(X, "203.0.113.7")]),
        ("203.0.113.7", [(X, "203.0.113.7, 10.9.9.9")]),
        ("203.0.113.7", [(X, "203.0.113.7,10.9.9.9,2001:db8:ffff::1")]),
        ("203.0.113.7", [(X, "203.0.113.7"), (X, "10.9.9.9")]),
        # What stands before the first stranger is the stranger's own.
        ("203.0.113.7", [(X, "198.51.100.1, 203.0.113.7")]),
        ("203.0.113.7", [(X, "198.51.100.1"), (X, "203.0.113.7, 10.9.9.9")]),
        ("203.0.113.7", [(X, "10.0.0.3, 203.0.113.7")]),
        ("203.0.113.7", [(X, f"{'x' * 9_000},\xff,, 203.0.113.7 ,")]),
        # All that an address may look like.
        ("203.0.113.7", [(X, "203.0.113.7:4711")]),
        ("203.0.113.7", [(X, "::ffff:203.0.113.7")]),
        ("2001:db8::7", [(X, "2001:DB8:0::7")]),
        ("2001:db8::7", [(X, "[2001:db8::7]:4711, [fe80::1%eth0]")]),
        ("fe80::7", [(X, "fe80::7%25eth0")]),
        # Nobody but proxies: the outermost.
        ("10.0.0.9", [(X, "10.0.0.9, 10.0.0.8")]),
        # What cannot be read: the proxy that wrote so.
        ("10.0.0.1", [(X, "unknown")]),
        ("10.0.0.9", [(X, "203.0.113.7, unknown, 10.0.0.9")]),
        ("10.0.0.1", [(X, "203.0.113.7 198.51.100.1")]),
        ("10.0.0.1", [(X, "203.0.113.7:port")]),
        ("10.0.0.1", [(X, "unix:/run/nginx.sock")]),
        ("10.0.0.1", [(X, '"203.0.113.7"')]),
        ("10.0.0.1", [(X, "9" * 5_000)]),
        ("10.0.0.1", [(X, " , ")]),
        ("10.0.0.1", []),
        # RFC 7239.
        ("203.0.113.7", [(F, "for=203.0.113.7")]),
        ("203.0.113.7", [(F, 'For="203.0.113.7:4711";proto=https;by=_hidden, for=10.9.9.9')]),
        ("2001:db8::7", [(F, 'for="[2001:db8::7]:4711";host=precall.example.com')]),
        ("203.0.113.7", [(F, "for=198.51.100.1, for=203.0.113.7")]),
        ("10.0.0.1", [(F, "for=_hidden")]),
        ("10.0.0.1", [(F, "for=unknown")]),
        ("10.0.0.1", [(F, "proto=https")]),
        ("10.0.0.1", [(F, "for=203.0.113.7;for=198.51.100.1")]),
        ("10.0.0.1", [(F, "for=203.0.113.7;;")]),
        ("10.0.0.1", [(F, "203.0.113.7")]),
        # Quotes that a stranger opens, for the proxy's own to close.
        ("2001:db8::7", [(F, 'for=198.51.100.1;x="'), (F, 'for="[2001:db8::7]:4711"')]),
        ("10.0.0.1", [(F, 'for=198.51.100.1;x="'), (F, 'for="_a;b"')]),
        # A proxy passes on the header that it does not write.
        ("203.0.113.7", [(X, "203.0.113.7"), (F, "for=203.0.113.7;proto=https")]),
        ("203.0.113.7", [(X, "203.0.113.7"), ("X-Real-IP", "198.51.100.1"), ("Client-IP", "198.51.100.1")]),
    ],
)  # fmt: skip
async def test_through_proxies(source: str, headers: list[tuple[str, str]]) -> None:
    """The source is the first from the end whom no trusted proxy is."""
    assert source == (await seen((PROXY, 1234), *headers))[0]


@pytest.mark.parametrize(
    "headers",
    [
        [(X, "203.0.113.7"), (F, "for=198.51.100.1")],
        [(F, "for=203.0.113.7"), (X, "198.51.100.1")],
        [(X, "203.0.113.7"), (F, "x")],
        [(X, "203.0.113.7"), (F, "for=10.0.0.1")],
    ],
)
async def test_disagreement(headers: list[tuple[str, str]]) -> None:
    """Where two headers disagree, nobody knows the source: it is not the proxy, which may be let in."""
    assert await seen((PROXY, 1234), *headers) is None


@pytest.mark.parametrize("peer", ["203.0.113.7", "11.0.0.1", "2001:db8:fffe::1"])
@pytest.mark.parametrize("header", [(X, "198.51.100.1"), (F, "for=198.51.100.1")])
async def test_of_strangers(peer: str, header: tuple[str, str]) -> None:
    """What somebody else says is not believed; nor is anybody where no proxy is trusted."""
    assert (peer, 1234) == await seen((peer, 1234), header)
    assert (PROXY, 1234) == await seen((PROXY, 1234), header, trusted=None)


@pytest.mark.parametrize(
    ("peer", "source"),
    [("::ffff:203.0.113.7", "203.0.113.7"), ("fe80::7%eth0", "fe80::7"), ("::ffff:10.0.0.1", "198.51.100.1")],
)
async def test_peer(peer: str, source: str) -> None:
    """A peer is who it is, on a listener for IPv6 as well."""
    assert source == (await seen((peer, 1234), (X, "198.51.100.1")))[0]


@pytest.mark.parametrize("client", [None, ("/run/precall.sock", 0)])
async def test_no_peer(client: Any) -> None:
    """Who has no address is left as it is, and not believed."""
    assert client == await seen(client, (X, "198.51.100.1"))


async def test_allowed(
    gateway: Start, deliver: Deliver, document: Document, tell: Any, client: httpx.AsyncClient, cloner: Any
) -> None:
    """Webhooks come from where they may, as seen by a proxy that is trusted; health is anybody's to ask."""
    url = await gateway(allowed_sources=ELSEWHERE, trusted_proxies=LOCAL)
    inside, outside = {X: "203.0.113.7"}, {X: "203.0.113.7, 198.51.100.1"}

    taken = await deliver(url, document(), **inside)
    refused = [
        await deliver(url, document(), **outside),
        await deliver(url, document()),
        await tell(url, b"{}", **outside),
        await client.post(f"{url}/webhook/conversation-init", content=b"{}", headers=outside),
    ]
    health = await client.get(f"{url}/health", headers=outside)

    assert [200, 403, 403, 403, 403, 200] == [answer.status_code for answer in (taken, *refused, health)]
    told = refused[0].json()
    assert isinstance(told.pop("trace_id"), str)
    assert {
        "status": "error", "error_code": "INVALID_SIGNATURE", "reason": "PERMISSION_DENIED",
        "error_message": "Webhooks are not taken from this address.", "conversation_id": None,
    } == told  # fmt: skip
    assert 1 == len(cloner.asked)


async def test_not_known(
    gateway: Start, deliver: Deliver, document: Document, client: httpx.AsyncClient, spans: Any
) -> None:
    """Nobody comes in as the proxy, where that may, by a header that the proxy passes on."""
    url = await gateway(
        allowed_sources=Sources.read("127.0.0.1"), trusted_proxies=LOCAL, rate_limit_source=Rate("1/day")
    )

    answer = await deliver(url, document(), **{X: "198.51.100.9", F: "x"})
    health = await client.get(f"{url}/health", headers={X: "198.51.100.9", F: "x"})

    assert (403, 200) == (answer.status_code, health.status_code)
    assert "client.address" not in (await spans.wait("POST /webhook"))[0].attributes


async def test_not_believed(gateway: Start, deliver: Deliver, document: Document, spans: Any) -> None:
    """Who is no proxy of ours does not say where he comes from, to be let in or to be written down."""
    url = await gateway(allowed_sources=ELSEWHERE)

    answer = await deliver(url, document(), **{X: "203.0.113.7", F: "for=203.0.113.7"})

    assert 403 == answer.status_code
    assert "127.0.0.1" == (await spans.wait("POST /webhook"))[0].attributes["client.address"]


async def test_refused_before_body(gateway: Start, connected: Any, sign: Any, document: Document) -> None:
    """Nobody sends a body to learn that he may not."""
    url = await gateway(allowed_sources=ELSEWHERE)
    head = (
        "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"ElevenLabs-Signature: {sign(document())}\r\nContent-Length: 1000000\r\n\r\n"
    )

    async with connected(url) as (reader, writer), asyncio.timeout(60):
        writer.write(head.encode())

        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process have the sockets of a thousand connections, both ends of each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4_096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_idle_sockets(gateway: Start, deliver: Deliver, document: Document) -> None:
    """A thousand connections that say nothing keep nobody out, behind a trusted proxy as without one."""
    url = await gateway(trusted_proxies=LOCAL, rate_limit_source=Rate("100/minute"))
    host, _, port = url.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(1_000)]
    for each in idle[::2]:
        each.sendall(b"POST /webhook HTTP/1.1\r\nX-Forwarded-For: 198.51.100.1\r\n")

    answers = await asyncio.gather(*(deliver(url, document(), **{X: "203.0.113.7"}) for _ in range(20)))
    for each in idle:
        each.close()

    assert {200} == {answer.status_code for answer in answers}
