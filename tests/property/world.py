"""A provider, a database and two replicas, what was done to them, and what must be true of them.

`World.do` takes a step, after which `check` raises Violated if anything is wrong that never may be;
`settle` waits for a quiet point and tells what is wrong there.
"""

import asyncio
import hashlib
import io
import itertools
import random
import time
import wave
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from cloner.registry import opened
from cloner.voices.callers import Caller, Identities, Identity
from emulator import Emulator, Fault, Latency, Settings
from emulator.agents import PREMADE
from emulator.voices import Voice
from tests.kit.cloning import TICK_SECONDS
from tests.kit.failures import read
from tests.kit.forked import Clock, Forked
from tests.kit.rows import rows as rows_of
from tests.property.judge import FOREVER, PEOPLE, Answer, Judge, Opened, Violated, sharing
from tests.property.steps import (
    AGENTS,
    CALLERS,
    CREATE_FAULTS,
    FAULTS,
    REQUESTS,
    UNSEEN_SEARCHES,
    Break,
    Deliver,
    Edit,
    End,
    Enrol,
    Fill,
    Forget,
    Jump,
    Kill,
    Mend,
    Open,
    Pause,
    Quiet,
    Replace,
    Start,
    Vanish,
)  # fmt: skip

__all__ = ["Violated", "World", "world"]

SECRETS = {"elevenlabs_api_key": "key-of-the-emulator", "caller_hash_key": "key-of-the-hashes"}
DEPLOYMENT = "tested"
ROOM = 500
PATIENT, IMPATIENT = 10.0, 0.3
LATER = {
    "PROVIDER_BUSY", "PROVIDER_UNAVAILABLE", "PROVIDER_TIMEOUT", "PROVIDER_PROTOCOL", "VOICE_SLOTS_EXHAUSTED",
    "VOICE_NEEDS_VERIFICATION", "AGENT_REJECTED", "RATE_LIMITED", "NOT_FOUND", "NO ANSWER",
}  # fmt: skip
SETTLE_SECONDS = 25.0
LONGEST_UPDATE = 30.0
# Longer than any row is kept.
AGES = 31 * 86_400.0


@cache
def identity(caller: int) -> Identity:
    """How the registry knows a caller."""
    person = PEOPLE[caller]
    told = Caller(name=person.name, date_of_birth=person.date_of_birth, phone_number=person.phone_number)
    identities = Identities(SECRETS["caller_hash_key"].encode(), "caller")
    return identities.identify(told, sample_digest="", call_id="")


@cache
def sample(caller: int, take: int) -> bytes:
    """A recording of noise, which is nobody else's."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(random.Random(f"{caller} {take}").randbytes(2 * 16_000 * 3 + 3_200))
    return file.getvalue()


class World(Judge):
    """One deployment. `settings` are the operator's."""

    def __init__(self, url: str, folder: Path, clock: Clock, settings: dict[str, Any]) -> None:
        provider = Emulator(
            Settings(
                api_key=SECRETS["elevenlabs_api_key"], latency=Latency(0, 0.005), create_latency=Latency(0.01, 0.05),
                voice_limit=ROOM, monthly_limit=None,
            ),
            clock=clock,
        )  # fmt: skip
        super().__init__(
            provider,
            folder / "log",
            clock,
            keep=settings["voice_clone_keep_hours"] * 3_600,
            keep_enrolled=settings["enrolment_keep_days"] * 86_400,
            auto=settings["agent_update"] == "auto",
        )
        self.clock = clock
        self.settings = {
            "cloner_port": 0, "database_url": url, "shutdown_grace_seconds": 0.0, **settings,
        }  # fmt: skip
        self.replicas: dict[int, Forked] = {}
        self._one_at_a_time = {0: asyncio.Lock(), 1: asyncio.Lock()}
        self.stubs: dict[int, tuple[grpc.aio.Channel, CloningServiceStub]] = {}
        self.pending: set[asyncio.Task[None]] = set()
        self.takes = dict.fromkeys(CALLERS, 0)
        self.makers = {hashlib.sha256(sample(caller, 0)).hexdigest(): caller for caller in CALLERS}
        self.call_ids: dict[str, str] = {}
        self.forgotten: dict[int, float] = {}
        self.touched: dict[int, float] = {}
        self.touching: Counter[int] = Counter()
        self._place_others()
        self.had = {agent: self._spoken(agent) for agent in AGENTS}
        self.watch()

    def _place_others(self) -> None:
        """Voices that look like ours to a careless eye."""
        label, old = (
            {"precall_deployment": DEPLOYMENT, "precall": f"precall-{DEPLOYMENT}-1"},
            int(self.clock()) - 100_000,
        )
        others = (
            Voice(voice_id="theirs1", name="Ivan_Clone", created_at_unix=old),
            Voice(
                voice_id="theirs2",
                name="x",
                description=f"precall-{DEPLOYMENT}-2",
                created_at_unix=old + 200_000,
            ),
            Voice(
                voice_id="theirs3",
                name="x",
                labels={**label, "precall_deployment": "another"},
                created_at_unix=old + 200_000,
            ),
            Voice(voice_id="theirs4", name="x", labels=label, created_at_unix=old),
        )
        for voice in others:
            self.provider.voices.put(voice)
        for agent in AGENTS:
            self.provider.agents.put(agent, {"name": agent})

    # What is done.

    async def do(self, step: Any) -> None:
        """Takes a step."""
        self.tell(str(step))
        match step:
            case Deliver(times=times):
                await self._begin(
                    [self._deliver(step, step.replica + n) for n in range(times)], wait=step.wait
                )
            case Open(times=times):
                await self._begin([self._open(step, step.replica + n) for n in range(times)], wait=step.wait)
            case Enrol():
                await self._begin([self._enrol(step)], wait=step.wait)
            case End():
                await self._begin([self._end(step)], wait=True)
            case Forget():
                await self._begin([self._forget(step)], wait=step.wait)
            case Replace():
                await self._begin([self._replace(step)], wait=step.wait)
            case Break():
                self._break(step)
            case Mend():
                self.provider.faults.clear()
            case Fill(full):
                self.provider.voices.limit = len(self.provider.voices.custom) if full else ROOM
                if full:
                    self._note("filled")
            case Vanish(caller):
                self._vanish(caller)
            case Edit():
                self._edit(step)
            case Kill(replica):
                await self._kill(replica)
            case Start(replica):
                await self._start(replica)
            case Jump(seconds):
                # A provider that changes an agent half a minute after it was asked to is beyond the design.
                if seconds >= LONGEST_UPDATE and self._updating():
                    self.provider.faults.release()
                    until = time.monotonic() + 1
                    while self._updating() and time.monotonic() < until:
                        await asyncio.sleep(0.02)
                self._jump(seconds)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Quiet(caller):
                await self.settle()
                await self._probe(caller)
        self.check()

    async def _begin(self, work: Iterable[Any], *, wait: bool) -> None:
        """Lets the work go on by itself, once it is done or has had a second."""
        tasks = {asyncio.create_task(one) for one in work}
        self.pending |= tasks
        for task in tasks:
            task.add_done_callback(self.pending.discard)
        if wait:
            done, _ = await asyncio.wait(tasks, timeout=1)
            for task in done:
                task.result()
        else:
            await asyncio.sleep(0)

    async def _deliver(self, step: Deliver, replica: int) -> str:
        conversation = f"conv_{step.caller}_{step.conversation}"
        began = time.monotonic()
        self.conversations.setdefault(f"{step.agent} {conversation}", began)
        self._touches(step.caller)
        request = pb.PrepareCallRequest(
            agent_id=step.agent, conversation_id=conversation, caller=PEOPLE[step.caller],
            sample=sample(step.caller, self.takes[step.caller]),
        )  # fmt: skip
        event = self._note(f"delivered {step.agent} {conversation}", step.caller, FOREVER)
        answer = await self._ask(replica, "PrepareCall", request, PATIENT if step.patient else IMPATIENT)
        if answer != "NO ANSWER":
            event.ended = time.monotonic()
        if isinstance(answer, str):
            return answer
        ended = event.ended
        self._touched(step.caller, ended)
        told = Answer(
            step.caller, step.agent, conversation, began, ended, answer.voice.voice_id, answer.agent_updated
        )
        self.call_ids[f"{step.agent} {conversation}"] = answer.call_id
        self.judge_delivery(told, answer)
        return "OK"

    def _touches(self, caller: int) -> None:
        """Something about the caller is under way; if it is never answered, until the next quiet point."""
        self.touching[caller] += 1
        self.touched[caller] = FOREVER

    def _touched(self, caller: int, ended: float) -> None:
        self.touching[caller] -= 1
        if self.touching[caller] <= 0:
            self.touched[caller] = ended

    async def _open(self, step: Open, replica: int) -> None:
        conversation = f"{'line' if step.line else 'conv'}_{step.caller}_{step.conversation}"
        request = pb.OpenCallRequest(
            agent_id=step.agent, phone_number=PEOPLE[step.number].phone_number,
            conversation_id="" if step.line else conversation, call_sid=conversation if step.line else "",
        )  # fmt: skip
        began = time.monotonic()
        self.conversations.setdefault(f"{step.agent} {conversation}", began)
        known = await self._known_by(step.number)
        event = self._note(f"opened {step.agent} {conversation}", step.number, FOREVER)
        had = self._standing(step.agent)
        answer = await self._ask(replica, "OpenCall", request, PATIENT)
        if isinstance(answer, str):
            return
        event.ended = time.monotonic()
        self.call_ids[f"{step.agent} {conversation}"] = answer.call_id
        told = Opened(
            step.caller, step.number, step.agent, conversation, began, event.ended, answer.voice.voice_id
        )
        self.judge_opening(told, answer, known)
        if had is not None and had == self._standing(step.agent) and not answer.HasField("agent_before"):
            self.wrong.append(f"{conversation} was not told what {step.agent} had before {had[0]}")

    async def _enrol(self, step: Enrol) -> None:
        self._touches(step.caller)
        until = self.clock() + self.keep_enrolled
        event = self._note("enrolled", step.caller, FOREVER)
        request = pb.CloneVoiceRequest(
            caller=PEOPLE[step.caller], sample=sample(step.caller, self.takes[step.caller])
        )
        answer = await self._ask(step.replica, "CloneVoice", request, PATIENT if step.patient else IMPATIENT)
        if not isinstance(answer, str):
            event.ended = time.monotonic()
            self._touched(step.caller, event.ended)
            self.judge_ahead(event, answer.voice, until=until)

    async def _end(self, step: End) -> None:
        conversation, line = (f"{kind}_{step.caller}_{step.conversation}" for kind in ("conv", "line"))
        of_call, of_line = (self.call_ids.get(f"{step.agent} {one}", "") for one in (conversation, line))
        match step.way:
            case "call" if of_call:
                request, ended = pb.CompleteCallRequest(call_id=of_call), [conversation]
            case "line" if of_line:
                request, ended = pb.CompleteCallRequest(call_id=of_line), [line]
            case "both" if of_line:
                request = pb.CompleteCallRequest(
                    conversation_id=conversation, call_id=of_line, agent_id=step.agent
                )
                ended = [conversation, line]
            case _:
                request = pb.CompleteCallRequest(conversation_id=conversation, agent_id=step.agent)
                ended = [conversation]
        events = [self._note(f"ended {step.agent} {one}", step.caller, FOREVER) for one in ended]
        answer = await self._ask(step.replica, "CompleteCall", request, PATIENT)
        if not isinstance(answer, str):
            for event in events:
                event.ended, event.amount = time.monotonic(), float(answer.found)

    async def _forget(self, step: Forget) -> None:
        person = PEOPLE[step.caller]
        request = pb.ForgetCallerRequest(caller=person)
        who = [step.caller]
        if step.way == "number":
            request = pb.ForgetCallerRequest(caller=pb.Caller(phone_number=person.phone_number))
            who = [n for n in CALLERS if PEOPLE[n].phone_number == person.phone_number]
        elif step.way == "voice":
            known = [answer.voice_id for answer in self.answers if answer.caller == step.caller]
            request = pb.ForgetCallerRequest(voice_id=known[-1] if known else "nobodys")
        began = time.monotonic()
        events = [self._note("forgot", caller, FOREVER) for caller in who]
        answer = await self._ask(step.replica, "ForgetCaller", request, PATIENT)
        if isinstance(answer, str):
            return
        for caller, event in zip(who, events, strict=True):
            event.ended = time.monotonic()
            # A voice that was given up tells nobody any more whose it was.
            if step.way != "voice" and self.touched.get(caller, 0.0) < began:
                self.forgotten[caller] = began

    async def _replace(self, step: Replace) -> None:
        self.takes[step.caller] += 1
        self._touches(step.caller)
        new = sample(step.caller, self.takes[step.caller])
        self.makers[hashlib.sha256(new).hexdigest()] = step.caller
        until = self.clock() + self.keep_enrolled
        event = self._note("replaced", step.caller, FOREVER)
        request = pb.ReplaceVoiceRequest(caller=PEOPLE[step.caller], sample=new)
        answer = await self._ask(
            step.replica, "ReplaceVoice", request, PATIENT if step.patient else IMPATIENT
        )
        if isinstance(answer, str):
            return
        event.ended = time.monotonic()
        self._touched(step.caller, event.ended)
        self.judge_ahead(event, answer.voice, until=until)

    def _break(self, step: Break) -> None:
        method, path = REQUESTS[step.request]
        how = (CREATE_FAULTS if step.request == "create" else FAULTS)[step.how]
        fault = msgspec.convert({"method": method, "path": path, "times": step.times, **how}, Fault)
        self.provider.faults.set(*self.provider.faults, fault)
        self._note(f"broke {step.request}", amount=step.times)

    def _vanish(self, caller: int) -> None:
        self._note("vanished", caller)
        for voice in self._ours():
            if self.made[voice.voice_id] == caller:
                self.tell(f"    deleted {voice.voice_id} by hand")
                self._remove(voice.voice_id)

    def _edit(self, step: Edit) -> None:
        requests = [one for one in self.provider.requests if "agents" in one.path]
        # Whoever reads and then writes may overwrite this, which nobody could help.
        under_way = any(one.stage != "finished" for one in requests)
        failing = any(one.status != 200 and one.at > self.clock() - 3 for one in requests[-20:])
        if self.pending or under_way or failing or list(self.provider.faults):
            self.unsure.add(step.agent)
        agent, number = self.provider.agents[step.agent], len(self.story)
        voice, first_message = self.had[step.agent]
        if step.voice:
            voice = agent["conversation_config"]["tts"]["voice_id"] = PREMADE[number % 2 + 1][0]
        if step.first_message:
            first_message = agent["conversation_config"]["agent"]["first_message"] = f"Hello {number}"
        self.had[step.agent] = (voice, first_message)

    async def _kill(self, replica: int) -> None:
        async with self._one_at_a_time[replica]:
            killed = self.replicas.pop(replica, None)
            if killed is not None:
                self._note("killed")
                killed.kill()
                channel, _ = self.stubs.pop(replica)
                await channel.close()

    async def _start(self, replica: int) -> None:
        async with self._one_at_a_time[replica]:
            if replica not in self.replicas:
                environ = {name.upper(): str(value) for name, value in (SECRETS | self.settings).items()}
                started = self.replicas[replica] = Forked(
                    self.clock, self.log, environ, tick_seconds=TICK_SECONDS
                )
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{await started.port()}")
                self.stubs[replica] = (channel, CloningServiceStub(channel))

    def _jump(self, seconds: float) -> None:
        self._note("jumped", amount=seconds)
        self.clock.jump(seconds)

    async def _ask(self, replica: int, method: str, request: Any, seconds: float) -> Any:
        """The answer, or the reason why there is none. A replica that is dead is replaced by the other."""
        if not self.stubs:
            await self._start(replica % 2)
        _, stub = self.stubs.get(replica % 2) or next(iter(self.stubs.values()))
        began = time.monotonic()
        try:
            answer = await getattr(stub, method)(request, timeout=seconds)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as failure:
            reason = _reason(failure)
            self.tell(f"    {method} {_brief(request)}: {reason}")
            meant = set(LATER)
            if method == "OpenCall" or seconds < PATIENT:
                # A busy machine may need as long as an opening, or whoever is impatient, waits for it.
                meant |= {"REGISTRY_UNAVAILABLE", "DEADLINE_TOO_SHORT"}
            if any(self._during("forgot", caller, began) for caller in CALLERS):
                meant.add("CONSENT_MISSING")
            if reason not in meant:
                self.wrong.append(f"{method} was answered {reason}: {failure}")
            return reason
        self.tell(f"    {method} {_brief(request)}: {_brief(answer)}")
        return answer

    async def _probe(self, caller: int) -> None:
        """After a quiet point a call is answered, whatever was before."""
        step = Deliver(caller, AGENTS[0], len(self.story), 0, 1, patient=True, wait=True)
        outcome = await self._deliver(step, 0)
        if outcome != "OK":
            self.wrong.append(f"{caller} was not served at a quiet point: {outcome}")
        elif self.answers[-1].voice_id not in self.provider.voices:
            self.wrong.append(f"{caller} was given a voice at a quiet point that there is not")

    # What must be true at a quiet point.

    async def settle(self, *, over: bool = False) -> None:
        """Mends everything and waits until all is as it should be; with `over`, all calls have ended."""
        self.provider.faults.clear()
        self.provider.voices.limit = ROOM
        self._jump(9)
        await asyncio.gather(self._start(0), self._start(1))
        if self.pending:
            await asyncio.wait(self.pending, timeout=PATIENT + 5)
            assert not self.pending, "a request was never answered"
        ended = {event.kind for event in self.events if event.kind.startswith("ended ")}
        if over:
            ended = {f"ended {known}" for known in self.conversations}
            await self._ring(ended)
        wrong: list[str] = ["nothing was looked at"]
        # Enough for a janitor to come by until a search shows what was made; then nothing but time passes.
        past = max(8_000.0, self.keep_enrolled + 700)
        jumps = [past if over else 0.0, *[700.0] * UNSEEN_SEARCHES, 700.0]
        # Each jump makes both processes look dead to each other, and to finish what a dead one left takes two
        # seconds: time enough for that between the jumps, or they take it from each other for ever.
        later = itertools.cycle((0.0, 0.0, 10.0))
        made = len(self.made)
        until = time.monotonic() + SETTLE_SECONDS
        while wrong and not self.wrong and time.monotonic() < until:
            self._jump(jumps.pop(0) if jumps else next(later))
            self.tell("  settling")
            await self._ring(ended)
            looks = [self._unsettled, self._left] if over else [self._unsettled]
            wrong = await self._eventually_right(1.2, looks)
            if over and wrong and not jumps and len(self.made) > made:
                # A clone that was still under way has ended, and its voice is kept from then on.
                made = len(self.made)
                jumps = [past]
        if over and not wrong and not self.wrong:
            self._jump(AGES)
            wrong = await self._eventually_right(SETTLE_SECONDS, [self._written])
        if wrong:
            self.wrong += ["at a quiet point:", *wrong]
        self.check()
        self.touched = {caller: min(at, time.monotonic()) for caller, at in self.touched.items()}
        self.touching.clear()

    async def _ring(self, ended: set[str]) -> None:
        """Tells each end again, because a janitor that hears of one looks at once at what is due."""
        for replica, kind in enumerate(sorted(ended)):
            _, agent, conversation = kind.split()
            known, caller, number = conversation.split("_")
            way = "line" if known == "line" else "conversation"
            await self._end(End(int(caller), agent, int(number), replica, way))

    async def _eventually_right(
        self, seconds: float, looks: list[Callable[[], Awaitable[list[str]]]]
    ) -> list[str]:
        """What is still wrong after so long, or nothing as soon as all is right twice in a row."""
        until, right = time.monotonic() + seconds, 0
        while True:
            wrong = [line for look in looks for line in await look()]
            right = 0 if wrong else right + 1
            if right == 2 or (wrong and time.monotonic() > until):
                return wrong
            await asyncio.sleep(0.1)

    async def _unsettled(self) -> list[str]:
        """What is wrong for as long as something is under way, and after that must not be."""
        wrong: list[str] = []
        rows = await self._rows("voices")
        known = {row.voice_id: row.state for row in rows if row.state in ("ready", "deleting")}
        there = {voice.voice_id for voice in self._ours()}
        wrong += [
            f"{voice_id} is at the provider and not in the registry" for voice_id in there - known.keys()
        ]
        wrong += [
            f"{voice_id} is {known[voice_id]} and not at the provider" for voice_id in known.keys() - there
        ]
        wrong += [
            f"{row.marker} of {row.caller[:6]} is still intended" for row in rows if row.state == "intended"
        ]
        given = {row.agent_id: row.voice_id for row in await self._rows("agents") if row.marker}
        for agent in AGENTS:
            voice_id, _ = self._spoken(agent)
            if voice_id not in self.provider.voices:
                wrong.append(f"{agent} speaks with {voice_id}, which is gone")
            elif voice_id in self.made and given.get(agent) != voice_id:
                wrong.append(f"{agent} speaks with {voice_id}, and nobody knows")
        return wrong + await self._remembered(rows)

    async def _remembered(self, rows: list[Any]) -> list[str]:
        """Who was forgotten, and did not call again, is not known."""
        wrong: list[str] = []
        for caller, at in self.forgotten.items():
            if self.touched.get(caller, 0.0) > at:
                continue
            hashed = identity(caller).caller
            wrong += [
                f"{caller} was forgotten and has a voice that is {row.state}"
                for row in rows
                if row.caller == hashed
            ]
            called = [row for row in await self._rows("calls") if row.caller == hashed]
            wrong += [f"{caller} was forgotten and has {len(called)} calls"] if called else []
        return wrong

    async def _left(self) -> list[str]:
        """What is left when every call is over and no voice is kept."""
        wrong = [
            f"{voice.voice_id} of {self.made[voice.voice_id]} was never deleted" for voice in self._ours()
        ]
        for agent in AGENTS:
            voice_id, first_message = self._spoken(agent)
            if agent in self.unsure:
                expected = voice_id in self.provider.voices and voice_id not in self.made
                wrong += [] if expected else [f"{agent} speaks with {voice_id}"]
            elif (voice_id, first_message) != self.had[agent]:
                wrong.append(f"{agent} had {self.had[agent]} and has {(voice_id, first_message)}")
        open_still = [row for row in await self._rows("calls") if row.ended_at is None]
        return wrong + [f"{row.conversation_id or row.id} never ended" for row in open_still]

    async def _written(self) -> list[str]:
        """What is left in the registry when nobody has called for ages."""
        counts = {table: len(await self._rows(table)) for table in ("calls", "voices")}
        wrong = [f"{count} rows of {name} are left" for name, count in counts.items() if count]
        return wrong + [f"{row.agent_id} is not let go" for row in await self._rows("agents") if row.marker]

    async def _known_by(self, number: int) -> set[int]:
        """Who is known by the number of a caller: whoever has any row."""
        rows = {(row.number, row.person) for row in await self._rows("voices")}
        return {
            caller for caller in sharing(number) if (identity(caller).number, identity(caller).person) in rows
        }

    def _updating(self) -> bool:
        return any(one.stage != "finished" for one in self.provider.requests.matching(method="PATCH"))

    def _standing(self, agent: str) -> tuple[str, int] | None:
        """The caller's voice that an agent surely has for a while, and how often agents were changed so far."""
        voice_id, _ = self._spoken(agent)
        lately = self._jumped(time.monotonic() - 2) >= LONGEST_UPDATE
        if voice_id not in self.made or agent in self.unsure or lately or self._updating():
            return None
        return voice_id, len(self.provider.requests.matching(method="PATCH"))

    # What everything above is made of.

    async def _rows(self, table: str) -> list[Any]:
        found = await rows_of(self.settings["database_url"], f"SELECT * FROM {table}")
        return [SimpleNamespace(**row) for row in found]

    def bugs(self) -> list[str]:
        """The lines that a cloner writes when something happens that nobody thought of."""
        told = ('"event": "bug"', '"level": "error"', "Traceback", "was never retrieved")
        # An operator is to act upon these, and they come of what is done to ElevenLabs here.
        meant = ("provider refused", "no voice slot left", "agent not put back yet")
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [
            line
            for line in lines
            if any(word in line for word in told)
            and not any(f'"event": "{event}"' in line for event in meant)
        ]


def _reason(failure: BaseException) -> str:
    if not isinstance(failure, grpc.aio.AioRpcError):
        return "NO ANSWER"
    try:
        found = read(failure)
    except ValueError as unreadable:
        return f"a status that contradicts itself: {unreadable}"
    if found is not None:
        return found.reason
    # Ours end before the deadline, unless it is as short as an impatient one's.
    lost = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    return "NO ANSWER" if failure.code() in lost else str(failure.code())


def _brief(message: Any) -> str:
    shown = {field.name: value for field, value in message.ListFields() if field.name != "sample"}
    return " ".join(str(shown).split())


@asynccontextmanager
async def world(url: str, folder: Path, **settings: Any) -> AsyncIterator[World]:
    """A world of its own, with both replicas running, all of which is gone afterwards."""
    clock = Clock()
    async with opened(url, name=DEPLOYMENT, now=clock()):
        made = World(url, folder, clock, settings)
        async with made.provider.listening() as made.settings["elevenlabs_base_url"]:
            try:
                await asyncio.gather(made._start(0), made._start(1))
                yield made
            finally:
                for task in made.pending:
                    task.cancel()
                await asyncio.gather(*made.pending, return_exceptions=True)
                for replica in (0, 1):
                    await made._kill(replica)
