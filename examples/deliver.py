#!/usr/bin/env python3
"""Sends a delivery to a gateway: asks for its health, sends a bad signature, then a full delivery.

    ELEVENLABS_WEBHOOK_SECRET=... python3 examples/deliver.py [options] [URL] [RECORDING]

Needs nothing but Python 3.11 or newer. Each run is a conversation of its own. Without RECORDING, Ivan calls,
of pre_call.json. With one, the caller is what --name, --phone and --date-of-birth say; without all three, the
name of the file, and no number: then each recording is a caller of its own, and the same one is known again.

Exit status: 0 the delivery was answered with a voice, 1 it was not, 2 it could not be sent, 130 interrupted.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import http.client
import io
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

HERE = Path(__file__).resolve().parent
EVENT = HERE / "pre_call.json"
SPEECH = HERE.parent / "tests" / "samples" / "speech.mp3"
ANSWER_SECONDS = 20


def main() -> int:
    """Sends all three, and prints each answer."""
    chosen = arguments()
    secret = os.environ.get("ELEVENLABS_WEBHOOK_SECRET", "").split(",")[0].strip()
    if not secret:
        fail("set ELEVENLABS_WEBHOOK_SECRET to the secret of the gateway")
    try:
        event, sample = described(chosen), (chosen.recording or SPEECH).read_bytes()
    except OSError as failure:
        fail(f"{failure.filename}: {failure.strerror}")
    content_type, body = (form if chosen.form == "multipart" else as_json)(event, sample)

    def deliver(signed_with: str) -> tuple[int, object]:
        return send(chosen.url, "POST", "/webhook", body, {
            "Content-Type": content_type, "ElevenLabs-Signature": signature(body, signed_with),
        })  # fmt: skip

    print("health:")
    if send(chosen.url, "GET", "/health")[0] != 200:
        print("That is as it should be behind a proxy that passes on nothing but /webhook.")
    print("bad signature:")
    deliver("another secret")
    print(f"full delivery, {event['conversation_id']}:")
    status, answer = deliver(secret)
    return 0 if status == 200 and isinstance(answer, dict) and answer.get("voice_id") else 1


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", type=address, default="http://localhost:3005", metavar="URL",
                        help="of the gateway, or of the proxy in front of it (%(default)s)")  # fmt: skip
    parser.add_argument("recording", nargs="?", type=Path, metavar="RECORDING",
                        help="a recording of at least three seconds (one of the tests' samples)")  # fmt: skip
    parser.add_argument("--name", help="of the caller")
    parser.add_argument("--phone", help="of the caller, such as +31612345678")
    parser.add_argument("--date-of-birth", help="of the caller")
    parser.add_argument(
        "--consent", help="where the consent is on record, for a cloner that wants to be told"
    )
    parser.add_argument("--agent", help="the agent's id (that of pre_call.json)")
    parser.add_argument("--conversation", help="the conversation's id (a new one each time)")
    parser.add_argument(
        "--form", choices=("json", "multipart"), default="json", help="%(default)s by default"
    )
    return parser.parse_args()


def address(url: str) -> SplitResult:
    """The address of a gateway, with or without the path that deliveries go to."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"expected http://host:port or https://host, not {url!r}")
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/webhook"))


def described(chosen: argparse.Namespace) -> dict[str, object]:
    """The event without its sample."""
    event: dict[str, object] = json.loads(EVENT.read_text(encoding="utf-8"))
    told = {"name": chosen.name, "phone_number": chosen.phone, "date_of_birth": chosen.date_of_birth}
    caller = {field: value for field, value in told.items() if value}
    if chosen.recording and not caller:
        caller = {"name": chosen.recording.stem}
    caller = caller or dict(event["caller_metadata"])
    if chosen.consent:
        caller["consent"] = chosen.consent
    return {
        **event,
        "event_timestamp": int(time.time()),
        "conversation_id": chosen.conversation or f"conv_example_{secrets.token_hex(6)}",
        "agent_id": chosen.agent or event["agent_id"],
        "caller_metadata": caller,
    }


def as_json(event: dict[str, object], sample: bytes) -> tuple[str, bytes]:
    """Content type and body, with the sample in base64."""
    data = {"format": "base64", "data": base64.b64encode(sample).decode()}
    return "application/json", json.dumps({**event, "voice_sample": data}).encode()


def form(event: dict[str, object], sample: bytes) -> tuple[str, bytes]:
    """Content type and body, with the sample as it is."""
    boundary = secrets.token_hex(16)
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    return f"multipart/form-data; boundary={boundary}", b"".join((
        (part % ("metadata", "")).encode(), json.dumps(event).encode(), b"\r\n",
        (part % ("voice_sample", '; filename="sample"')).encode(), sample,
        f"\r\n--{boundary}--\r\n".encode(),
    ))  # fmt: skip


def signature(body: bytes, secret: str) -> str:
    """What ElevenLabs signs with: HMAC-SHA256 over the time, a dot and the raw body."""
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v0={digest}"


def send(
    url: SplitResult, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, object]:
    """Prints the answer, and returns its status and its JSON, or None where it is none."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=ANSWER_SECONDS)
    where, began = f"{url.scheme}://{url.netloc}{url.path}{path}", time.monotonic()
    try:
        connection.connect()
        with contextlib.suppress(ConnectionError):  # refused before its end was read: the answer is there
            connection.request(method, url.path + path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
    except TimeoutError:
        fail(f"{where} did not answer within {ANSWER_SECONDS} s")
    except OSError as failure:
        fail(f"{where} cannot be reached: {failure.strerror or failure}")
    except (http.client.HTTPException, ValueError):
        fail(f"{where} does not answer as HTTP has it")
    finally:
        connection.close()
    print(f"HTTP {answer.status} after {time.monotonic() - began:.2f} s")
    try:
        told = json.loads(content)
    except ValueError:
        kind_of = answer.headers.get_content_type()
        to = answer.headers.get("Location")
        print(
            f"{where} answered {kind_of}, not JSON: that was not the gateway"
            + (f"; it says {to}" if to else "")
        )
        return answer.status, None
    print(json.dumps(told, indent=2, ensure_ascii=False))
    return answer.status, told


def fail(reason: str) -> NoReturn:
    """Ends the script."""
    print(f"deliver.py: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # not every terminal knows every name
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except (
        BrokenPipeError
    ):  # whoever read the output has gone, and the rest of it must not be written, either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
