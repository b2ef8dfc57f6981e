"""What was done and answered, and what never may be, at whatever moment it is looked at."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from precall.v1 import cloning_pb2 as pb

from emulator import Emulator
from emulator.voices import Voice
from tests.property.steps import AGENTS, CALLERS

__all__ = ["FOREVER", "PEOPLE", "Answer", "Event", "Judge", "Opened", "Violated", "sharing"]

FOREVER = float("inf")
PRESUMED, CALL_MAX = 900.0, 7_200.0
# The first two call from one number.
PEOPLE = (
    pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number="+31612345678"),
    pb.Caller(name="Maria", phone_number="+31612345678"),
    pb.Caller(name="Piet", phone_number="+31687654321"),
)


class Violated(AssertionError):
    """Something was seen that must never be. The text tells what, and everything that led to it."""


class Event(msgspec.Struct):
    """Something that was done, to one caller or to all (None)."""

    kind: str
    caller: int | None
    began: float
    ended: float = FOREVER
    amount: float = 0.0


class Answer(msgspec.Struct):
    """What a delivery was answered."""

    caller: int
    agent: str
    conversation: str
    began: float
    ended: float
    voice_id: str
    updated: bool


class Opened(msgspec.Struct):
    """What the opening of a caller's call was answered, of which it told somebody's number."""

    caller: int
    number: int
    agent: str
    conversation: str
    began: float
    ended: float
    voice_id: str


class Kept(msgspec.Struct):
    """Until when a voice is there at the least, since it was last taken ahead of time, and by what."""

    until: float
    since: float
    by: Event


def sharing(caller: int) -> list[int]:
    """Whoever calls from the caller's number."""
    return [n for n in CALLERS if PEOPLE[n].phone_number == PEOPLE[caller].phone_number]


class Judge:
    """Remembers what was done and answered, and holds it against the design.

    An idle voice is kept for `keep` seconds, one that was taken ahead of time for `keep_enrolled`; `auto` says
    that an agent is given a voice only while nobody else calls. What is wrong stands in `wrong`.
    """

    def __init__(
        self,
        provider: Emulator,
        log: Path,
        clock: Callable[[], float],
        *,
        keep: float,
        keep_enrolled: float,
        auto: bool,
    ) -> None:
        self.provider = provider
        self.log = log
        self.clock = clock
        self.keep = keep
        self.keep_enrolled = keep_enrolled
        self.auto = auto
        self.events: list[Event] = []
        self.answers: list[Answer] = []
        self.openings: list[Opened] = []
        self.kept: dict[str, Kept] = {}
        self.makers: dict[str, int] = {}
        self.made: dict[str, int] = {}
        self.conversations: dict[str, float] = {}
        self.call_ids: dict[str, str] = {}
        self.delivered_ids: dict[str, str] = {}
        self.unsure: set[str] = set()
        self.wrong: list[str] = []
        self.story: list[str] = []
        self.began = time.monotonic()
        self.foreign: dict[str, Voice] = {}

    def watch(self) -> None:
        """Notes who each voice was made of, and looks at what is deleted and what agents are given."""
        self.foreign = {voice.voice_id: copy.deepcopy(voice) for voice in self.provider.voices.custom}
        put, remove, patch = self.provider.voices.put, self.provider.voices.remove, self.provider.agents.patch
        self._remove = remove

        def noted_put(voice: Voice) -> Voice:
            self.made[voice.voice_id] = self.makers[voice.samples[0].hash]
            self.tell(f"    made {voice.voice_id} of {self.made[voice.voice_id]}")
            return put(voice)

        def noted_remove(voice_id: str) -> None:
            remove(voice_id)
            self.tell(f"    deleted {voice_id}")
            if voice_id not in self.made:
                self.wrong.append(f"{voice_id}, which is somebody else's, was deleted")
            for agent in AGENTS:
                if self._spoken(agent)[0] == voice_id:
                    self.wrong.append(f"{voice_id} was deleted while {agent} spoke with it")
            self._judge_kept(voice_id)

        def noted_patch(agent: str, body: dict[str, object]) -> dict[str, object]:
            changed = patch(agent, body)
            voice_id, first_message = self._spoken(agent)
            self.tell(f"    {agent} has {voice_id}, {first_message!r}")
            maker = self.made.get(voice_id)
            if maker is not None and not self._delivered(agent, "", maker):
                self.wrong.append(f"{agent} has the voice of {maker}, who was not delivered there")
            return changed

        self.provider.voices.put, self.provider.voices.remove = noted_put, noted_remove
        self.provider.agents.patch = noted_patch

    def check(self) -> None:
        """Raises Violated if something was seen that must never be."""
        if not self.wrong:
            self._check_bounds()
            self._check_others()
        if self.wrong:
            raise Violated("\n".join([*self.wrong, "", *self.story, "", *self._last_lines()]))

    # What answers may say.

    def judge_delivery(self, told: Answer, answer: pb.PrepareCallResponse) -> None:
        """What a delivery may be answered, beside what was answered and done before."""
        self.answers.append(told)
        name = PEOPLE[told.caller].name
        if self.made.get(told.voice_id) != told.caller:
            self.wrong.append(
                f"{told.caller} was answered {told.voice_id}, made of {self.made.get(told.voice_id)}"
            )
        if name not in answer.first_message or not answer.voice.name.startswith(f"{name}_Clone_"):
            self.wrong.append(f"{told.caller} was greeted {answer.first_message!r} as {answer.voice.name}")
        self._judge_call(told, answer)
        ends = self._during(f"ended {told.agent} {told.conversation}", told.caller, 0.0)
        # A call that is over is told the voice that it had.
        if told.voice_id not in self.provider.voices and not ends and not self._may_be_gone(told, told.began):
            self.wrong.append(f"{told.caller} was answered {told.voice_id}, which is gone")
        for other in self.answers[:-1]:
            if (other.agent, other.conversation) == (told.agent, told.conversation):
                if other.voice_id != told.voice_id and not self._may_be_gone(told, other.began):
                    self.wrong.append(
                        f"{told.conversation} had {other.voice_id} and was answered {told.voice_id}"
                    )
            elif self.auto and other.agent == told.agent and other.caller != told.caller:
                self._judge_sharing(told, other)
        for opening in self.openings:
            if self.auto and opening.agent == told.agent and opening.conversation != told.conversation:
                self._judge_opened_there(told, opening)
        # Who is forgotten takes along the calls that their number let assume to be theirs.
        forgot = any(self._during("forgot", caller, 0.0) for caller in CALLERS)
        if told.updated and not forgot and any(end.amount and end.ended < told.began for end in ends):
            self.wrong.append(f"{told.conversation} was over and {told.agent} was updated for it")

    def judge_opening(self, told: Opened, answer: pb.OpenCallResponse, known: set[int]) -> None:
        """What the opening of a call may be answered; `known` are who was known by its number before."""
        self.openings.append(told)
        self._judge_call(told, answer)
        if not told.voice_id:
            if answer.name or answer.first_message:
                self.wrong.append(f"{told.conversation} was greeted {answer.first_message!r} without a voice")
            return
        owner = self.made.get(told.voice_id)
        if owner is None:
            self.wrong.append(
                f"{told.conversation} was opened with {told.voice_id}, which is somebody else's"
            )
            return
        name = PEOPLE[owner].name
        if answer.name != name or name not in answer.first_message:
            self.wrong.append(f"{told.conversation} was greeted {answer.first_message!r} as {answer.name}")
        self._judge_assumed(told, owner, known)
        ended = self._during(f"ended {told.agent} {told.conversation}", told.caller, 0.0)
        gone = any(self._during(kind, owner, told.began) for kind in ("forgot", "replaced"))
        # ElevenLabs is not asked for a voice each time, and not for long.
        gone = gone or bool(self._during("vanished", owner, 0.0))
        gone = gone or self._jumped(self.conversations[f"{told.agent} {told.conversation}"]) >= CALL_MAX - 60
        if told.voice_id not in self.provider.voices and not ended and not gone:
            self.wrong.append(f"{told.conversation} was opened with {told.voice_id}, which is gone")

    def judge_ahead(self, event: Event, voice: pb.Voice, *, until: float) -> None:
        """Whom a voice that was taken ahead may be of; it is kept until then."""
        caller = event.caller
        assert caller is not None
        if self.made.get(voice.voice_id) != caller or not voice.name.startswith(f"{PEOPLE[caller].name}_"):
            self.wrong.append(
                f"{caller} was taken ahead as {voice.voice_id}, made of {self.made.get(voice.voice_id)}"
            )
        if event.kind == "replaced":
            meanwhile = [
                other for kind in ("forgot", "replaced") for other in self._during(kind, caller, event.began)
            ]
            if meanwhile != [event]:
                return
        before = self.kept.get(voice.voice_id)
        self.kept[voice.voice_id] = Kept(max(until, before.until if before else until), event.began, event)
        if voice.voice_id not in self.provider.voices:
            self._judge_kept(voice.voice_id)

    def _judge_call(
        self, told: Answer | Opened, answer: pb.PrepareCallResponse | pb.OpenCallResponse
    ) -> None:
        """The call has an id of its own, deliveries one always, and its agent had no caller's voice before."""
        call = f"{told.agent} {told.conversation}"
        named = [self.call_ids.setdefault(answer.call_id, call) == call]
        if isinstance(told, Answer):
            named.append(self.delivered_ids.setdefault(call, answer.call_id) == answer.call_id)
        if not all(named):
            self.wrong.append(f"{call} is {answer.call_id}")
        if answer.agent_before.voice_id in self.made and told.agent not in self.unsure:
            self.wrong.append(f"{told.agent} is said to have had {answer.agent_before.voice_id} before")

    def _judge_assumed(self, told: Opened, owner: int, known: set[int]) -> None:
        """Whose voice a call may be opened with: of who it is known to be of, else of the one at its number."""
        deliveries = self._delivered(told.agent, told.conversation, told.caller)
        if owner == told.caller and deliveries:
            return
        forgot = min((event.began for event in self.events if event.kind == "forgot"), default=FOREVER)
        if any(event.ended < told.began for event in deliveries) and forgot == FOREVER:
            self.wrong.append(f"{told.conversation} was delivered and then opened as {owner}'s")
        # A call that is opened again keeps its voice; from another number it is another call.
        openings = [
            event
            for event in self.events
            if event.kind == f"opened {told.agent} {told.conversation}"
            and event.began < told.ended
            and event.caller in sharing(told.number)
        ]
        if owner not in sharing(told.number):
            self.wrong.append(f"{told.conversation} was opened as {owner}'s, who has not that number")
        forgotten = any(self._during("forgot", caller, told.began) for caller in sharing(told.number))
        if len(known) > 1 and len(openings) == 1 and not forgotten:
            self.wrong.append(f"{told.conversation} was opened as {owner}'s, and {known} have that number")

    def _judge_kept(self, voice_id: str) -> None:
        """A voice that was taken ahead is not gone before its time, unless something was done to it."""
        kept, caller = self.kept.get(voice_id), self.made.get(voice_id)
        if kept is None or self.clock() >= kept.until:
            return
        # What the one that made it gave up was the voice before.
        done = any(
            event is not kept.by
            for kind in ("forgot", "replaced", "vanished")
            for event in self._during(kind, caller, kept.since)
        )
        # ElevenLabs is asked for a voice again after ten minutes only.
        lost = any(self._jumped(event.began) < 700 for event in self._during("vanished", caller, 0.0))
        if not done and not lost and not self._during("filled", None, 0.0):
            self.wrong.append(f"{voice_id} of {caller} is gone {kept.until - self.clock():.0f} s early")

    def _judge_sharing(self, told: Answer, other: Answer) -> None:
        """An agent is not updated while another caller's call there is known to be in progress."""
        first = self.conversations[f"{other.agent} {other.conversation}"]
        over = (
            self._during(f"ended {other.agent} {other.conversation}", other.caller, 0.0)
            or self._during(f"ended {told.agent} {told.conversation}", told.caller, 0.0)
            or self._during("forgot", other.caller, 0.0)
            or self._during("forgot", told.caller, 0.0)
            or self._jumped(min(first, told.began)) >= PRESUMED - 60
        )
        if told.updated and not over and (other.updated or other.ended < told.began):
            self.wrong.append(f"{told.agent} was updated for {told.conversation} during {other.conversation}")

    def _judge_opened_there(self, told: Answer, opening: Opened) -> None:
        """Nor while a call there was opened, unless it may be the same caller's."""
        numbers = [
            event.caller
            for event in self.events
            if event.kind == f"opened {opening.agent} {opening.conversation}" and event.caller is not None
        ]
        theirs = opening.caller == told.caller or any(told.caller in sharing(number) for number in numbers)
        over = (
            self._during(f"ended {opening.agent} {opening.conversation}", opening.caller, 0.0)
            or any(self._during("forgot", caller, 0.0) for caller in CALLERS)
            or self._jumped(self.conversations[f"{opening.agent} {opening.conversation}"]) >= PRESUMED - 60
        )
        if told.updated and not theirs and not over and opening.ended < told.began:
            self.wrong.append(
                f"{told.agent} was updated for {told.conversation}, and {opening.conversation} was open"
            )

    def _may_be_gone(self, told: Answer, since: float) -> bool:
        """Whether anything was done since then that may have cost the call its voice."""
        if any(self._during(kind, told.caller, since) for kind in ("forgot", "replaced", "vanished")):
            return True
        # The provider is asked for a voice again after ten minutes only.
        if any(self._jumped(event.began) < 700 for event in self._during("vanished", told.caller, 0.0)):
            return True
        jumped = self._jumped(self.conversations[f"{told.agent} {told.conversation}"])
        if not self._during(f"ended {told.agent} {told.conversation}", told.caller, 0.0):
            return jumped >= CALL_MAX - 60
        return jumped >= self.keep - 60 or bool(self._during("filled", None, 0.0))

    # What must be true beside that.

    def _check_bounds(self) -> None:
        """No caller costs more voices than something that was done explains."""
        for caller in CALLERS:
            made = sum(1 for maker in self.made.values() if maker == caller)
            if made > 1 and made > (most := 1 + self._excuses(caller)):
                self.wrong.append(f"{made} voices were made of {caller}, where {most} can be explained")

    def _excuses(self, caller: int) -> float:
        count = 0.0
        filled = bool(self._during("filled", None, 0.0))
        for event in self.events:
            if event.caller not in (None, caller):
                continue
            match event.kind.partition(" ")[0]:
                case "killed" | "vanished":
                    count += 1
                case "broke" if event.kind == "broke create":
                    count += event.amount
                case "jumped" if event.amount >= 5:
                    count += 1
                case "forgot" | "replaced":
                    count += 2
                case "ended" if self.keep == 0:
                    count += 1
                case "enrolled" if self.keep == 0 and self.keep_enrolled == 0:
                    count += 1
                case "delivered" | "enrolled" if filled:
                    count += 1
        return count

    def _check_others(self) -> None:
        for voice_id, voice in self.foreign.items():
            if voice_id not in self.provider.voices or self.provider.voices[voice_id] != voice:
                self.wrong.append(f"{voice_id}, which is somebody else's, was touched")

    # What everything above is made of.

    def tell(self, line: str) -> None:
        """Adds a line to the story of this world."""
        self.story.append(f"{time.monotonic() - self.began:7.3f} {line}")

    def _note(
        self, kind: str, caller: int | None = None, ended: float = 0.0, *, amount: float = 0.0
    ) -> Event:
        now = time.monotonic()
        event = Event(kind, caller, now, ended or now, amount)
        self.events.append(event)
        return event

    def _during(self, kind: str, caller: int | None, since: float) -> list[Event]:
        """What was done and may still have taken effect since then."""
        return [
            event
            for event in self.events
            if event.kind == kind and event.caller == caller and event.ended + 0.5 >= since
        ]

    def _delivered(self, agent: str, conversation: str, caller: int) -> list[Event]:
        """The deliveries of a caller's at an agent, for the conversation or for any."""
        begins = f"delivered {agent} {conversation}"
        return [event for event in self.events if event.kind.startswith(begins) and event.caller == caller]

    def _jumped(self, since: float) -> float:
        return sum(event.amount for event in self.events if event.kind == "jumped" and event.began >= since)

    def _ours(self) -> list[Voice]:
        return [voice for voice in self.provider.voices if voice.voice_id in self.made]

    def _spoken(self, agent: str) -> tuple[str, str]:
        config = self.provider.agents[agent]["conversation_config"]
        return config["tts"]["voice_id"], config["agent"]["first_message"]

    def _last_lines(self) -> list[str]:
        return self.log.read_text().splitlines()[-150:] if self.log.exists() else []
