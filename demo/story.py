"""The three calls of the demo: what happens, and what came of it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from demo.actors import Actors, Person
from demo.screen import Screen

__all__ = ["Story", "Told", "live"]

MARIA = Person("Maria", "+31687654321", "form 17, signed in the shop")
IVAN = Person("Ivan", "+31612345678", "agreed by telephone, recording 4711")
# "At once" means within two seconds, and the first try may find that the agent is still being put back.
CLEANED_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Told:
    """One call: who asked what for it, the answer, and the voice in which the agent spoke."""

    title: str
    route: str
    answer: dict[str, Any]
    voice_id: str
    took: str


@dataclass(frozen=True, kw_only=True)
class Story:
    """The calls, and whether all of them went well and were cleaned up after."""

    calls: tuple[Told, ...]
    well: bool


def live(screen: Screen, actors: Actors) -> Story:
    """Runs through the three calls, and prints them as they happen."""

    @contextmanager
    def step(title: str) -> Iterator[list[str]]:
        """Prints what is done, what came of it, and how long it took."""
        screen.busy(title)
        sent, outcome = time.monotonic(), list[str]()
        yield outcome
        screen.tell(f"{title} ({screen.since(sent)}):", *outcome)

    with step("Maria hands in a recording ahead of time; cloning takes 2 to 5 s") as told:
        told.append(f"her voice is {actors.enrol(MARIA).voice_id}")
    with step("Maria calls; ElevenLabs asks the initiation webhook, without a sample") as told:
        maria = actors.rings(MARIA)
        told += [f"answered in {maria['webhook_ms']:.0f} ms", *_heard(maria)]
    with step("Maria hangs up") as told:
        told.append(f"the event is answered {actors.hangs_up(maria)}")

    with step("Ivan calls; a bridge delivers his sample as JSON") as told:
        sent = time.monotonic()
        first = actors.deliver(IVAN, "conv_bridge_1", "json").json()
        cloned_in = screen.since(sent)
        ivan = actors.rings(IVAN, first.get("conversation_initiation_client_data"))
        told += [first["status"], *_heard(ivan)]
    with step("Ivan hangs up; the agent gets back what it had, his voice goes") as told:
        told.append(f"the event is answered {actors.hangs_up(ivan)}")
        cleaned = _cleaned(actors)
        told.append(f"voices left at ElevenLabs: {', '.join(actors.voices())}")

    with step("Maria calls; a bridge delivers her sample as a form; she is known") as told:
        sent = time.monotonic()
        second = actors.deliver(MARIA, "conv_bridge_2", "form").json()
        found_in = screen.since(sent)
        again = actors.rings(MARIA, second.get("conversation_initiation_client_data"))
        told += [second["status"], *_heard(again)]

    calls = (
        Told(
            title="Maria's first call",
            route="POST /webhook/conversation-init",
            answer=json.loads(maria["webhook_body"]),
            voice_id=maria["voice_id"],
            took=f"found in {maria['webhook_ms']:.0f} ms",
        ),
        Told(
            title="Ivan's call",
            route="POST /webhook",
            answer=first,
            voice_id=ivan["voice_id"],
            took=f"cloned in {cloned_in}, " + ("deleted" if cleaned else "not deleted yet"),
        ),
        Told(
            title="Maria's second call",
            route="POST /webhook",
            answer=second,
            voice_id=again["voice_id"],
            took=f"found in {found_in}",
        ),
    )
    heard = all(call["status"] != "failed" and call["voice_id"] for call in (maria, ivan, again))
    well = heard and cleaned and first["status"] == second["status"] == "success"
    return Story(calls=calls, well=well)


def _cleaned(actors: Actors) -> bool:
    """Waits until Ivan's voice is gone."""
    until = time.monotonic() + CLEANED_SECONDS
    while any(IVAN.name in name for name in actors.voices()):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _heard(call: dict[str, Any]) -> list[str]:
    if not call["voice_id"]:
        return ["not heard"]
    return [f"the agent says “{call['first_message']}”", f"in the voice {call['voice_id']}"]
