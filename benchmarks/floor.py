"""What nobody can do without for a delivery as JSON, done by the same libraries, in this process."""

import hashlib
import hmac
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

import av
import pybase64

from benchmarks.deliveries import SECRET, text_of

__all__ = ["floor"]

TRIES = 7
# As fast as ffmpeg reads WAV.
READING = {"probesize": "4096", "max_size": "16384"}


def floor(sample: bytes, tries: int = TRIES) -> dict[str, float]:
    """The CPU-ms of each of the steps, the median of some tries."""
    text = text_of(sample)
    steps: dict[str, Callable[[], object]] = {
        "hash of the body": lambda: hmac.new(SECRET.encode(), text, hashlib.sha256).digest(),
        "base64": lambda: pybase64.b64decode(text, validate=True),
        "one copy": lambda: bytearray(sample),
        "audio": lambda: _decode(sample),
    }
    return {name: _cpu_ms(step, tries) for name, step in steps.items()}


def _decode(sample: bytes) -> int:
    opened = av.open(BytesIO(sample), mode="r", format="wav", options=READING)
    with opened as container:
        return sum(cast("Any", frame).samples for frame in container.decode(audio=0))


def _cpu_ms(step: Callable[[], object], tries: int) -> float:
    times = []
    for _ in range(tries):
        began = time.process_time()
        step()
        times.append((time.process_time() - began) * 1000)
    return sorted(times)[tries // 2]
