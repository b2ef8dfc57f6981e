import asyncio

import pytest
from precall.v1 import cloning_pb2 as pb

from cloner.provider.awaited import Awaited
from cloner.provider.failures import Busy
from cloner.provider.turns import Turns, Urgency, with_urgency, yielding_to_calls
from cloner.refusals import Overloaded
from emulator import Emulator, Fault
from tests.kit.failures import failure, told
from tests.kit.figures import Figures
from tests.kit.provider import AGENT, CREATE, spoken
from tests.kit.requests import call, end


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


class Work:
    """Pieces of work that take a turn each, and end when they are told to."""

    def __init__(
        self, turns: Turns, *, kind: str = "", declinable: bool = False, lasting: bool = False
    ) -> None:
        self._turns = turns
        self._what = {"kind": kind, "declinable": declinable, "lasting": lasting}
        self._ends: dict[str, asyncio.Event] = {}
        self._failures: dict[str, Exception] = {}
        self.begun: list[str] = []

    async def begin(self, name: str, *, urgency: Urgency, seconds: float = 30) -> "asyncio.Task[None]":
        """A piece that has its turn, or waits for it."""

        async def work() -> None:
            with with_urgency(urgency):
                async with self._turns.one(asyncio.get_running_loop().time() + seconds, **self._what):
                    self.begun.append(name)
                    await self._ends[name].wait()
                    if name in self._failures:
                        raise self._failures[name]

        self._ends[name] = asyncio.Event()
        task = asyncio.create_task(work())
        await settled()
        return task

    async def end(self, name: str, failure: Exception | None = None) -> None:
        """Ends a piece that has its turn, with a failure if there is one."""
        if failure is not None:
            self._failures[name] = failure
        self._ends[name].set()
        await settled()


async def settled() -> None:
    """Lets everything go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def urgent() -> Urgency:
    """A call waits for it."""
    return Urgency(call=True)


def idle() -> Urgency:
    """Nobody waits for it."""
    return Urgency(call=False)


async def test_calls_go_first() -> None:
    """A turn that becomes free is the next call's, whoever came before it."""
    work = Work(Turns(2, 100))
    await work.begin("ahead 1", urgency=idle())
    await work.begin("ahead 2", urgency=idle())
    await work.begin("call 1", urgency=urgent())
    await work.begin("call 2", urgency=urgent())
    assert ["ahead 1", "call 1"] == work.begun

    await work.end("ahead 1")
    assert ["ahead 1", "call 1", "call 2"] == work.begun
    await work.end("call 1")
    assert ["ahead 1", "call 1", "call 2"] == work.begun, "one turn is kept for calls"
    await work.end("call 2")
    assert "ahead 2" == work.begun[-1]


async def test_one_turn_in_all() -> None:
    """Where there is one turn only, work ahead of time gets it, too."""
    work = Work(Turns(1, 100))
    await work.begin("ahead 1", urgency=idle())
    await work.begin("ahead 2", urgency=idle())
    await work.begin("call", urgency=urgent())

    await work.end("ahead 1")

    assert ["ahead 1", "call"] == work.begun


async def test_work_that_a_call_comes_to_need() -> None:
    """It gets the turn that is kept for calls at once."""
    work, mine = Work(Turns(2, 100)), idle()
    await work.begin("ahead", urgency=idle())
    await work.begin("needed", urgency=mine)
    assert ["ahead"] == work.begun

    mine.hurry()
    await settled()

    assert ["ahead", "needed"] == work.begun


async def test_creates_leave_a_turn() -> None:
    """What is short waits for no create, and a call's create for none that is sent ahead of time."""
    turns = Turns(3, 100)
    creates, short = Work(turns, lasting=True), Work(turns)
    await creates.begin("ahead 1", urgency=idle())
    await creates.begin("ahead 2", urgency=idle())
    await creates.begin("call 1", urgency=urgent())
    await creates.begin("call 2", urgency=urgent())

    await short.begin("short", urgency=urgent())

    assert (["ahead 1", "call 1"], ["short"]) == (creates.begun, short.begun)
    await creates.end("ahead 1")
    assert ["ahead 1", "call 1", "call 2"] == creates.begun


async def test_queue_is_bounded_for_each() -> None:
    """Work ahead of time that fills its queue leaves a call its own."""
    work = Work(Turns(1, 1))
    await work.begin("running", urgency=urgent())
    await work.begin("waiting", urgency=idle())
    refused = await work.begin("refused", urgency=idle())
    await work.begin("call", urgency=urgent())

    with pytest.raises(Busy):
        await refused
    await work.end("running")
    assert ["running", "call"] == work.begun


async def test_waiting_ends() -> None:
    """Who gives up, or runs out of time, takes no turn with them."""
    work = Work(Turns(1, 100))
    await work.begin("running", urgency=urgent())
    gives_up = await work.begin("gives up", urgency=urgent())
    late = await work.begin("late", urgency=urgent(), seconds=0.01)
    gives_up.cancel()
    with pytest.raises(Busy):
        await late
    await work.begin("call", urgency=urgent())

    await work.end("running")

    assert ["running", "call"] == work.begun


async def test_work_begun_there_is_as_urgent() -> None:
    """A task that is begun by work ahead of time waits as that does."""
    turns = Turns(2, 100)

    async def full() -> bool:
        return turns.full

    async with turns.one(asyncio.get_running_loop().time() + 1):
        with yielding_to_calls():
            task = asyncio.create_task(full())
        assert await task
        assert not await full()


async def test_call_among_enrolments(cloning, emulator: Emulator, speech: bytes) -> None:
    """While sixty voices are being cloned ahead of time, a new caller waits for none of them."""
    # As many as are cloned ahead of time at once, none of which ends before the call is answered.
    emulator.faults.set(Fault(method="POST", path=CREATE, times=3, hold="before"))
    async with cloning(provider_concurrency=5, shutdown_grace_seconds=0.2) as cloner:
        enrolling = [
            asyncio.ensure_future(
                cloner.CloneVoice(
                    pb.CloneVoiceRequest(caller=pb.Caller(phone_number=f"+3161234{n:04}"), sample=speech),
                    timeout=60,
                )
            )
            for n in range(60)
        ]
        await emulator.requests.wait(3, path=CREATE, stage="held")
        prepared = await cloner.PrepareCall(
            pb.PrepareCallRequest(
                agent_id="agent_demo", conversation_id="conv_1", sample=speech,
                caller=pb.Caller(name="Ivan", phone_number="+31687654321"),
            ),
            timeout=30,
        )  # fmt: skip
        assert 4 == len(emulator.requests.matching(path=CREATE))
        for each in enrolling:
            each.cancel()

    assert prepared.voice.voice_id


async def test_call_that_needs_an_enrolment(cloning, emulator: Emulator, speech: bytes) -> None:
    """A caller whose voice still waits to be cloned ahead of time calls: that clone goes next."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=2, hold="before"))
    caller = pb.Caller(name="Ivan", phone_number="+31612345678")
    async with cloning(provider_concurrency=2) as cloner:

        def enrol(number: str, name: str = "") -> asyncio.Future:
            request = pb.CloneVoiceRequest(caller=pb.Caller(name=name, phone_number=number), sample=speech)
            return asyncio.ensure_future(cloner.CloneVoice(request, timeout=60))

        first = enrol("+31687654321")
        await emulator.requests.wait(1, path=CREATE, stage="held")
        others = [enrol(f"+3168765{n:04}") for n in range(5)]
        awaited = enrol("+31612345678", "Ivan")
        await asyncio.sleep(0.5)  # by then they all wait, as the one turn for them is taken
        assert 1 == len(emulator.requests.matching(path=CREATE))

        calling = asyncio.ensure_future(
            cloner.PrepareCall(
                pb.PrepareCallRequest(
                    agent_id="agent_demo", conversation_id="conv_1", caller=caller, sample=speech
                ),
                timeout=30,
            )
        )
        await emulator.requests.wait(2, path=CREATE, stage="held")
        emulator.faults.release()

        assert (await calling).voice == (await awaited).voice
        await asyncio.gather(first, *others)

    names = [
        next(part.text or "" for part in request.form if part.name == "name")
        for request in emulator.requests.matching(path=CREATE)
    ]
    assert names[1].startswith("Ivan")


def too_many() -> Busy:
    """ElevenLabs says that there are more requests at once than the plan allows."""
    failure = Busy()
    failure.code = "concurrent_limit_exceeded"
    return failure


async def test_plan_that_allows_fewer() -> None:
    """A create that was one too many is sent again when another has ended, and so are those that come then."""
    creates = Work(Turns(6, 100), lasting=True)
    for name in ("one", "two", "three"):
        await creates.begin(name, urgency=urgent())

    await creates.end("three", too_many())
    await creates.begin("three again", urgency=urgent())
    await creates.begin("four", urgency=urgent())
    assert ["one", "two", "three"] == creates.begun

    await creates.end("one")
    await creates.end("two")
    assert ["three again", "four"] == creates.begun[3:]


class Hasty(asyncio.SelectorEventLoop):
    """A loop that can be told that time has passed."""

    ahead = 0.0

    def time(self) -> float:
        """The time, and what it is ahead."""
        return super().time() + self.ahead


def test_plan_is_tried_again() -> None:
    """After a while one more is sent at once: others may have left, or the plan may allow more by now."""

    async def sent() -> list[str]:
        creates = Work(Turns(6, 100), lasting=True)
        for name in ("one", "two"):
            await creates.begin(name, urgency=urgent())
        await creates.end("two", too_many())
        for name in ("three", "four"):
            await creates.begin(name, urgency=urgent())
        assert ["one", "two"] == creates.begun
        loop.ahead = 5.0
        async with asyncio.timeout(60):
            while len(creates.begun) < 3:
                await asyncio.sleep(0.01)
        return creates.begun

    with asyncio.Runner(loop_factory=Hasty) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Hasty)
        begun = runner.run(sent())

    assert ["one", "two", "three"] == begun


async def test_what_nobody_waits_for_any_more() -> None:
    """It goes on while its turn is free, and ends as soon as a call wants that."""
    turns = Turns(2, 100)
    work, now = Work(turns), asyncio.get_running_loop().time()

    async def endless() -> None:
        async with turns.one(now + 60):
            await asyncio.Event().wait()

    left, awaited = Awaited(endless(), until=now), Awaited(endless(), until=now)
    assert None is await left.result(until=now)
    waiting = asyncio.create_task(awaited.result(until=now + 60))
    await settled()
    assert not left.over

    await work.begin("call", urgency=urgent())

    assert (["call"], True, False) == (work.begun, left.over, awaited.over)
    waiting.cancel()
    await work.begin("another", urgency=urgent())
    assert (["call", "another"], True) == (work.begun, awaited.over)


async def test_what_nobody_waits_for_yet() -> None:
    """It has its turn as a call has, until whoever began it could wait no longer."""
    turns = Turns(1, 100)
    work, now = Work(turns), asyncio.get_running_loop().time()

    async def endless() -> None:
        async with turns.one(now + 60):
            await asyncio.Event().wait()

    awaited = Awaited(endless(), until=now + 0.1)
    await work.begin("call", urgency=urgent())
    assert ([], False) == (work.begun, awaited.over)

    async with asyncio.timeout(5):
        await awaited.ended()
    await settled()

    assert ["call"] == work.begun


async def test_what_is_waited_for_again() -> None:
    """It keeps its turn, and who waits gets what comes of it."""
    turns, answer = Turns(1, 100), asyncio.get_running_loop().create_future()
    work, now = Work(turns), asyncio.get_running_loop().time()

    async def asked() -> str:
        async with turns.one(now + 60):
            return await answer

    awaited = Awaited(asked(), until=now)
    assert None is await awaited.result(until=now)
    again = asyncio.create_task(awaited.result(until=now + 60))
    await settled()
    await work.begin("call", urgency=urgent())
    assert [] == work.begun

    answer.set_result("read")

    assert "read" == await again


async def taught(turns: Turns) -> None:
    """Has it known that a create takes half a second or longer."""
    async with turns.one(asyncio.get_running_loop().time() + 30, kind="create"):
        await asyncio.sleep(0.5)


def waited_for(seconds: float) -> Urgency:
    """A call waits for it, that long."""
    return Urgency(call=True, until=asyncio.get_running_loop().time() + seconds)


async def test_who_would_be_late_is_told_at_once() -> None:
    """A create that would not be done in time is declined when it comes, and keeps nobody waiting."""
    turns = Turns(1, 10)
    await taught(turns)
    work = Work(turns, kind="create", declinable=True)
    first = await work.begin("first", urgency=waited_for(30))
    second = await work.begin("second", urgency=waited_for(30))

    late = await work.begin("late", urgency=waited_for(0.9))

    assert late.done()
    with pytest.raises(Overloaded):
        await late
    await work.end("first")
    await work.end("second")
    await asyncio.gather(first, second)
    assert ["first", "second"] == work.begun


async def test_who_turns_out_to_be_late() -> None:
    """Of what never ends nobody knows how long it takes, but how long it has taken: long before time is out."""
    work = Work(Turns(1, 10), kind="create", declinable=True)
    endless = await work.begin("endless", urgency=waited_for(600))

    late = await work.begin("late", urgency=waited_for(5))

    with pytest.raises(Overloaded):
        async with asyncio.timeout(4.5):
            await late
    await work.end("endless")
    await endless


async def test_what_is_begun_waits_for_its_end() -> None:
    """What cannot be declined, as the rest of a call's work, waits however long that may take."""
    turns = Turns(1, 10)
    await taught(turns)
    work = Work(turns, kind="create")
    first = await work.begin("first", urgency=waited_for(30))

    rest = await work.begin("rest", urgency=waited_for(0.1))
    await work.end("first")
    await work.end("rest")
    await asyncio.gather(first, rest)

    assert ["first", "rest"] == work.begun


async def test_what_is_begun_goes_first() -> None:
    """The rest of a call's work goes before creates of calls that came earlier."""
    turns = Turns(1, 10)
    creates, rests = Work(turns, kind="create", declinable=True), Work(turns)
    tasks = [
        await creates.begin("first", urgency=urgent()),
        await creates.begin("second", urgency=urgent()),
        await rests.begin("rest", urgency=urgent()),
    ]

    await creates.end("first")

    assert (["first"], ["rest"]) == (creates.begun, rests.begun)
    await rests.end("rest")
    await creates.end("second")
    await asyncio.gather(*tasks)


@pytest.mark.long
async def test_calls_that_cannot_be_served_in_time(
    cloning, emulator: Emulator, speech: bytes, figures: Figures
) -> None:
    """Callers who would wait in vain are told while there is time, and ElevenLabs is not asked for them."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    ended: list[str] = []

    async def ask(number: int) -> None:
        caller = pb.Caller(name="Ivan", phone_number=f"+3161234{number:04}")
        request = pb.PrepareCallRequest(
            agent_id="agent_demo", conversation_id=f"conv_{number}", caller=caller, sample=speech
        )
        found = told(await failure(cloner.PrepareCall(request, timeout=5)))
        # Who may come again soon is told when.
        assert (found.retry is not None) == (found.reason == "RATE_LIMITED")
        ended.append(found.reason)

    async with cloning(meters=figures.meters, provider_concurrency=2) as cloner:
        await asyncio.gather(*map(ask, range(6)))
        emulator.faults.clear()

    assert [*["RATE_LIMITED"] * 4, *["PROVIDER_TIMEOUT"] * 2] == ended
    assert 2 == len(emulator.requests.matching(path=CREATE))
    assert 4 == figures.told("precall.clone.duration", outcome="error", reason="RATE_LIMITED")


async def test_agents_that_are_not_read(cloning, emulator: Emulator, speech: bytes) -> None:
    """If ElevenLabs tells nothing of agents, new callers get their voices all the same."""
    emulator.faults.set(Fault(method="GET", path=AGENT, times=None, hold="before"))
    async with cloning(provider_concurrency=2) as cloner:
        asked = (cloner.PrepareCall(call(speech, number), timeout=5) for number in range(3))
        answers = await asyncio.gather(*asked)
        emulator.faults.clear()

    assert 3 == len({answer.voice.voice_id for answer in answers})


async def test_agent_of_a_call_that_was_opened(cloning, emulator: Emulator, speech: bytes) -> None:
    """Its settings are read in the background, and in nobody's way."""
    emulator.agents.put("agent_other", {})
    emulator.faults.set(Fault(method="GET", path="/v1/convai/agents/agent_other", times=None, hold="before"))
    async with cloning(provider_concurrency=1) as cloner:
        opened = pb.OpenCallRequest(agent_id="agent_other", conversation_id="conv_9")
        await cloner.OpenCall(opened, timeout=0.5)
        prepared = await cloner.PrepareCall(call(speech), timeout=5)
        emulator.faults.clear()

    assert prepared.agent_updated


async def test_agent_is_put_back_while_creates_last(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """An agent loses a caller's voice when the call is over, however long voices are being made by then."""
    before = spoken(emulator)
    async with cloning(provider_concurrency=3, shutdown_grace_seconds=0.2) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
        asked = [asyncio.ensure_future(cloner.PrepareCall(call(speech, n), timeout=30)) for n in (2, 3, 4)]
        await emulator.requests.wait(2, path=CREATE, stage="held")

        await end(cloner)
        await eventually(lambda: before == spoken(emulator))

        for each in asked:
            each.cancel()
        emulator.faults.clear()


async def test_agents_that_are_not_put_back(cloning, emulator: Emulator, speech: bytes) -> None:
    """If ElevenLabs does not answer for some, they wait for it one at a time, and new callers get their voices."""
    agents = [f"agent_{number}" for number in range(2, 5)]
    async with cloning(
        provider_concurrency=2, voice_clone_keep_hours=0.0, shutdown_grace_seconds=0.2
    ) as cloner:
        for number, agent_id in enumerate(agents, 2):
            emulator.agents.put(agent_id, {})
            await cloner.PrepareCall(call(speech, number, agent_id=agent_id), timeout=10)
        paths = [f"/v1/convai/agents/{agent_id}" for agent_id in agents]
        emulator.faults.set(*[Fault(method="GET", path=path, times=None, hold="before") for path in paths])
        for number in range(2, 5):
            ended = pb.CompleteCallRequest(conversation_id=f"conv_{number}")
            await cloner.CompleteCall(ended, timeout=10)
        # Each voice is to be deleted once its agent was put back, so all of them are tried now.
        await emulator.requests.wait(path=AGENT, stage="held")

        prepared = await cloner.PrepareCall(call(speech), timeout=10)
        emulator.faults.clear()

    assert prepared.agent_updated
