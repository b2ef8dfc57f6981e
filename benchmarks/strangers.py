"""`python -m benchmarks.strangers`: what strangers cost a gateway, and whether deliveries still arrive.

For each kind of attack, for some seconds: how many of the signed deliveries that were sent beside it were
answered with a voice, how long the slowest of them took, and the most memory that the gateway held.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from benchmarks.attacker import attacker
from benchmarks.client import RequestFailed, send
from benchmarks.comparison import VOICE
from benchmarks.deliveries import SIZES, deliveries, speech
from benchmarks.system import Subject, provider, system
from demo.ending import end_in_order
from demo.processes import ProcessFailed

FORGED = f"ElevenLabs-Signature: t={{}},v0={'0' * 64}\r\n"
ROUTES = ("/webhook", "/webhook/post-call", "/webhook/conversation-init")


async def nothing(_host: str, _port: int) -> None:
    """No attack, to compare with."""
    await asyncio.Event().wait()


async def pipelining(host: str, port: int, connections: int = 40) -> None:
    """Requests one after the other without waiting for an answer, and without reading any."""
    await asyncio.gather(
        *(_flood(host, port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 500) for _ in range(connections))
    )


async def tiny_chunks(host: str, port: int, connections: int = 40) -> None:
    """Bodies in chunks of one byte."""
    head = forged_head("/webhook", "Transfer-Encoding: chunked")
    await asyncio.gather(*(_flood(host, port, b"1\r\nx\r\n" * 10_000, head) for _ in range(connections)))


async def reconnecting(host: str, port: int, connections: int = 40) -> None:
    """One refused request for each connection."""

    async def ask() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                await reader.read()
                writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))


async def stalled_bodies(host: str, port: int, connections: int = 64) -> None:
    """Bodies with a made-up signature that stop before their last byte, on every route, again and again."""

    async def stall(route: str) -> None:
        size = 262_144 if route.endswith("init") else 8 * 1_048_576
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(forged_head(route, f"Content-Length: {size}"))
                writer.write(bytes(size - 1))
                await writer.drain()
                await reader.read()
                writer.close()
            # Who sends as much as the machine takes measures the machine.
            await asyncio.sleep(2)

    await asyncio.gather(*(stall(route) for route in ROUTES for _ in range(connections)))


async def idle_sockets(host: str, port: int, connections: int = 1_200) -> None:
    """Connections that say nothing."""
    await _hold(host, port, b"", connections)


async def slow_headers(host: str, port: int, connections: int = 1_200) -> None:
    """Headers that never end."""
    await _hold(host, port, b"GET / HTTP/1.1\r\nX: ", connections)


ATTACKS: tuple[Callable[[str, int], Awaitable[None]], ...] = (
    nothing, pipelining, tiny_chunks, reconnecting, stalled_bodies, idle_sockets, slow_headers,
)  # fmt: skip


async def _flood(host: str, port: int, piece: bytes, head: bytes = b"") -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.write(head)
            while not writer.is_closing():
                writer.write(piece)
                await writer.drain()


async def _hold(host: str, port: int, said: bytes, connections: int) -> None:
    held = []
    for _ in range(connections):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.write(said)
            held.append(writer)
    await asyncio.Event().wait()


def forged_head(route: str, *lines: str) -> bytes:
    """The head of a request with a made-up signature."""
    given = "".join(f"{line}\r\n" for line in ("Host: x", "Content-Type: application/json", *lines))
    return f"POST {route} HTTP/1.1\r\n{given}{FORGED.format(int(time.time()))}\r\n".encode()


def attacked(attack: str, url: str) -> None:
    """One attack, for as long as this process is let live."""
    place = urlsplit(url)
    chosen = next(each for each in ATTACKS if each.__name__ == attack)
    asyncio.run(chosen(place.hostname, place.port))  # type: ignore[arg-type]


async def honest(url: str, count: int, seconds: float) -> tuple[int, float]:
    """How many of the deliveries were answered with a voice, and the seconds that the slowest took.

    Each comes over a connection of its own, from one of a few callers.
    """
    outcomes = []
    for delivery in islice(deliveries(speech(SIZES["200 KB"]), "JSON", callers=5), count):
        began, taken = time.monotonic(), False
        with contextlib.suppress(RequestFailed, OSError, TimeoutError):
            await send(url, [delivery], at_once=1, seconds=0, expected=VOICE)
            taken = True
        outcomes.append((taken, time.monotonic() - began))
        await asyncio.sleep(seconds / count)
    return sum(taken for taken, _ in outcomes), max(took for _, took in outcomes)


async def measured(ours: Subject, attack: str, count: int, seconds: float) -> tuple[int, float, float]:
    """Deliveries taken, the slowest in seconds, the gateway's peak of memory in MB."""
    ours.begin()
    async with attacker("benchmarks.strangers", "--attack", attack, "--url", ours.url):
        taken, slowest = await honest(ours.url, count, seconds)
    return taken, slowest, ours.used().peak_mb["gateway"]


def main() -> int:
    """The exit status: 1 where a delivery was lost."""
    arguments = argparse.ArgumentParser(prog="benchmarks.strangers", description=__doc__)
    arguments.add_argument("--deliveries", type=int, default=20, help="beside each attack (default 20)")
    arguments.add_argument("--seconds", type=float, default=15, help="that they are spread over (default 15)")
    arguments.add_argument("--attack", help="attack only, with this one")
    arguments.add_argument("--only", help="measure this one alone")
    arguments.add_argument("--url", help="whom to attack")
    chosen = arguments.parse_args()
    if chosen.attack:
        attacked(chosen.attack, chosen.url)
        return 0
    table = Table()
    for column in ("attack", "deliveries taken", "slowest", "gateway's peak"):
        table.add_column(column)
    lost = 0
    for attack in ATTACKS:
        if chosen.only and chosen.only != attack.__name__:
            continue
        with provider() as elevenlabs, system(elevenlabs) as ours:
            taken, slowest, most = asyncio.run(
                measured(ours, attack.__name__, chosen.deliveries, chosen.seconds)
            )
        lost += chosen.deliveries - taken
        table.add_row(
            attack.__name__.replace("_", " "),
            f"{taken} of {chosen.deliveries}",
            f"{slowest:.2f} s",
            f"{most:.0f} MB",
        )
    Console().print(table)
    return 1 if lost else 0


if __name__ == "__main__":
    end_in_order()
    try:
        sys.exit(main())
    except ProcessFailed as failure:
        sys.exit(f"benchmarks.strangers: {failure}")
