"""What is sent: recordings of a size, deliveries of them, and the initiation webhook, ready to be written.

A request is made and signed before the clock runs, and its pieces share what all of its kind have in common,
so that the sender costs the machine as little as it can.
"""

import base64
import hashlib
import hmac
import itertools
import json
import time
import wave
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = [
    "SECRET",
    "SIZES",
    "TOKEN",
    "Form",
    "Request",
    "deliveries",
    "ends",
    "initiations",
    "speech",
    "text_of",
]

SECRET = "not-a-secret-at-all"  # noqa: S105 - it signs what goes to this machine's loopback
TOKEN = "not-a-secret-either"  # noqa: S105 - as above

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.wav"
SIZES = {"200 KB": 200 * 1024, "1 MB": 1024 * 1024, "10 MB": 10 * 1024 * 1024}
BOUNDARY = "--------a-boundary-that-is-in-no-recording"

AGENT = "agent_bench"
BEARER = f"Authorization: Bearer {TOKEN}"
# Behind +316: new callers have lower numbers.
KNOWN_FROM = 80_000_000

Form = Literal["JSON", "form"]


class Request(NamedTuple):
    """One request, as the pieces that are written one after the other, and the call that it is about."""

    pieces: tuple[bytes, ...]
    agent_id: str
    conversation_id: str


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


def text_of(sample: bytes) -> bytes:
    """A sample as it stands in JSON."""
    return base64.b64encode(sample)


# One after the other for as long as the bench runs: no caller and no conversation comes twice by accident.
_numbers = itertools.count(1)


def deliveries(
    sample: bytes, form: Form, *, callers: int | None = None, agents: int | None = None
) -> Iterator[Request]:
    """Deliveries without end, each of a conversation of its own.

    Each is of a new caller, or of the next of so many; and at an agent of its own, or at one of so many.
    """
    shared = text_of(sample) if form == "JSON" else sample
    for turn in itertools.count():
        number = next(_numbers)
        subscriber = 10_000_000 + number if callers is None else KNOWN_FROM + turn % callers
        agent_id = f"agent_bench_{number if agents is None else f'shared_{turn % agents}'}"
        event = {
            "type": "pre_call",
            "event_timestamp": int(time.time()),
            "conversation_id": f"conv_bench_{number}",
            "agent_id": agent_id,
            "caller_metadata": {
                "name": "Ivan",
                "date_of_birth": "11.12.2007",
                "phone_number": f"+316{subscriber}",
            },
        }  # fmt: skip
        content_type, body = _json(event, shared) if form == "JSON" else _form(event, shared)
        pieces = _signed("/webhook", content_type, body)
        yield Request(pieces, agent_id, f"conv_bench_{number}")


def ends(prepared: Iterable[Request]) -> Iterator[Request]:
    """What ElevenLabs sends when the calls are over."""
    for _, agent_id, conversation_id in prepared:
        event = {
            "type": "post_call_transcription",
            "event_timestamp": int(time.time()),
            "data": {"agent_id": agent_id, "conversation_id": conversation_id, "status": "done"},
        }
        pieces = _signed("/webhook/post-call", "application/json", (json.dumps(event).encode(),))
        yield Request(pieces, agent_id, conversation_id)


def initiations(callers: int) -> Iterator[Request]:
    """Requests of the initiation webhook without end, each of the next of so many callers who are known."""
    for turn in itertools.count():
        number = next(_numbers)
        call = {
            "caller_id": f"+316{KNOWN_FROM + turn % callers}", "called_number": "+31201234567",
            "agent_id": AGENT, "call_sid": "CA0", "conversation_id": f"conv_bench_{number}",
        }  # fmt: skip
        body = json.dumps(call).encode()
        head = _head("/webhook/conversation-init", "application/json", BEARER, len(body))
        yield Request((head + body,), AGENT, f"conv_bench_{number}")


def _json(event: dict[str, object], text: bytes) -> tuple[str, tuple[bytes, ...]]:
    before, after = json.dumps({**event, "voice_sample": {"format": "base64", "data": "|"}}).split("|")
    return "application/json", (before.encode(), text, after.encode())


def _form(event: dict[str, object], sample: bytes) -> tuple[str, tuple[bytes, ...]]:
    before = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{json.dumps(event)}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="voice_sample"; filename="sample.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    return (
        f"multipart/form-data; boundary={BOUNDARY}",
        (before.encode(), sample, f"\r\n--{BOUNDARY}--\r\n".encode()),
    )


def _signed(path: str, content_type: str, body: tuple[bytes, ...]) -> tuple[bytes, ...]:
    stamp = str(int(time.time()))
    digest = hmac.new(SECRET.encode(), f"{stamp}.".encode(), hashlib.sha256)
    for piece in body:
        digest.update(piece)
    signature = f"ElevenLabs-Signature: t={stamp},v0={digest.hexdigest()}"
    first, *rest = body
    return (_head(path, content_type, signature, sum(map(len, body))) + first, *rest)


def _head(path: str, content_type: str, credential: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n{credential}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()
