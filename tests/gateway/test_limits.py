import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import limits
import pytest
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from structlog.testing import capture_logs

from environment import CountStorage, Proxies, Rate, ip_address
from gateway.edge.limits import COUNT_SECONDS, MOST_KEYS, Memory, OverLimit, counting
from tests.kit.ports import free_port
from tests.kit.valkey import Valkey
from tests.kit.valkey import running as running_valkey

Start = Callable[..., Awaitable[str]]
Deliver = Callable[..., Awaitable[httpx.Response]]
Document = Callable[..., bytes]

# No day ends while a test runs, or hardly ever.
ONE, TWO, OFF = Rate("1/day"), Rate("2/day"), Rate("off")
MEMORY = CountStorage("memory://")
DAY = 86_400
FORGED = f"t=1,v0={'0' * 64}"


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey server with nothing in it."""
    async with running_valkey(tmp_path) as server:
        yield server


@pytest.fixture(params=["memory", "redis", "valkey"])
def storage(request: pytest.FixtureRequest) -> CountStorage:
    """Each place where deliveries are counted: here, or at a server, by either name."""
    if request.param == "memory":
        return MEMORY
    server: Valkey = request.getfixturevalue("valkey")
    return CountStorage(server.url(request.param))


async def test_agent(
    gateway: Start, deliver: Deliver, document: Document, cloner: Any, spans: Any, storage: CountStorage
) -> None:
    """Prepares as many calls of an agent as it may, answers one more 429, and prepares those of others."""
    url = await gateway(rate_limit_agent=TWO, rate_limit_storage=storage)
    answers = [await deliver(url, document()) for _ in range(2)]

    with capture_logs() as lines:
        refused = await deliver(url, document())
    other = await deliver(url, document(agent_id="agent_other"))

    assert [200, 200, 429, 200] == [answer.status_code for answer in (*answers, refused, other)]
    told = refused.json()
    assert ("RATE_LIMITED", "RATE_LIMITED", "conv_abc123xyz") == (
        told["error_code"], told["reason"], told["conversation_id"],
    )  # fmt: skip
    wait = int(refused.headers["Retry-After"])
    assert 1 <= wait <= DAY
    assert f"Too many deliveries for this agent. Try again after {wait} s." == told["error_message"]
    assert 3 == len(cloner.asked)
    assert ["agent"] == [line["limit"] for line in lines if line["event"] == "delivery answered"]
    server = (await spans.wait("POST /webhook", 4))[2]
    assert ("RATE_LIMITED", "127.0.0.1") == (
        server.attributes["precall.reason"], server.attributes["client.address"],
    )  # fmt: skip


async def test_default(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Unless told otherwise, an agent has a hundred deliveries a minute: a hundred at once are taken."""
    url = await gateway()

    answers = await asyncio.gather(*(deliver(url, document()) for _ in range(100)))

    assert {200} == {answer.status_code for answer in answers}


async def test_off(gateway: Start, deliver: Deliver, document: Document) -> None:
    """Counts nothing where there is no limit: not even the storage is asked."""
    url = await gateway(rate_limit_agent=OFF, rate_limit_storage=CountStorage("redis://127.0.0.1:1"))

    with capture_logs() as lines:
        answers = await asyncio.gather(*(deliver(url, document()) for _ in range(120)))

    assert {200} == {answer.status_code for answer in answers}
    assert [] == [line for line in lines if "counted" in line["event"]]


async def test_strangers(
    gateway: Start, deliver: Deliver, document: Document, valkey: Valkey, sign: Any
) -> None:
    """What nobody we know has signed is not counted for an agent, and makes nothing to remember."""
    url = await gateway(rate_limit_agent=ONE, rate_limit_storage=CountStorage(valkey.url()))
    body = document()
    strange = [
        await deliver(url, body, **{"ElevenLabs-Signature": header})
        for header in (FORGED, sign(body, secret="somebody-else-0001"), sign(body, at=1.0), sign(b"x"), "")
    ]
    strange += [await deliver(url, document(agent_id=f"agent_{number}") + b"{") for number in range(3)]

    assert [401] * 5 + [400] * 3 == [answer.status_code for answer in strange]
    assert [] == await valkey.keys()
    assert 200 == (await deliver(url, body)).status_code
    (key,) = await valkey.keys()
    assert key.startswith("precall:{")
    assert "agent_def456uvw" in key


async def test_several_gateways(gateway: Start, deliver: Deliver, document: Document, valkey: Valkey) -> None:
    """Gateways that share a storage have one limit between them."""
    counted = CountStorage(valkey.url("redis"))
    urls = [await gateway(rate_limit_agent=TWO, rate_limit_storage=counted) for _ in range(3)]

    answers = [await deliver(url, document()) for url in urls]

    assert [200, 200, 429] == [answer.status_code for answer in answers]


async def test_fallback(gateway: Start, deliver: Deliver, document: Document, cloner: Any) -> None:
    """With default_voice the call goes on: 200, without a voice, and the reason."""
    url = await gateway(rate_limit_agent=ONE, precall_fallback="default_voice")
    await deliver(url, document())

    answer = await deliver(url, document())

    assert (200, "fallback", "RATE_LIMITED", None) == (
        answer.status_code, *(answer.json()[name] for name in ("status", "reason", "voice_id")),
    )  # fmt: skip
    assert 1 == len(cloner.asked)


async def test_replay(gateway: Start, deliver: Deliver, document: Document, sign: Any) -> None:
    """The same bytes under the same signature are a delivery as any other."""
    url = await gateway(rate_limit_agent=ONE)
    body = document()
    header = {"ElevenLabs-Signature": sign(body)}

    answers = [await deliver(url, body, **header) for _ in range(2)]

    assert [200, 429] == [answer.status_code for answer in answers]


async def test_only_deliveries(
    gateway: Start, deliver: Deliver, document: Document, tell: Any, client: httpx.AsyncClient, sign: Any
) -> None:
    """Calls that start and events after calls are answered however many there were."""
    url = await gateway(rate_limit_agent=ONE, rate_limit_source=ONE)
    initiation = json.dumps({"agent_id": "agent_def456uvw", "caller_id": "+31612345678"}).encode()
    event = json.dumps(
        {
            "type": "post_call_transcription",
            "data": {"agent_id": "agent_def456uvw", "conversation_id": "conv_abc123xyz"},
        }
    ).encode()
    headers = {"Content-Type": "application/json", "ElevenLabs-Signature": sign(initiation)}
    deliveries = [await deliver(url, document()) for _ in range(2)]

    starts = [
        await client.post(f"{url}/webhook/conversation-init", content=initiation, headers=headers)
        for _ in range(5)
    ]
    ends = [await tell(url, event) for _ in range(5)]

    assert [200, 429] == [answer.status_code for answer in deliveries]
    assert [200] * 10 == [answer.status_code for answer in (*starts, *ends)]


async def test_source(
    gateway: Start, deliver: Deliver, document: Document, storage: CountStorage, cloner: Any
) -> None:
    """Counts by where a delivery comes from; whoever has an IPv6 network has one limit for all of it."""
    url = await gateway(
        rate_limit_source=TWO, rate_limit_storage=storage, trusted_proxies=Proxies.read("127.0.0.1")
    )

    async def statuses(*sources: str) -> list[int]:
        sent = [await deliver(url, document(), **{"X-Forwarded-For": one}) for one in sources]
        return [answer.status_code for answer in sent]

    assert [200, 200, 429] == await statuses("192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1")
    assert [200, 200, 429] == await statuses("2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3")
    assert [200, 200] == await statuses("192.0.2.2", "2001:db8:0:1::1")
    assert 6 == len(cloner.asked)


async def test_source_before_body(
    gateway: Start, deliver: Deliver, document: Document, sign: Any, connected: Any
) -> None:
    """Refuses a source that has had its deliveries before a byte of the next one is there."""
    url = await gateway(rate_limit_source=ONE, precall_fallback="default_voice")
    body = document()
    first = await deliver(url, body)
    head = (
        "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"ElevenLabs-Signature: {sign(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async with connected(url) as (reader, writer), asyncio.timeout(60):
        writer.write(head.encode())
        answer = await reader.read()

    assert 200 == first.status_code
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"Too many deliveries from this address." in answer
    assert b"\r\nretry-after: " in answer.lower()


@pytest.fixture
async def odd() -> AsyncIterator[Callable[[bytes], Awaitable[int]]]:
    """Starts servers that take connections, say one thing or nothing, and never close; gives their ports."""
    servers: list[asyncio.Server] = []
    clients: list[asyncio.StreamWriter] = []

    async def start(said: bytes) -> int:
        async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            clients.append(writer)
            writer.write(said)

        servers.append(await asyncio.start_server(say, "127.0.0.1", 0))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield start
    for each in (*clients, *servers):
        each.close()


@pytest.mark.parametrize("kind", ["refuses", "silent", "speaks HTTP", "wrong password"])
async def test_storage_away(
    gateway: Start, deliver: Deliver, document: Document, odd: Any, valkey: Valkey, kind: str
) -> None:
    """A storage that does not answer, or not as it should, refuses nobody; the log says so once."""
    match kind:
        case "refuses":
            port = free_port()
        case "silent":
            port = await odd(b"")
        case "speaks HTTP":
            port = await odd(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        case _:
            port = valkey.port
    storage = CountStorage(f"redis://:s3cret-of-redis@127.0.0.1:{port}")
    url = await gateway(
        rate_limit_agent=ONE,
        rate_limit_source=ONE,
        rate_limit_storage=storage,
        count_seconds=COUNT_SECONDS,
    )

    with capture_logs() as lines:
        answers = [await deliver(url, document()) for _ in range(5)]

    assert [200] * 5 == [answer.status_code for answer in answers]
    assert [("warning", "deliveries are not counted: RATE_LIMIT_STORAGE")] == [
        (line["log_level"], line["event"]) for line in lines if "counted" in line["event"]
    ]
    assert "s3cret-of-redis" not in str(lines)


@pytest.mark.parametrize("whose", ["source", "agent"])
async def test_waiting_is_part_of_the_budget(
    gateway: Start, deliver: Deliver, document: Document, odd: Any, cloner: Any, whose: str
) -> None:
    """A storage that hangs takes a sixth of the budget, and the cloner is given what is left of it."""
    storage = CountStorage(f"redis://127.0.0.1:{await odd(b'')}")
    rates = {"rate_limit_agent": OFF, "rate_limit_source": OFF} | {f"rate_limit_{whose}": ONE}
    url = await gateway(**rates, rate_limit_storage=storage, precall_budget_ms=6_000)

    answer = await deliver(url, document())

    assert 200 == answer.status_code
    assert 2.0 < cloner.remaining[0] < 5.0


async def test_no_time_to_count(odd: Any) -> None:
    """A delivery that has no time to wait for the storage says nothing of the storage."""
    storage = CountStorage(f"redis://127.0.0.1:{await odd(b'')}")
    async with counting(ONE, OFF, storage, seconds=0.2) as counted:
        with capture_logs() as lines:
            await counted.count_agent("agent_1", left=0.01)
        with capture_logs() as later:
            await counted.count_agent("agent_1", left=20)

    assert ([], 1) == (lines, len(later))


@pytest.mark.long
async def test_storage_comes_back(
    gateway: Start, deliver: Deliver, document: Document, valkey: Valkey
) -> None:
    """While the storage hangs deliveries go on, whatever was counted before; then it counts again."""
    url = await gateway(
        rate_limit_agent=ONE, rate_limit_storage=CountStorage(valkey.url()), count_seconds=2.5
    )
    assert [200, 429] == [(await deliver(url, document())).status_code for _ in range(2)]

    with capture_logs() as lines:
        valkey.pause()
        hung = await asyncio.gather(*(deliver(url, document()) for _ in range(40)))
        valkey.resume()
        async with asyncio.timeout(40):
            while (await deliver(url, document())).status_code == 200:
                await asyncio.sleep(0.2)

    assert {200} == {answer.status_code for answer in hung}
    assert ["warning", "info"] == [line["log_level"] for line in lines if "counted" in line["event"]]


async def test_at_once(gateway: Start, deliver: Deliver, document: Document, valkey: Valkey) -> None:
    """However many deliveries come at once, exactly as many are prepared as may be."""
    url = await gateway(rate_limit_agent=Rate("6/day"), rate_limit_storage=CountStorage(valkey.url()))

    answers = await asyncio.gather(*(deliver(url, document()) for _ in range(12)))

    assert [200] * 6 + [429] * 6 == sorted(answer.status_code for answer in answers)


async def test_memory_is_bounded() -> None:
    """Whoever comes from everywhere is not remembered everywhere, and makes nobody forget the agents."""
    async with counting(ONE, ONE, MEMORY) as limits:
        await limits.count_agent("agent_1", left=20)
        for number in range(MOST_KEYS + 10):
            await limits.count_source(ip_address(f"10.0.{number // 256}.{number % 256}"), left=20)
        (sources, agents) = (limits._windows[whose].storage.storage for whose in ("source", "agent"))

        assert 10 == len(sources)
        assert 1 == len(agents)
        with pytest.raises(OverLimit):
            await limits.count_agent("agent_1", left=20)


async def test_memory_forgets() -> None:
    """What a window is over for is not kept for ever, and what is still counted is."""
    memory = Memory()
    window, rate = SlidingWindowCounterRateLimiter(memory), limits.parse(ONE)
    assert await window.hit(rate, "agent", "agent_1")
    (kept,) = memory.storage
    memory.storage["over"], memory.expirations["over"] = 1, time.time()

    assert memory.timer is not None
    await memory.timer

    assert [kept] == list(memory.storage) == list(memory.expirations)
    assert not await window.hit(rate, "agent", "agent_1")
    assert await window.hit(rate, "agent", "agent_2")


async def test_no_address() -> None:
    """Whoever has no address, as behind a Unix socket, is one source."""
    async with counting(OFF, ONE, MEMORY) as limits:
        await limits.count_source(None, left=20)

        with pytest.raises(OverLimit) as refused:
            await limits.count_source(None, left=20)
    assert 1 <= refused.value.retry_after <= DAY
