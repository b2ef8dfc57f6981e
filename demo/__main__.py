"""Starts everything on this machine, lives through three calls, and shows what was answered and traced."""

import argparse
import io
import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Never

import httpx
from rich.console import Console

from demo.actors import ANSWER_SECONDS, Actors
from demo.collector import Collector
from demo.ending import end_in_order
from demo.processes import ProcessFailed
from demo.screen import Screen
from demo.story import MARIA, Story, live
from demo.system import System, start

EXAMPLE = Path(__file__).parent.parent / "examples" / "deliver.py"
# The processes send their spans twice a second: a trace that has ended and not grown for so long is whole.
QUIET_SECONDS = 1.5
# Whoever is in a hurry may set how long ElevenLabs takes.
LATENCIES = ("EMULATOR_CREATE_LATENCY_SECONDS", "EMULATOR_LATENCY_SECONDS")
SETTLED_SECONDS = 10


def main() -> int:
    """The exit status: 0 if every call got its caller's voice, and everything was cleaned up after."""
    parser = argparse.ArgumentParser(prog="just demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up after the story, until Ctrl-C")
    parser.add_argument(
        "--verbose", action="store_true", help="show all of every answer and every step of a trace"
    )
    chosen = parser.parse_args()
    end_in_order()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal knows every name, or a line's bars
    console = Console(highlight=False)
    try:
        return _demo(console, keep=chosen.keep, verbose=chosen.verbose)
    except ProcessFailed as failure:
        console.print(str(failure), style="red")
        return 1
    except OSError as failure:
        # The terminal or the reader of the output is gone, so what is still buffered can go nowhere either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(failure, BrokenPipeError) else 128 + signal.SIGHUP


def _demo(console: Console, *, keep: bool, verbose: bool) -> int:
    began = time.monotonic()
    with ExitStack() as stack, console.status("") as status:
        screen = Screen(console, status, verbose=verbose)
        collector = stack.enter_context(Collector().listening())
        http = stack.enter_context(httpx.Client(timeout=ANSWER_SECONDS, trust_env=False))
        latencies = {name: os.environ[name] for name in LATENCIES if name in os.environ}
        system = start(stack, status, collector.endpoint, of_emulator=latencies)
        screen.tell(
            f"up in {screen.since(began)}: gateway {system.gateway}, cloner {system.cloner}, "
            f"emulator {system.emulator}"
        )
        actors = Actors(
            http, gateway=system.gateway, cloner=system.cloner, emulator=system.emulator, secret=system.secret
        )
        actors.configure(system.token)
        story = live(screen, actors)
        screen.busy("the last spans are on their way")
        if keep:
            _settle(collector)
        else:
            system.stop()
        _show(screen, collector, story)
        screen.tell(f"done in {screen.since(began)}")
        if keep:
            screen.busy("up until Ctrl-C")
            _keep(screen, collector, system)
    return 0 if story.well else 1


def _show(screen: Screen, collector: Collector, story: Story) -> None:
    """Shows every answer with its trace and, at the end, where a full screen stops, the story in short."""
    traces = {call.route: iter(collector.traces(call.route)) for call in story.calls}
    for call in story.calls:
        screen.heading(call.title)
        screen.answer(call.answer)
        trace_id = next(traces[call.route])
        screen.trace(trace_id, collector.trace(trace_id))
    screen.heading("What the end of Ivan's call did")
    for work in ("restore agent", "delete voice"):
        for trace_id in collector.traces(work):
            screen.trace(trace_id, collector.trace(trace_id))
    screen.heading("In short")
    widest = max(len(call.title) for call in story.calls)
    for call in story.calls:
        screen.tell(f"{call.title:{widest}}  {call.voice_id or 'not heard':20}  {call.took}")


def _settle(collector: Collector) -> None:
    """Waits until no span has arrived for a while."""
    until = time.monotonic() + SETTLED_SECONDS
    while collector.quiet() < QUIET_SECONDS and time.monotonic() < until:
        time.sleep(0.1)


def _keep(screen: Screen, collector: Collector, system: System) -> Never:
    """Shows how to call the gateway, and the trace of each call that is made. Ends by a signal alone."""
    screen.heading("Still up, until Ctrl-C. In another terminal:")
    screen.paste(
        "a signed delivery of a caller's sample; --help lists the options",
        f"ELEVENLABS_WEBHOOK_SECRET={system.secret} \\",
        f"python3 {shlex.quote(str(EXAMPLE))} {system.gateway} \\",
        "    --consent 'agreed in the demo'",
    )
    screen.paste(
        "what ElevenLabs asks when Maria calls",
        f"curl -H 'Authorization: Bearer {system.token}' \\",
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"caller_id": "{MARIA.number}", "agent_id": "agent_demo"}}\' \\',
        f"    {system.gateway}/webhook/conversation-init",
    )
    shown = set(collector.whole(QUIET_SECONDS))
    while True:
        time.sleep(0.5)
        for trace_id in collector.whole(QUIET_SECONDS):
            if trace_id not in shown:
                shown.add(trace_id)
                screen.trace(trace_id, collector.trace(trace_id))


if __name__ == "__main__":
    sys.exit(main())
