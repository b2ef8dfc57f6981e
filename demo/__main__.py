"""`python -m demo`: starts everything, delivers a sample three times, shows answers and traces."""

import base64
import hashlib
import hmac
import json
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from rich.console import Console

from demo.collector import Collector
from demo.processes import ProcessFailed, running, stop
from demo.waterfall import waterfall

SPEECH = Path(__file__).parent.parent / "tests" / "samples" / "speech.mp3"
ANSWER_SECONDS = 30


def main() -> int:
    """The exit status: 0 if every delivery was answered with a voice."""
    console = Console()
    try:
        return _demo(console)
    except ProcessFailed as failure:
        console.print(str(failure), style="red")
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


def _demo(console: Console) -> int:
    secret = secrets.token_hex(16)
    began = time.monotonic()
    with ExitStack() as stack, console.status("starting the emulator of the ElevenLabs API") as status:
        folder = stack.enter_context(TemporaryDirectory(prefix="precall-"))
        collector = stack.enter_context(Collector().listening())
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "LOG_LEVEL": "WARNING",
        }
        _, provider = stack.enter_context(
            running("emulator", {"EMULATOR_PORT": "0", "EMULATOR_API_KEY": "no-key-needed"})
        )
        status.update("starting the cloner")
        cloner, cloner_address = stack.enter_context(
            running(
                "cloner",
                {
                    "CLONER_PORT": "0",
                    "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
                    "ELEVENLABS_BASE_URL": provider,
                    "ELEVENLABS_API_KEY": "no-key-needed",
                    **telemetry,
                },
            )
        )
        status.update("starting the gateway")
        gateway, url = stack.enter_context(
            running(
                "gateway",
                {
                    "PRECALL_WEBHOOK_HOST": "127.0.0.1",
                    "PRECALL_WEBHOOK_PORT": "0",
                    "CLONER_TARGET": cloner_address,
                    "ELEVENLABS_WEBHOOK_SECRET": secret,
                    **telemetry,
                },
            )
        )
        console.print(f"emulator {provider}, cloner {cloner_address}, gateway {url}: up in {_since(began)}")

        answers = []
        for title, call, form in (
            ("Ivan calls; his sample arrives as JSON", _call("conv_1", "Ivan", "+31612345678"), "json"),
            ("Maria calls; her sample arrives as a form", _call("conv_2", "Maria", "+31687654321"), "form"),
            ("Ivan calls again; his voice is known", _call("conv_3", "Ivan", "+31612345678"), "json"),
        ):
            status.update(f"{title}: cloning takes 2 to 5 seconds")
            sent = time.monotonic()
            answer = _deliver(url, secret, call, form)
            answers.append((title, answer))
            console.print(f"{title}: {answer.status_code} after {_since(sent)}")
        status.update("stopping; the last spans are on their way")
        for process in (gateway, cloner):
            stop(process)

        for title, answer in answers:
            console.rule(title)
            console.print_json(answer.text)
            trace_id = answer.headers["traceresponse"].split("-")[1]
            console.print(waterfall(trace_id, collector.trace(trace_id), width=console.width))
    console.print(f"done in {_since(began)}")
    return 0 if all(answer.status_code == httpx.codes.OK for _, answer in answers) else 1


def _call(conversation_id: str, name: str, phone_number: str) -> dict[str, object]:
    return {
        "type": "pre_call",
        "event_timestamp": int(time.time()),
        "conversation_id": conversation_id,
        "agent_id": "agent_demo",
        "caller_metadata": {"name": name, "date_of_birth": "11.12.2007", "phone_number": phone_number},
    }


def _deliver(url: str, secret: str, call: dict[str, object], form: str) -> httpx.Response:
    if form == "json":
        sample = {"format": "base64", "data": base64.b64encode(SPEECH.read_bytes()).decode()}
        request = httpx.Request("POST", f"{url}/webhook", json={**call, "voice_sample": sample})
    else:
        files = [
            ("metadata", (None, json.dumps(call).encode())),
            ("voice_sample", (SPEECH.name, SPEECH.read_bytes())),
        ]
        request = httpx.Request("POST", f"{url}/webhook", files=files)
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + request.read(), hashlib.sha256).hexdigest()
    request.headers["ElevenLabs-Signature"] = f"t={stamp},v0={digest}"
    with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as http:
        return http.send(request)


def _since(moment: float) -> str:
    return f"{time.monotonic() - moment:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
