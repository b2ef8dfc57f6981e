"""`python -m benchmarks`: CPU time and memory of gateway, cloner and audio worker, for each size and form.

Every delivery is of a caller that nobody knows yet, so each one takes the whole way: signature, body,
gRPC, decoding, upload, agent. The emulator answers at once and runs beside the others; its own time
is not counted.
"""

import argparse
import base64
import hashlib
import hmac
import json
import sys
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from demo.processes import running

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.wav"
SECRET = "not-a-secret"  # noqa: S105 - it signs what goes to this machine's loopback
SIZES = {"200 KB": 200 * 1024, "1 MB": 1024 * 1024, "10 MB": 10 * 1024 * 1024}


def main() -> int:
    """The exit status: 0 once every delivery was answered with a voice."""
    arguments = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    arguments.add_argument("--deliveries", type=int, default=40, help="of each size and form (default 40)")
    arguments.add_argument("--at-once", type=int, default=4, help="for the peak of memory (default 4)")
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
    console.print(
        f"peak memory with {chosen.at_once} deliveries of 10 MB at once: "
        + ", ".join(f"{name} {mb:.0f} MB" for name, mb in peaks.items())
    )
    return 0


class System:
    """Gateway, cloner and emulator, started for one measurement."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        folder = self._stack.enter_context(TemporaryDirectory(prefix="precall-"))
        _, provider = self._stack.enter_context(
            running("emulator", {
                "EMULATOR_PORT": "0", "EMULATOR_API_KEY": "k", "EMULATOR_LATENCY_SECONDS": "0",
                "EMULATOR_CREATE_LATENCY_SECONDS": "0", "EMULATOR_VOICE_LIMIT": "100000",
                "EMULATOR_MONTHLY_LIMIT": "none",
            })
        )  # fmt: skip
        quiet = {"LOG_LEVEL": "WARNING"}
        cloner, target = self._stack.enter_context(
            running("cloner", {
                "CLONER_PORT": "0", "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
                "ELEVENLABS_BASE_URL": provider, "ELEVENLABS_API_KEY": "k",
                "AUDIO_WORKERS": "1", **quiet,
            })
        )  # fmt: skip
        gateway, url = self._stack.enter_context(
            running("gateway", {
                "PRECALL_WEBHOOK_HOST": "127.0.0.1", "PRECALL_WEBHOOK_PORT": "0", "CLONER_TARGET": target,
                "ELEVENLABS_WEBHOOK_SECRET": SECRET, **quiet,
            })
        )  # fmt: skip
        self._http = self._stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
        parent = psutil.Process(cloner.pid)
        (worker,) = parent.children()
        self.processes = {"gateway": psutil.Process(gateway.pid), "cloner": parent, "worker": worker}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def deliver(self, encode: "Encode", sample: bytes, number: int) -> float:
        """Delivers the sample of the caller of this number; the milliseconds until it was answered."""
        request = encode(self._http, sample, number)
        stamp = str(int(time.time()))
        digest = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.read(), hashlib.sha256)
        request.headers["ElevenLabs-Signature"] = f"t={stamp},v0={digest.hexdigest()}"
        began = time.perf_counter()
        self._http.send(request).raise_for_status()
        return (time.perf_counter() - began) * 1000

    def cpu(self) -> dict[str, float]:
        """The CPU-ms that each process has used so far."""
        return {
            name: (process.cpu_times().user + process.cpu_times().system) * 1000
            for name, process in self.processes.items()
        }

    def peaks(self) -> dict[str, float]:
        """The most memory that each process has held, in MB."""
        return {name: peak(process.pid) for name, process in self.processes.items()}


Encode = Callable[[httpx.Client, bytes, int], httpx.Request]


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


def peak(pid: int) -> float:
    """The most memory that a process has held, in MB, as Linux counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
