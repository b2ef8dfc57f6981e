#!/usr/bin/env python3
"""Sends a delivery to a gateway: asks for its health, sends a bad signature, then a full delivery.

    ELEVENLABS_WEBHOOK_SECRET=... python3 examples/deliver.py [URL] [RECORDING]

URL is http://localhost:3005 unless given, RECORDING any recording of at least three seconds. Needs
nothing but Python 3.11; the exit status is 0 if the full delivery was answered with a voice.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
ANSWER_SECONDS = 20


def main(
    url: str = "http://localhost:3005", recording: str | Path = HERE / "../tests/samples/speech.mp3"
) -> int:
    """Sends all three, and prints each answer."""
    secret = os.environ.get("ELEVENLABS_WEBHOOK_SECRET")
    if not secret:
        sys.exit("Set ELEVENLABS_WEBHOOK_SECRET to the secret of the gateway.")
    event = json.loads((HERE / "pre_call.json").read_text())
    sample = base64.b64encode(Path(recording).read_bytes()).decode()
    body = json.dumps({**event, "voice_sample": {"format": "base64", "data": sample}}).encode()

    print("health:")
    send(urllib.request.Request(f"{url}/health"))
    print("bad signature:")
    send(delivery(url, body, "another secret"))
    print("full delivery:")
    return 0 if send(delivery(url, body, secret)) == 200 else 1


def delivery(url: str, body: bytes, secret: str) -> urllib.request.Request:
    """A delivery, signed as ElevenLabs signs: HMAC-SHA256 over the time, a dot and the raw body."""
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "ElevenLabs-Signature": f"t={stamp},v0={digest}"}
    return urllib.request.Request(f"{url}/webhook", body, headers)


def send(request: urllib.request.Request) -> int:
    """Prints the answer, and returns its status."""
    began = time.monotonic()
    try:
        answer = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
    except urllib.error.HTTPError as refused:
        answer = refused
    except urllib.error.URLError as failure:
        sys.exit(f"{request.full_url} cannot be reached: {failure.reason}")
    with answer:
        print(f"HTTP {answer.status} after {time.monotonic() - began:.2f} s")
        print(json.dumps(json.load(answer), indent=2, ensure_ascii=False))
        return int(answer.status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
