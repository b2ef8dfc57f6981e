"""`python -m benchmarks`: CPU time and memory of gateway, cloner and audio worker, for each size and form.

Every delivery is of a caller that nobody knows yet, so each one takes the whole way: signature, body,
gRPC, decoding, upload, agent. The emulator answers at once and runs beside the others; its own time
is not counted.
"""

import argparse
import base64
import json
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import initiation
from benchmarks.system import Encode, System

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.wav"
SIZES = {"200 KB": 200 * 1024, "1 MB": 1024 * 1024, "10 MB": 10 * 1024 * 1024}


def main() -> int:
    """The exit status: 0 once every delivery was answered with a voice."""
    arguments = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    arguments.add_argument("--deliveries", type=int, default=40, help="of each size and form (default 40)")
    arguments.add_argument("--at-once", type=int, default=4, help="for the peak of memory (default 4)")
    arguments.add_argument(
        "--initiations", type=int, default=1000, help="calls of the initiation webhook (default 1000)"
    )
    chosen = arguments.parse_args()
    console = Console()
    table = Table(title="one delivery", title_justify="left")
    for column in ("sample", "form", "gateway", "cloner", "worker", "ms alone"):
        table.add_column(column, justify="left" if column in ("sample", "form") else "right")
    for name, size in SIZES.items():
        sample = speech(size)
        for form, encode in (("JSON", as_json), ("multipart", as_form)):
            with console.status(f"{name} as {form}"), System() as system:
                table.add_row(name, form, *measured(system, sample, encode, chosen.deliveries))
    console.print(table)
    console.print("gateway, cloner, worker: CPU-ms; alone: median time of one delivery after another")
    with console.status("peak of memory"), System() as system:
        sample = speech(SIZES["10 MB"])
        with ThreadPoolExecutor(chosen.at_once) as pool:
            list(pool.map(lambda n: system.deliver(as_json, sample, n), range(1, 1 + 4 * chosen.at_once)))
        peaks = system.peaks()
    with console.status("initiation webhook"), System() as system:
        told = initiation.measured(system, chosen.initiations)
    console.print("initiation webhook, of a known caller, in ms:")
    for how, (half, most) in told.items():
        console.print(f"  {how}: p50 {half:.1f}, p99 {most:.1f}")
    console.print(
        f"peak memory with {chosen.at_once} deliveries of 10 MB at once: "
        + ", ".join(f"{name} {mb:.0f} MB" for name, mb in peaks.items())
    )
    return 0


def measured(system: System, sample: bytes, encode: Encode, deliveries: int) -> list[str]:
    """CPU-ms of each process for one delivery, and the median of the times."""
    for number in range(5):
        system.deliver(encode, sample, number)
    before = system.cpu()
    times = sorted(system.deliver(encode, sample, 100 + number) for number in range(deliveries))
    after = system.cpu()
    each = [f"{(after[name] - before[name]) / deliveries:.1f}" for name in after]
    return [*each, f"{times[len(times) // 2]:.1f}"]


def speech(size: int) -> bytes:
    """A WAV file of that many bytes, the speech over and over and slowed down, so that 200 KB do."""
    with wave.open(str(SPEECH)) as source:
        parameters, frames = source.getparams(), source.readframes(source.getnframes())
    wanted = (size - 44) // 2 * 2
    file = BytesIO()
    with wave.open(file, "wb") as target:
        target.setparams(parameters)
        target.setframerate(16_000)
        target.writeframes((frames * (wanted // len(frames) + 1))[:wanted])
    return file.getvalue()


def event(number: int) -> dict[str, object]:
    """A pre-call event of a caller of their own."""
    return {
        "type": "pre_call",
        "conversation_id": f"conv_{number}",
        "agent_id": "agent_demo",
        "caller_metadata": {"name": "Ivan", "phone_number": f"+31612{number:06}"},
    }


def as_json(http: httpx.Client, sample: bytes, number: int) -> httpx.Request:
    """The delivery as JSON."""
    data = {"format": "base64", "data": base64.b64encode(sample).decode()}
    return http.build_request("POST", "/webhook", json={**event(number), "voice_sample": data})


def as_form(http: httpx.Client, sample: bytes, number: int) -> httpx.Request:
    """The delivery as a multipart form."""
    metadata = json.dumps(event(number)).encode()
    files = [("metadata", (None, metadata)), ("voice_sample", ("sample.wav", sample))]
    return http.build_request("POST", "/webhook", files=files)


if __name__ == "__main__":
    sys.exit(main())
