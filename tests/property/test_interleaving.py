"""Transactions of deliveries and of what is due, in any order, against the rules that always hold.

What one process does in a second is here a list of steps that a scheduler mixes with those of others. It
needs no loop and no socket, so that it tries thousands of orders in the time of one real delivery.
"""

import itertools
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloner.agents.giving import Reading, intended_row
from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import (
    AgentUpdate,
    NewCall,
    NewVoiceRow,
    Transaction,
    VoiceRow,
    agents,
    calls,
    departures,
    voices,
)
from cloner.registry.postgres import PostgresTransaction
from cloner.registry.sqlite import SqliteTransaction

PRESUMED, CALL_MAX, STALE, GRACE, KEEP = 900.0, 7_200.0, 8.0, 120.0, 3_600.0
# How long a delivery waits, how long an agent is changed at the most, and how much longer it is then held.
PATIENCE, LEFT, AFTERMATH = 20.0, 10.0, 30.0
CALLERS, AGENTS, CONVERSATIONS, PROCESSES = 3, 2, 4, 2
BEFORE = {f"agent_{n}": AgentVoice(f"premade_{n}", f"Welcome to {n}.") for n in range(AGENTS)}
Steps = Iterator[None]


class World:
    """A registry, what ElevenLabs has, and who is at what."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.now = 1_000_000.0
        self.made: dict[str, tuple[str, str, float]] = {}  # voice -> its marker, its caller, when
        self.agents = dict(BEFORE)
        self.open: dict[str, tuple[str, str, float]] = {}  # call -> its agent, its caller, when
        self.steps: list[tuple[int, Steps]] = []
        self.alive = [0] * PROCESSES  # how often each process was started
        self.numbers = itertools.count()

    def owner(self, process: int) -> str:
        """What a process is called in the registry."""
        return f"process_{process}_{self.alive[process]}"

    def others(self, agent: str, caller: str) -> bool:
        """Whether another caller's call is in progress at the agent."""
        return any(
            (at, self.now - begun < PRESUMED) == (agent, True) and who != caller
            for at, who, begun in self.open.values()
        )

    def give(self, agent: str, wanted: AgentVoice) -> None:
        """Changes an agent at ElevenLabs, which takes no voice that it does not have."""
        now = self.agents[agent]
        voice = wanted.voice_id or now.voice_id
        assert voice in self.made or voice == BEFORE[agent].voice_id
        self.agents[agent] = AgentVoice(voice, wanted.first_message or now.first_message)

    def delete(self, voice: str) -> None:
        """Deletes a voice at ElevenLabs, with which nobody speaks any more."""
        assert voice not in {spoken.voice_id for spoken in self.agents.values()}, "an agent lost its voice"
        self.made.pop(voice, None)

    def check(self) -> None:
        """What holds at every moment."""
        ready = voices.ready(self.tx)
        assert len({row.caller for row in ready}) == len(ready), "two voices of one caller"
        assert {row.voice_id for row in ready} <= self.made.keys(), "a voice that ElevenLabs does not have"
        for row in ready:
            marker, caller, _ = self.made[row.voice_id or ""]
            assert (row.marker, row.caller) == (marker, caller), "a voice of somebody else"


def delivery(world: World, process: int, caller: str, agent: str, conversation: str) -> Steps:
    """One delivery: finds or makes the caller's voice, and gives it to the agent if it may."""
    tx, call, deadline = world.tx, f"{agent}/{conversation}", world.now + PATIENCE
    new = NewCall(
        id=call, agent_id=agent, conversation_id=conversation, caller=caller, stated=caller,
        begun_at=world.now,
    )  # fmt: skip
    noted = calls.begin(tx, new, others_since=world.now - PRESUMED)
    known = world.open.get(call)
    if known is not None:
        assert (noted is None) == (known[1] != caller), "a conversation of two callers"
    if noted is None or noted.call.ended_at is not None:
        return
    world.open.setdefault(call, (agent, caller, noted.call.begun_at))
    if world.agents[agent].voice_id != BEFORE[agent].voice_id:
        given = noted.agent.row
        assert given is not None, "what others must be answered is forgotten"
        assert given.before_voice_id == BEFORE[agent].voice_id, "what the agent had is forgotten"
    yield
    now = world.agents[agent]
    yield
    ours = voices.marker_of(tx, now.voice_id or "") is not None
    reading = Reading(now, noted, ours=ours)
    yield
    wanted = AgentVoice(None, f"Hallo {caller}")
    update = planned(world, reading, wanted, caller=caller, deadline=deadline)
    voice, may = yield from found_or_made(world, process, caller, call, noted.voice, update, deadline)
    if voice is None or voice.voice_id is None:
        return
    assert caller == world.made.get(voice.voice_id, ("", caller))[1], "an answer with another's voice"
    if update is None:
        return
    wanted = AgentVoice(voice.voice_id, wanted.first_message)
    if may is None:
        if world.now >= deadline:
            return
        update = planned(world, reading, wanted, marker=voice.marker, caller=caller, deadline=deadline)
        assert update is not None
        may = agents.intend(tx, update, now=world.now)
        check_intended(world, update, may)
    else:
        update = update.with_voice(voice.marker, voice.voice_id)
    if not may:
        return
    yield
    done = world.now < deadline and voice.voice_id in world.made
    if done:
        world.give(agent, wanted)
    yield
    if not agents.unlock(tx, agent, holder=update.holder, until=0.0, given=done) and done:
        agents.note_late_update(tx, update.row)


def planned(
    world: World, reading: Reading, wanted: AgentVoice, *, caller: str, deadline: float, marker: str = ""
) -> AgentUpdate | None:
    """What is to be stored before an agent is changed, with or without its voice; None where it may not be."""
    if reading.ours and reading.noted.agent.row is None:
        return None
    return AgentUpdate(
        row=intended_row(reading, wanted, marker=marker),
        changes=reading.noted.agent.changes,
        caller=caller,
        others_since=world.now - PRESUMED,
        holder=f"holder_{next(world.numbers)}",
        until=deadline + AFTERMATH,
    )


def check_intended(world: World, update: AgentUpdate, may: bool) -> None:
    """No agent is changed for a call that is over, nor in another caller's."""
    if may:
        assert update.row.call_id in world.open, "an agent was changed for a call that is over"
        assert not world.others(update.row.agent_id, update.caller), "changed in another caller's call"


def found_or_made(
    world: World,
    process: int,
    caller: str,
    call: str,
    row: VoiceRow | None,
    update: AgentUpdate | None,
    deadline: float,
) -> Generator[None, None, tuple[VoiceRow | None, bool | None]]:
    """The row of the caller's voice, which this process makes where nobody else does.

    Also whether the agent may be changed, where that was stored with a voice that was made in time.
    """
    tx = world.tx
    for _ in range(5):
        if row is None:
            marker = f"marker_{next(world.numbers)}"
            new = NewVoiceRow(
                marker=marker, caller=caller, replaces=None, number=None, person=caller, greeting_name=caller,
                name=caller, owner=world.owner(process), traceparent="", consent="", kept_until=0.0,
            )  # fmt: skip
            row = voices.intend(tx, new, call_id=call, now=world.now).row
            assert row is not None
            yield
            if row.marker == marker:
                voice, may = f"voice_{next(world.numbers)}", None
                world.made[voice] = (marker, caller, world.now)
                yield
                if update is None or world.now >= deadline:
                    recorded = voices.record(tx, marker, voice, now=world.now)
                else:
                    update = update.with_voice(marker, voice)
                    recorded, may = agents.record_and_intend(tx, update, now=world.now)
                    check_intended(world, update, may)
                    assert recorded or not may, "a voice that is not recorded was to be given to an agent"
                if recorded:
                    made = voices.get(tx, marker)
                    yield
                    return made, may
                world.delete(voice)
                yield
        if row.state == "ready" and calls.attach(tx, call, row.marker, now=world.now):
            return row, None
        if row.state == "intended":
            yield from resume(world, process, row)
        row = voices.of_caller(tx, caller)
        yield
    return None, None


def resume(world: World, process: int, row: VoiceRow | None = None) -> Steps:
    """Finishes the story of intents whose process died."""
    tx = world.tx
    for lost in voices.abandoned(tx, stale=world.now - STALE) if row is None else [row]:
        taken = voices.take_over(
            tx,
            lost.marker,
            dead=lost.owner,
            owner=world.owner(process),
            stale=world.now - STALE,
            now=world.now,
        )
        yield
        if not taken:
            continue
        made = [voice for voice, (marker, *_) in world.made.items() if marker == lost.marker]
        if not made:
            voices.fail(tx, lost.marker, "given up", now=world.now)
        elif not voices.record(tx, lost.marker, made[0], now=world.now):
            world.delete(made[0])
        yield


def put_back(world: World, row: agents.AgentRow, holder: str) -> Steps:
    """Gives an agent that was claimed back what it had, where our value still stands."""
    claimed, now = world.now, world.agents[row.agent_id]
    yield
    ours = row.gave_voice(now.voice_id) or voices.marker_of(world.tx, now.voice_id or "") is not None
    voice = row.before_voice_id if ours and now.voice_id != row.before_voice_id else None
    message = row.before_first_message if row.gave_message(now.first_message) else None
    if world.now - claimed < LEFT:
        world.give(row.agent_id, AgentVoice(voice, message))
        yield
        agents.note_restored(world.tx, row.agent_id, holder=holder)


def restore(world: World, process: int) -> Steps:
    """Gives an agent back what it had before a call that is over."""
    holder = f"{world.owner(process)}_{next(world.numbers)}"
    row = agents.claim_restore(world.tx, holder=holder, now=world.now, until=world.now + LEFT + AFTERMATH)
    yield
    if row is not None:
        yield from put_back(world, row, holder)


def remove(world: World, process: int) -> Steps:
    """Deletes a voice that was given up, once no agent has it."""
    tx, holder = world.tx, f"{world.owner(process)}_{next(world.numbers)}"
    row = departures.claim_deletion(tx, now=world.now, until=world.now + 60)
    if row is None:
        return
    agents.plan_restore(tx, marker=row.marker)
    yield
    until = world.now + LEFT + AFTERMATH
    while (
        agent := agents.claim_restore(tx, holder=holder, now=world.now, until=until, marker=row.marker)
    ) is not None:
        yield from put_back(world, agent, holder)
    if agents.has_voice(tx, row.marker):
        departures.postpone_deletion(tx, row.marker, due_at=world.now, untried=1)
        return
    yield
    world.delete(row.voice_id or "")
    yield
    departures.note_lost(tx, row.marker, now=world.now)


def close(world: World, process: int) -> Steps:
    """Ends calls that never ended, and gives up what nobody used for long."""
    del process
    now, tx = world.now, world.tx
    calls.close_old(tx, before=now - CALL_MAX, now=now)
    yield
    agents.plan_due_restores(tx, busy_since=now - CALL_MAX, now=now)
    yield
    departures.expire(tx, unused_since=now - KEEP, busy_since=now - CALL_MAX, now=now)


def reconcile(world: World, process: int) -> Steps:
    """Removes, or takes in, what was made without anybody's knowledge."""
    del process
    listed, began = dict(world.made), world.now
    yield
    for voice, (marker, _, made) in listed.items():
        row = voices.get(world.tx, marker)
        if made > began - GRACE or (row is not None and row.state in {"intended", "ready", "deleting"}):
            continue
        taken = (
            row is not None
            and row.state == "failed"
            and voices.record(world.tx, marker, voice, now=world.now)
        )
        yield
        if not taken:
            world.delete(voice)


def end(world: World, agent: str, conversation: str) -> Steps:
    """An event after a call."""
    call = f"{agent}/{conversation}"
    world.open.pop(call, None)
    calls.complete(
        world.tx, now=world.now, conversation_id=conversation, call_id="", agent_id=agent, voice_id="",
        named_id=call,
    )  # fmt: skip
    yield


WORK: dict[str, Callable[[World, int], Steps]] = {
    "restore": restore, "remove": remove, "close": close, "resume": resume, "reconcile": reconcile,
}  # fmt: skip
some = st.integers(0, 11)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), some, some, some),
        *[st.tuples(st.just("step"), some, st.sampled_from((1, 1, 2, 3, 9)))] * 4,
        st.tuples(st.just("end"), some, some),
        st.tuples(st.just("kill"), some),
        st.tuples(st.just("wait"), st.sampled_from((1.0, 9.0, 45.0, 1_000.0, 4_000.0))),
        st.tuples(st.sampled_from(sorted(WORK)), some),
    ),
    min_size=20,
    max_size=120,
)


def play(world: World, story: list[tuple[Any, ...]]) -> None:
    """Does as the story says, and looks after each step whether all still holds."""
    for move in story:
        match move:
            case ("deliver", who, where, which):
                work = delivery(
                    world, who % PROCESSES, f"caller_{who % CALLERS}", f"agent_{where % AGENTS}",
                    f"conv_{which % CONVERSATIONS}",
                )  # fmt: skip
                world.steps.append((who % PROCESSES, work))
            case ("end", where, which):
                work = end(world, f"agent_{where % AGENTS}", f"conv_{which % CONVERSATIONS}")
                world.steps.append((0, work))
                go_on(world, len(world.steps) - 1)
            case ("kill", which):
                process = which % PROCESSES
                world.alive[process] += 1
                world.steps = [(by, steps) for by, steps in world.steps if by != process]
            case ("wait", seconds):
                world.now += seconds
            case ("step", which, count):
                for _ in range(count):
                    if world.steps:
                        go_on(world, which % len(world.steps))
            case (kind, which) if kind in WORK:
                world.steps.append((which % PROCESSES, WORK[kind](world, which % PROCESSES)))
        world.now += 0.01
        world.check()


def go_on(world: World, which: int) -> None:
    """One step further with one of those who are at something."""
    process, steps = world.steps[which]
    try:
        next(steps)
    except StopIteration:
        world.steps.remove((process, steps))


def settle(world: World) -> None:
    """Every process dies, nobody calls any more, and time passes."""
    world.steps, world.open = [], {}
    world.alive = [count + 1 for count in world.alive]
    for _ in range(4):
        world.now += CALL_MAX + KEEP
        for kind in ("close", "resume", "restore", "remove", "reconcile"):
            for _ in range(12):
                for _ in WORK[kind](world, 0):
                    world.check()
    assert BEFORE == world.agents, "an agent did not get back what it had"
    assert {} == world.made, "a voice was left behind"
    assert [] == voices.ready(world.tx)


@pytest.mark.timeout(300)
def test_in_any_order(migrated_file: bytes) -> None:
    """In SQLite, in memory."""
    # As the file says of itself (SQLite file format, 1.3), it has a log beside it; what is in memory has none.
    without_log = migrated_file[:18] + b"\x01\x01" + migrated_file[20:]

    @settings(max_examples=400, derandomize=True, database=None, print_blob=True)
    @given(story=moves)
    def lives(story: list[tuple[Any, ...]]) -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(without_log)
            world = World(SqliteTransaction(connection))
            play(world, story)
            settle(world)

    lives()


@pytest.mark.timeout(300)
def test_in_any_order_in_postgres(databases: Any) -> None:
    """In Postgres, where each story is rolled back at its end."""
    url = databases.take()

    @settings(max_examples=25, derandomize=True, database=None, print_blob=True)
    @given(story=moves)
    def lives(story: list[tuple[Any, ...]]) -> None:
        with psycopg.connect(url) as connection:
            world = World(PostgresTransaction(connection))
            play(world, story)
            settle(world)
            connection.rollback()

    lives()
    databases.give_back(url)
