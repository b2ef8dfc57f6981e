"""Gateways and cloners are restarted one after the other under continuous deliveries, and none is lost."""

import asyncio
import base64
import itertools
import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Self

import httpx
import pytest

from tests.kit.connections import connected
from tests.kit.ports import free_port
from tests.kit.processes import cloner, gateway
from tests.system.signing import event, signed

CALLERS = ("Ivan", "Maria", "Tom", "Li")
PHASE = 100


class Balancer:
    """Gives deliveries to one ready gateway after the other, as a service of Kubernetes does."""

    def __init__(self, urls: list[str]) -> None:
        self._ready = dict.fromkeys(urls, True)
        self._turn = itertools.cycle(urls)

    async def __aenter__(self) -> Self:
        self._probing = [asyncio.create_task(self._probe(url)) for url in self._ready]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)

    async def next(self) -> str:
        """A gateway that is ready, once there is one: a busy machine may keep both from saying so."""
        while not any(self._ready.values()):
            await asyncio.sleep(0.02)
        return next(url for url in self._turn if self._ready[url])

    async def _probe(self, url: str) -> None:
        async with httpx.AsyncClient(timeout=5, verify=False) as client:
            while True:
                try:
                    self._ready[url] = (await client.get(f"{url}/health/ready")).status_code == 200
                except httpx.TransportError:
                    self._ready[url] = False
                await asyncio.sleep(0.05)


class Senders:
    """Several who deliver one call after the other over connections that they keep, until the block ends."""

    def __init__(self, balancer: Balancer, sample: bytes) -> None:
        self._balancer = balancer
        self._sample = {"format": "base64", "data": base64.b64encode(sample).decode()}
        self._ended = False
        self.answered: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._sending = [asyncio.create_task(self._send(number)) for number in range(len(CALLERS))]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._sending)

    async def until_answered(self, more: int, *, by: int = 0) -> None:
        """Waits until so many more were answered, by at least so many gateways."""
        before = self.answered.copy()
        async with asyncio.timeout(120):
            while (new := self.answered - before).total() < more or len(new) < by:
                await asyncio.sleep(0.01)

    async def _send(self, number: int) -> None:
        caller = {"name": CALLERS[number], "phone_number": f"+3161234000{number}"}
        async with httpx.AsyncClient(timeout=30, verify=False) as client:
            for count in itertools.count():
                if self._ended:
                    return
                fields = event(conversation_id=f"conv_{number}_{count}", caller_metadata=caller)
                body = json.dumps(fields | {"voice_sample": self._sample}).encode()
                headers = {
                    "Content-Type": "application/json",
                    "ElevenLabs-Signature": signed(body, secret=gateway.SECRET),
                }
                url = await self._balancer.next()
                try:
                    answer = await client.post(f"{url}/webhook", content=body, headers=headers)
                except httpx.TransportError as lost:
                    self.lost[type(lost).__name__] += 1
                    continue
                if answer.status_code == 200:
                    self.answered[url] += 1
                else:
                    self.lost[answer.text] += 1
                # Often enough to meet every moment of a restart, and other tests need the processor, too.
                await asyncio.sleep(0.05)


@pytest.mark.long(first=True)
@pytest.mark.timeout(300)
async def test_rolling_restart(emulator_url: str, sqlite: str, speech: bytes) -> None:
    """No delivery is refused, cut off or answered 5xx while each of two gateways and two cloners goes and comes."""
    shared = {"LOG_LEVEL": "ERROR"}  # nobody reads what they write, and a full pipe would hold them up
    of_cloner = shared | {
        "ELEVENLABS_API_KEY": cloner.API_KEY, "ELEVENLABS_BASE_URL": emulator_url,
        "DATABASE_URL": sqlite, "CALLER_HASH_KEY": "key-of-the-hashes",
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        # Each comes back where it was, so that port must be nobody else's meanwhile.
        ports = [str(free_port()) for _ in range(2)]
        cloners = [await start(cloner.process(**of_cloner, CLONER_PORT=port)) for port in ports]
        for each in cloners:
            await cloner.ready(each)
        of_gateway = shared | {
            "ELEVENLABS_WEBHOOK_SECRET": gateway.SECRET, "RATE_LIMIT_AGENT": "off",
            "CLONER_TARGET": "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports),
        }  # fmt: skip
        gateways = [
            await start(gateway.process(**of_gateway, PRECALL_WEBHOOK_PORT=str(free_port())))
            for _ in range(2)
        ]
        urls = [await gateway.ready(each) for each in gateways]
        senders = await start(Senders(await start(Balancer(urls)), speech))
        await senders.until_answered(PHASE, by=2)
        for old, url in zip(gateways, urls, strict=True):
            old.terminate()
            assert 0 == await asyncio.wait_for(old.wait(), 60)
            again = gateway.process(**of_gateway, PRECALL_WEBHOOK_PORT=url.rpartition(":")[2])
            await gateway.ready(await start(again))
            # The one that came back takes deliveries before the next goes.
            await senders.until_answered(PHASE, by=2)
        for old, port in zip(cloners, ports, strict=True):
            old.terminate()
            assert 0 == await asyncio.wait_for(old.wait(), 60)
            fresh = await start(cloner.process(**of_cloner, CLONER_PORT=port))
            await cloner.ready(fresh)
            # Not before each gateway has found it: the pause between its tries has grown meanwhile.
            await connected(fresh.pid, int(port), count=len(gateways))
            await senders.until_answered(PHASE, by=2)
        await senders.__aexit__()

    assert {} == senders.lost
    assert senders.answered.total() >= 5 * PHASE
