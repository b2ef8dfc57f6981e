import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Fault
from tests.crash.conftest import KINDS, Worlds
from tests.crash.replicas import CREATE, DEAD_SECONDS, DELIVERY_SECONDS, SEARCH, Replica, World, delivery

AGENT = "/v1/convai/agents/{}"
VOICE = "/v1/voices/{}"
KEPT = {"VOICE_CLONE_KEEP_HOURS": "24"}
NOT_KEPT = {"VOICE_CLONE_KEEP_HOURS": "0"}
# Any of them may be the one that restores an agent, and all of them die.
VICTIMS = 3


class Step(NamedTuple):
    """What the provider does to reach a step, and what registry, provider and agent hold then."""

    fault: dict[str, Any]
    states: tuple[str, ...]
    voices: int
    changed: bool


# "Late" is a request that the provider takes its time for, "lost" is one that never arrives.
LATE: dict[str, Any] = {"hold": "before"}
LOST: dict[str, Any] = {"hold": "before", "drop": "before"}
DONE: dict[str, Any] = {"hold": "after"}
# What is tried again while a busy machine takes its time to kill is held again.
AGAIN: dict[str, Any] = {"times": None}

DELIVERY = {
    "CreateLate": Step({"method": "POST", "path": CREATE, **LATE}, ("intended",), 0, False),
    "CreateLost": Step({"method": "POST", "path": CREATE, **LOST}, ("intended",), 0, False),
    "CreateDone": Step({"method": "POST", "path": CREATE, **DONE}, ("intended",), 1, False),
    "UpdateLate": Step({"method": "PATCH", "path": AGENT, **LATE, **AGAIN}, ("ready",), 1, False),
    "UpdateLost": Step({"method": "PATCH", "path": AGENT, **LOST, **AGAIN}, ("ready",), 1, False),
    "UpdateDone": Step({"method": "PATCH", "path": AGENT, **DONE, **AGAIN}, ("ready",), 1, True),
    "Answered": Step({}, ("ready",), 1, True),
    # The last, because the agent is read again after ten seconds, and by those who repeat the delivery.
    "BeforeIntent": Step({"method": "GET", "path": AGENT, **LATE}, (), 0, False),
}
DELETION = {
    "RestoreRead": Step({"method": "GET", "path": AGENT, **LATE, **AGAIN}, ("deleting",), 1, True),
    "RestoreLate": Step({"method": "PATCH", "path": AGENT, **LATE, **AGAIN}, ("deleting",), 1, True),
    "RestoreDone": Step({"method": "PATCH", "path": AGENT, **DONE, **AGAIN}, ("deleting",), 1, False),
    "DeleteLate": Step({"method": "DELETE", "path": VOICE, **LATE, **AGAIN}, ("deleting",), 1, False),
    "DeleteDone": Step({"method": "DELETE", "path": VOICE, **DONE, **AGAIN}, ("deleting",), 0, False),
}

Answers = dict[str, Awaitable[pb.PrepareCallResponse]]


async def begin(
    world: World, replica: Replica, names: list[str], speech: bytes, *, seconds: float = DELIVERY_SECONDS
) -> Answers:
    """Brings a delivery to each of these steps."""
    answers: Answers = {}
    for name in names:
        step = DELIVERY[name]
        world.agent(name)
        (fault,) = faults(step, name) or [None]
        held = len(world.emulator.requests.matching(path=fault.path, stage="held")) if fault else 0
        arm(world, *faults(step, name))
        answers[name] = asyncio.ensure_future(
            replica.stub.PrepareCall(delivery(name, speech), timeout=seconds)
        )
        if fault:
            await world.emulator.requests.wait(held + 1, path=fault.path, stage="held", seconds=30)
        else:
            await answers[name]
    return answers


async def end(world: World, replica: Replica, speech: bytes) -> None:
    """Brings a deletion to each step, in as many processes."""
    began: list[Fault] = []
    for name, step in DELETION.items():
        agent = world.agent(name)
        answer = await replica.stub.PrepareCall(delivery(name, speech), timeout=DELIVERY_SECONDS)
        assert answer.agent_updated
        began += faults(step, agent if step.fault["path"] == AGENT else answer.voice.voice_id)
    arm(world, *began)
    await complete(replica, list(DELETION))
    for fault in began:
        await world.emulator.requests.wait(method=fault.method, path=fault.path, stage="held", seconds=30)


def faults(step: Step, which: str) -> list[Fault]:
    """The fault of a step, for this agent or voice."""
    return [Fault(**{**step.fault, "path": step.fault["path"].format(which)})] if step.fault else []


def arm(world: World, *begun: Fault) -> None:
    """Sets these beside those that still hold what is tried again."""
    world.emulator.faults.set(*world.emulator.faults, *begun)


async def repeat(replica: Replica, names: list[str], speech: bytes) -> dict[str, str]:
    """Delivers once more, all at once; says whose voice each answer names."""
    answers = await asyncio.gather(
        *(replica.stub.PrepareCall(delivery(name, speech), timeout=30) for name in names)
    )
    return {name: answer.voice.voice_id for name, answer in zip(names, answers, strict=True)}


async def complete(replica: Replica, names: list[str]) -> None:
    """Ends these calls, which must be known."""
    for name in names:
        assert (await replica.stub.CompleteCall(pb.CompleteCallRequest(conversation_id=f"conv_{name}"))).found


async def reached(world: World, steps: dict[str, Step]) -> None:
    """Makes sure that the kill struck where it should."""
    rows, ours, changed = await world.voices(), list(world.ours().values()), world.changed()
    expected = {name: (list(step.states), step.voices, step.changed) for name, step in steps.items()}

    assert expected == {
        name: ([row["state"] for row in rows.get(name, [])], ours.count(name), name in changed)
        for name in steps
    }


async def let_go(world: World) -> None:
    """Lets the provider do what it was asked for by those who are dead, and waits for it."""
    begun = list(world.emulator.requests)
    world.emulator.faults.clear()
    async with asyncio.timeout(60):
        while any(request.stage == "held" for request in begun):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Waits until something holds, longer than `eventually` does."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.1)


async def in_registry(world: World) -> dict[str, str]:
    """The voices that are ready to be used, by whose they are."""
    rows = await world.rows("SELECT name, voice_id FROM voices WHERE state = 'ready'")
    return {row["name"].split("_Clone_")[0]: row["voice_id"] for row in rows}


async def restarted(world: World, speech: bytes) -> None:
    """Kills at every step, restarts, repeats every event; what was asked of the provider is done late."""
    async with world.replicas(VICTIMS, **NOT_KEPT) as victims:
        await killed(world, victims, speech)
    async with world.replica(**NOT_KEPT) as survivor:
        repeating = asyncio.create_task(repeat(survivor, list(DELIVERY), speech))
        await complete(survivor, list(DELETION))
        for name in ("CreateLate", "CreateLost", "CreateDone"):
            await world.emulator.requests.wait(2, method="GET", path=AGENT.format(name))
        world.clock.jump(DEAD_SECONDS)
        answered = await repeating
        await let_go(world)
        await world.claims_run_out()
        await world.quiet(20)
        assert answered == await in_registry(world)
        assert {voice: name for name, voice in answered.items()} == world.ours()

        await complete(survivor, list(DELIVERY))
        await over(world, 20)


async def left_alone(world: World, speech: bytes) -> None:
    """Kills at every step, restarts, and nobody calls again; the provider does at once what it was asked."""
    async with world.replicas(VICTIMS, **NOT_KEPT) as victims:
        await killed(world, victims, speech)
    await let_go(world)
    creates = len(world.emulator.requests.matching(path=CREATE))
    async with world.replica(**NOT_KEPT, CALL_MAX_MINUTES="0.5"):
        await world.reconciled(2)
        world.clock.jump(DEAD_SECONDS)
        await world.reconciled(2)
        # Now the calls are presumed to be over, while the dead still hold their agents.
        world.clock.jump(30 - DEAD_SECONDS)
        await world.claims_run_out()
        await over(world, 20)

    assert creates == len(world.emulator.requests.matching(path=CREATE))


async def replicated(world: World, speech: bytes) -> None:
    """Kills at every step of a delivery, while another replica waits for the same clones."""
    async with world.replicas(2, **KEPT) as (victim, survivor):
        *early, last = DELIVERY
        lost = await begin(world, victim, early, speech)
        waiting = asyncio.create_task(repeat(survivor, early, speech))
        for name in early:
            await world.emulator.requests.wait(2, method="GET", path=AGENT.format(name))
        lost |= await begin(world, victim, [last], speech)
        await victim.kill()
        with world.clock.standing() as at:
            await asyncio.gather(*lost.values(), return_exceptions=True)
            world.clock.jump(DEAD_SECONDS)
            answered = await waiting | await repeat(survivor, [last], speech)
        found = [row["marker"] for row in (await world.voices())["CreateDone"]]
        (look,) = (
            request
            for request in world.emulator.requests.matching(path=SEARCH)
            if request.query["search"] == found
        )
        # Ten seconds are promised; a busy machine takes its time to look.
        assert 0 < look.at - at < 20
        await let_go(world)
        await world.quiet(20)
        assert answered == await in_registry(world)
        assert answered == await repeat(survivor, list(DELIVERY), speech)
        assert {voice: name for name, voice in answered.items()} == world.ours()

        await complete(survivor, list(DELIVERY))
        await world.claims_run_out()
        await until(lambda: _true(not world.changed()), 20)
        await world.quiet(5)
        assert answered == await in_registry(world)


async def _true(value: bool) -> bool:
    return value


async def killed(world: World, victims: list[Replica], speech: bytes) -> None:
    """Brings deliveries and deletions to every step, and kills all who were at them."""
    *early, last = DELIVERY
    lost = await begin(world, victims[0], early, speech)
    await end(world, victims[0], speech)
    lost |= await begin(world, victims[0], [last], speech)
    await asyncio.gather(*(victim.kill() for victim in victims))
    await asyncio.gather(*lost.values(), return_exceptions=True)
    await reached(world, {**DELIVERY, **DELETION})


async def over(world: World, seconds: float) -> None:
    """Waits until every agent has back what it had, and no voice is left."""

    async def is_over() -> bool:
        return not world.changed() and not world.ours() and not await world.wrongs()

    with contextlib.suppress(TimeoutError):
        await until(is_over, seconds)
    await world.quiet(0)
    assert ([], {}, {}) == (world.changed(), world.ours(), await in_registry(world))


async def never_given(world: World, speech: bytes) -> None:
    """Kills while an agent that has a voice is given the next one, which it never gets."""
    settings = {**NOT_KEPT, "CALL_PRESUMED_MINUTES": "0.0001"}
    agent = world.agent("agent_shared")
    async with world.replica(**settings) as victim:
        first = await victim.stub.PrepareCall(delivery("First", speech, agent=agent), timeout=30)
        assert (True, first.voice.voice_id) == (first.agent_updated, world.spoken(agent)[0])
        world.emulator.faults.set(*faults(DELIVERY["UpdateLost"], agent))
        second = delivery("Second", speech, agent=agent)
        lost = asyncio.ensure_future(victim.stub.PrepareCall(second, timeout=DELIVERY_SECONDS))
        await world.emulator.requests.wait(stage="held")
        await victim.kill()
        await asyncio.gather(lost, return_exceptions=True)
    await let_go(world)

    async with world.replica(**settings) as survivor:
        await complete(survivor, ["First"])
        await world.claims_run_out()
        await until(lambda: _true(not world.changed()), 20)
        await complete(survivor, ["Second"])
        await over(world, 20)


async def stopped(world: World, replica: Replica) -> None:
    """Stops a process, but not in the middle of a transaction, in which it would stop all others as well."""
    while True:
        replica.stop()
        if not await world.locked():
            return
        replica.go_on()
        await asyncio.sleep(0.02)


async def only_slow(world: World, speech: bytes) -> None:
    """Stops a process until another takes it for dead, and lets it go on."""
    names = ["CreateDone", "CreateLate"]
    async with world.replicas(2, **KEPT) as (slow, quick):
        answers = await begin(world, slow, names, speech, seconds=40)
        await stopped(world, slow)
        world.clock.jump(DEAD_SECONDS)
        answered = await repeat(quick, names, speech)
        slow.go_on()
        await let_go(world)

        assert answered == {name: (await answer).voice.voice_id for name, answer in answers.items()}
        await world.quiet(20)
        assert {voice: name for name, voice in answered.items()} == world.ours()
        assert answered == await in_registry(world)
        assert {"CreateDone": 1, "CreateLate": 2} == Counter(
            str(part.text).split("_Clone_")[0]
            for request in world.emulator.requests.matching(path=CREATE)
            for part in request.form or ()
            if part.name == "name"
        )


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_killed_at_every_step(worlds_of: Callable[[str], Worlds], speech: bytes) -> None:
    """Whatever a process was at when it was killed, another one or the next one finishes it."""
    stories = [restarted, left_alone, replicated, never_given, only_slow]

    async def tell(story: Callable[[World, bytes], Awaitable[None]], kind: str) -> None:
        async with worlds_of(kind)(f"{story.__name__}-{kind}") as world:
            await story(world, speech)

    async with asyncio.TaskGroup() as told:
        for story, kind in itertools.product(stories, KINDS):
            told.create_task(tell(story, kind), name=f"{story.__name__} on {kind}")
