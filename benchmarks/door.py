"""`python -m benchmarks.door`: what a crowd costs a cloner, and whether other callers are still answered.

For each crowd: what became of its own calls, what of those of another client that went on beside it and how
long the slowest took, and the most memory that the cloner held, and its workers. RESOURCE_EXHAUSTED is the
refusal that says when to come again.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import psutil
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from rich.console import Console
from rich.table import Table

from benchmarks.deliveries import SIZES, speech
from demo.ending import end_in_order
from demo.processes import ProcessFailed, running
from tests.kit.wire import Wire

TOKEN = "not-a-secret-at-all"  # noqa: S105 - it guards what listens on this machine's loopback
METADATA = (("authorization", f"Bearer {TOKEN}"),)
# A proxy for the internet knows nothing of this machine.
DIRECTLY = (("grpc.enable_http_proxy", 0),)
METHOD = "/precall.v1.CloningService/PrepareCall"
SIZE = SIZES["10 MB"]

Crowd = Callable[[str], Coroutine[Any, Any, Counter[str]]]


async def nobody(_target: str) -> Counter[str]:
    """No crowd, to compare with."""
    await asyncio.sleep(5)
    return Counter()


async def strangers_that_stall(target: str) -> Counter[str]:
    """200 streams without a token, each with all but the last byte of 10 MB."""
    return await _stalling(target, 200)


async def clients_that_stall(target: str) -> Counter[str]:
    """250 streams with the token, each with all but the last byte of 10 MB."""
    return await _stalling(target, 250, authorization=f"Bearer {TOKEN}")


async def clients_at_once(target: str) -> Counter[str]:
    """250 calls of 10 MB with the token, of as many callers."""
    sample = speech(SIZE)
    became: Counter[str] = Counter()

    async def call(number: int) -> None:
        request = _request(number, sample)
        try:
            await stubs[number % len(stubs)].PrepareCall(request, timeout=60, metadata=METADATA)
            became["answered"] += 1
        except grpc.aio.AioRpcError as refused:
            became[refused.code().name] += 1

    channels = [grpc.aio.insecure_channel(target, (*DIRECTLY, ("our.number", number))) for number in range(4)]
    stubs = [CloningServiceStub(channel) for channel in channels]
    await asyncio.gather(*(call(number) for number in range(250)))
    for channel in channels:
        await channel.close()
    return became


CROWDS: tuple[Crowd, ...] = (nobody, strangers_that_stall, clients_that_stall, clients_at_once)


async def _stalling(target: str, streams: int, **metadata: str) -> Counter[str]:
    """How many streams the cloner ended within half a minute, and the most that one could send."""
    body = memoryview(b"\0" + SIZE.to_bytes(4) + bytes(SIZE - 1))
    port = int(target.rpartition(":")[2])
    became: Counter[str] = Counter()

    async def stall(wire: Wire) -> None:
        stream = wire.begin(METHOD, **metadata)
        await wire.send(stream, body)
        try:
            await wire.end_of(stream, seconds=30)
            became["ended"] += 1
        except TimeoutError:
            became["left open"] += 1
        became["most KB sent"] = max(became["most KB sent"], wire.sent[stream] // 1024)

    wires = [await Wire.open(port) for _ in range(5)]
    await asyncio.gather(*(stall(wires[number % 5]) for number in range(streams)))
    for wire in wires:
        await wire.close()
    return became


def _request(number: int, sample: bytes) -> pb.PrepareCallRequest:
    caller = pb.Caller(name="Ivan", phone_number=f"+31612{number:06}")
    return pb.PrepareCallRequest(
        agent_id="agent_demo", conversation_id=f"conv_{number}", caller=caller, sample=sample
    )


def crowded(crowd: str, target: str) -> None:
    """One crowd, to its end, in this process."""
    chosen = next(each for each in CROWDS if each.__name__ == crowd)
    became: Counter[str] = asyncio.run(chosen(target))
    print(_listed(became))  # noqa: T201 - its result


class Others:
    """A client that reads, and prepares calls with 200 KB, over and over."""

    def __init__(self) -> None:
        self.became: dict[str, Counter[str]] = {"reads": Counter(), "calls": Counter()}
        self.slowest = {"reads": 0.0, "calls": 0.0}

    async def go_on(self, target: str) -> None:
        """Until it is cancelled."""
        sample = speech(SIZES["200 KB"])
        async with grpc.aio.insecure_channel(target, DIRECTLY) as channel:
            stub = CloningServiceStub(channel)
            for number in count(900_000):
                request = _request(number, sample)
                await self._noted(
                    "reads", stub.ListVoices(pb.ListVoicesRequest(), timeout=15, metadata=METADATA)
                )
                await self._noted("calls", stub.PrepareCall(request, timeout=15, metadata=METADATA))
                await asyncio.sleep(0.05)

    async def _noted(self, kind: str, answer: Awaitable[object]) -> None:
        began = time.monotonic()
        try:
            await answer
            what = "answered"
        except grpc.aio.AioRpcError as failed:
            what = failed.code().name
        self.became[kind][what] += 1
        self.slowest[kind] = max(self.slowest[kind], time.monotonic() - began)

    def told(self, kind: str) -> str:
        """What became of them."""
        return f"{_listed(self.became[kind])}; slowest {self.slowest[kind]:.1f} s"

    @property
    def lost(self) -> int:
        """How many were neither answered nor told to come again in a moment."""
        both = self.became["reads"] + self.became["calls"]
        return both.total() - both["answered"] - both["RESOURCE_EXHAUSTED"]


def _listed(became: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in became.items())


async def measured(crowd: str, target: str, pid: int) -> tuple[str, Others, tuple[float, float]]:
    """What became of the crowd, of others meanwhile, and the most memory, workers apart, in MB."""
    process, most, workers = psutil.Process(pid), 0.0, 0.0
    others = Others()
    going_on = asyncio.create_task(others.go_on(target))
    await asyncio.sleep(2)
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.door", "--crowd", crowd, "--target", target),
        stdout=asyncio.subprocess.PIPE,
    )
    telling = asyncio.create_task(attacker.communicate())
    while not telling.done():
        most = max(most, process.memory_info().rss / 1_048_576)
        workers = max(workers, sum(one.memory_info().rss for one in process.children()) / 1_048_576)
        await asyncio.sleep(0.05)
    going_on.cancel()
    await asyncio.gather(going_on, return_exceptions=True)
    if attacker.returncode:
        raise ProcessFailed(f"the crowd {crowd} ended with exit status {attacker.returncode}")
    return (await telling)[0].decode().strip(), others, (most, workers)


def main() -> int:
    """The exit status: 1 where a call of another client was neither answered nor told to come again."""
    arguments = argparse.ArgumentParser(prog="benchmarks.door", description=__doc__)
    arguments.add_argument("--only", help="measure this crowd alone")
    arguments.add_argument("--crowd", help="be this crowd, and measure nothing")
    arguments.add_argument("--target", help="whom it goes to")
    chosen = arguments.parse_args()
    if chosen.crowd:
        crowded(chosen.crowd, chosen.target)
        return 0
    table = Table()
    for column in ("crowd", "what became of it", "others' reads", "others' calls", "peak, and workers'"):
        table.add_column(column)
    lost = 0
    for crowd in CROWDS:
        name = crowd.__name__
        if chosen.only and chosen.only != name:
            continue
        with TemporaryDirectory(prefix="precall-") as folder, running("emulator", {
            "EMULATOR_PORT": "0", "EMULATOR_API_KEY": "k", "EMULATOR_VOICE_LIMIT": "100000",
            "EMULATOR_MONTHLY_LIMIT": "none", "EMULATOR_LATENCY_SECONDS": "0",
            "EMULATOR_CREATE_LATENCY_SECONDS": "0.5",
        }) as (_, provider), running("cloner", {
            "CLONER_PORT": "0", "CLONER_TOKEN": TOKEN, "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
            "ELEVENLABS_BASE_URL": provider, "ELEVENLABS_API_KEY": "k", "LOG_LEVEL": "ERROR",
        }) as (cloner, target):  # fmt: skip
            became, others, most = asyncio.run(measured(name, target, cloner.pid))
        lost += others.lost
        told = (others.told("reads"), others.told("calls"))
        table.add_row(name.replace("_", " "), became, *told, "{:.0f} + {:.0f} MB".format(*most))
    Console().print(table)
    return 1 if lost else 0


if __name__ == "__main__":
    end_in_order()
    try:
        sys.exit(main())
    except ProcessFailed as failure:
        sys.exit(f"benchmarks.door: {failure}")
