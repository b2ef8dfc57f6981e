"""`python -m demo`: starts everything, lives through three calls, shows what was answered, and the traces."""

import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import Popen
from tempfile import TemporaryDirectory

import httpx
from rich.console import Console
from rich.status import Status

from demo.actors import ANSWER_SECONDS, Actors, Person
from demo.collector import Collector
from demo.processes import ProcessFailed, running, stop
from demo.waterfall import waterfall

MARIA = Person("Maria", "+31687654321", "form 17, signed in the shop")
IVAN = Person("Ivan", "+31612345678", "agreed by telephone, recording 4711")
# "At once" is within two seconds, and the first try may meet the agent being put back.
CLEANED_SECONDS = 10


def main() -> int:
    """The exit status: 0 if every call was answered with its caller's voice, and cleaned up after."""
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
    began = time.monotonic()
    with ExitStack() as stack, console.status("") as status:
        collector = stack.enter_context(Collector().listening())
        http = stack.enter_context(httpx.Client(timeout=ANSWER_SECONDS, trust_env=False))
        addresses, processes, secret, token = _start(stack, status, collector.endpoint)
        shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
        console.print(f"{shown}: up in {_since(began)}")
        actors = Actors(http, **addresses, secret=secret)
        actors.configure(token)
        answers, well = _story(console, status, actors)
        status.update("stopping; the last spans are on their way")
        for process in processes:
            stop(process)

        def draw(trace_id: str) -> None:
            console.print(waterfall(trace_id, collector.trace(trace_id), width=console.width))

        traces = {route: iter(collector.traces(route)) for _, route, _ in answers}
        for title, route, answer in answers:
            console.rule(title)
            console.print_json(json.dumps(answer))
            draw(next(traces[route]))
        console.rule("What the end of Ivan's call did")
        for work in ("restore agent", "delete voice"):
            for trace_id in collector.traces(work):
                draw(trace_id)
    console.print(f"done in {_since(began)}")
    return 0 if well else 1


def _story(
    console: Console, status: Status, actors: Actors
) -> tuple[list[tuple[str, str, dict[str, object]]], bool]:
    """Three calls. What was answered, with the route that was asked, and whether all went well."""

    @contextmanager
    def step(title: str) -> Iterator[list[str]]:
        """Prints what is done, what came of it, and how long it took."""
        status.update(title)
        sent, outcome = time.monotonic(), list[str]()
        yield outcome
        console.print(
            f"[bold]{title}[/bold] ({_since(sent)}):\n  {' '.join(outcome)}", highlight=False, soft_wrap=True
        )

    with step("Maria hands in a recording ahead of time; cloning takes 2 to 5 seconds") as told:
        told.append(f"her voice is {actors.enrol(MARIA).voice_id}")
    with step("Maria calls; ElevenLabs asks the initiation webhook, which has no sample") as told:
        maria = actors.rings(MARIA)
        told.append(f"answered in {maria['webhook_ms']:.0f} ms; {_heard(maria)}")
    with step("Maria hangs up") as told:
        told.append(f"the event is answered {actors.hangs_up(maria)}")

    with step("Ivan calls; a bridge delivers his sample as JSON") as told:
        first = actors.deliver(IVAN, "conv_bridge_1", "json").json()
        ivan = actors.rings(IVAN, first.get("conversation_initiation_client_data"))
        told.append(f"{first['status']}; {_heard(ivan)}")
    with step("Ivan hangs up; the agent gets back what it had, and his voice goes") as told:
        told.append(f"the event is answered {actors.hangs_up(ivan)};")
        cleaned = _cleaned(actors)
        told.append(f"voices left at ElevenLabs: {', '.join(actors.voices())}")

    with step("Maria calls again; a bridge delivers her sample as a form, but her voice is known") as told:
        second = actors.deliver(MARIA, "conv_bridge_2", "form").json()
        again = actors.rings(MARIA, second.get("conversation_initiation_client_data"))
        told.append(f"{second['status']}; {_heard(again)}")

    answers: list[tuple[str, str, dict[str, object]]] = [
        ("Maria's first call", "POST /webhook/conversation-init", json.loads(maria["webhook_body"])),
        ("Ivan's call", "POST /webhook", first),
        ("Maria's second call", "POST /webhook", second),
    ]
    heard = all(call["status"] != "failed" and call["voice_id"] for call in (maria, ivan, again))
    return answers, heard and cleaned and first["status"] == second["status"] == "success"


def _start(
    stack: ExitStack, status: Status, collector: str
) -> tuple[dict[str, str], list["Popen[str]"], str, str]:
    """Starts all three processes: where they are, those that send spans, and what they are called with."""
    folder = stack.enter_context(TemporaryDirectory(prefix="precall-"))
    secret, token = secrets.token_hex(16), secrets.token_hex(16)
    telemetry = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "LOG_LEVEL": "WARNING"}
    status.update("starting the emulator of the ElevenLabs API")
    _, emulator = stack.enter_context(
        running("emulator", {"EMULATOR_PORT": "0", "EMULATOR_API_KEY": "no-key-needed"})
    )
    status.update("starting the cloner")
    cloner, cloner_address = stack.enter_context(
        running(
            "cloner",
            {
                "CLONER_PORT": "0",
                "DATABASE_URL": f"sqlite:///{folder}/precall.sqlite3",
                "ELEVENLABS_BASE_URL": emulator,
                "ELEVENLABS_API_KEY": "no-key-needed",
                "REQUIRE_CONSENT": "true",
                "VOICE_CLONE_KEEP_HOURS": "0",
                **telemetry,
            },
        )
    )
    status.update("starting the gateway")
    gateway, gateway_address = stack.enter_context(
        running(
            "gateway",
            {
                "PRECALL_WEBHOOK_HOST": "127.0.0.1",
                "PRECALL_WEBHOOK_PORT": "0",
                "CLONER_TARGET": cloner_address,
                "ELEVENLABS_WEBHOOK_SECRET": secret,
                "CONVERSATION_INIT_TOKEN": token,
                **telemetry,
            },
        )
    )
    addresses = {"emulator": emulator, "cloner": cloner_address, "gateway": gateway_address}
    return addresses, [gateway, cloner], secret, token


def _cleaned(actors: Actors) -> bool:
    """Waits until Ivan's voice is gone."""
    until = time.monotonic() + CLEANED_SECONDS
    while any(IVAN.name in name for name in actors.voices()):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _heard(call: dict[str, object]) -> str:
    return (
        f"the agent says “{call['first_message']}” in {call['voice_id']}" if call["voice_id"] else "not heard"
    )


def _since(moment: float) -> str:
    return f"{time.monotonic() - moment:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
