"""The lock of an agent lasts no longer than its reason, and an update that comes late does not stay."""

import asyncio

import psycopg
import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from cloner.registry.holding import LANDS_SECONDS, LATE_SECONDS
from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.databases import Databases
from tests.kit.failures import failure, reason
from tests.kit.provider import AGENT, CREATE, spoken
from tests.kit.requests import call, call_of_ivan, end
from tests.kit.rows import until_unlocked

SOON = LATE_SECONDS + 1

# The transaction that notes the second call has read everything, and is not over.
HELD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER held_up AFTER INSERT ON calls DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.conversation_id = 'conv_2') EXECUTE FUNCTION hold_up();
SELECT pg_advisory_lock(7)
"""
IS_HELD_UP = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"


@pytest.fixture
def database(sqlite: str) -> str:
    """One kind is enough for most of them."""
    return sqlite


async def test_answered_failure(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """An agent that was updated though the answer was a failure is put back soon, whatever the deadline was."""
    before, clock = spoken(emulator), Clock()
    async with cloning(now=clock, provider_attempts=1) as cloner:
        emulator.faults.set(Fault(method="PATCH", path=AGENT, status=500, work_done=True))
        failed = await cloner.PrepareCall(call(speech), timeout=60)
        given = spoken(emulator)
        clock.ahead = SOON
        await eventually(lambda: before == spoken(emulator))
        again = await cloner.PrepareCall(call(b"", conversation_id="conv_2"), timeout=10)

    assert (False, True) == (failed.agent_updated, again.agent_updated)
    assert failed.voice.voice_id in given


@pytest.mark.parametrize("ended", [False, True])
async def test_update_that_comes_late(
    cloning, emulator: Emulator, speech: bytes, eventually, ended: bool
) -> None:
    """An update that is done after its agent was put back is found later, and no call comes between."""
    before, clock = spoken(emulator), Clock()
    async with cloning(now=clock, provider_attempts=1) as cloner:
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before", times=1))
        with capture_logs() as logs:
            failed = await cloner.PrepareCall(call(speech), timeout=4)
            if ended:
                await end(cloner)
            clock.ahead = SOON
            await eventually(lambda: "agent restored" in {line["event"] for line in logs})
        emulator.faults.clear()
        await eventually(lambda: failed.voice.voice_id in spoken(emulator))
        between = await cloner.PrepareCall(call(b"", conversation_id="conv_2"), timeout=10)
        clock.ahead += LANDS_SECONDS + 1
        await eventually(lambda: before == spoken(emulator))

    assert [False, False] == [failed.agent_updated, between.agent_updated]


async def test_read_while_it_was_updated(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """An agent that was read during an update for another call is not changed because of that reading."""
    before, maria = spoken(emulator), pb.Caller(name="Maria", phone_number="+31612345679")
    async with cloning(provider_attempts=1, agent_update="always") as cloner:
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        ivans = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
        await eventually(lambda: emulator.faults.held == 1)
        emulator.faults.set(
            Fault(method="GET", path=AGENT, hold="after"),
            Fault(method="POST", path=CREATE, hold="before"),
            Fault(method="PATCH", path=AGENT, status=500),
        )
        marias = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=maria), timeout=20))
        await eventually(lambda: emulator.faults.held == 2)
        emulator.faults.release()
        given = await ivans
        await eventually(lambda: emulator.faults.held == 1)
        emulator.faults.release()
        not_given = await marias
        emulator.faults.clear()
        for number in (1, 2):
            await end(cloner, number)
        await eventually(lambda: before == spoken(emulator))

    assert (True, False) == (given.agent_updated, not_given.agent_updated)


async def test_lock_that_ends_while_a_call_is_noted(
    cloning, emulator: Emulator, databases: Databases, speech: bytes, eventually
) -> None:
    """An agent whose lock ends after a call has looked at it, but before that call is noted, is free for the call."""
    url = databases.take()
    async with cloning(database_url=url) as cloner:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(HELD_UP)
            emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
            first = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
            await eventually(lambda: emulator.faults.held == 1)
            second = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech, "conv_2"), timeout=20))
            await eventually(lambda: connection.execute(IS_HELD_UP).fetchone())
            emulator.faults.clear()
            given = await first
            await until_unlocked(url)
        given_again = await second
    databases.give_back(url)

    assert (True, True) == (given.agent_updated, given_again.agent_updated)


@pytest.mark.parametrize("rejected", [False, True])
async def test_try_that_comes_late(
    cloning, emulator: Emulator, speech: bytes, eventually, rejected: bool
) -> None:
    """A try that got no answer, and is done only after the agent was put back, does not stay either.

    Whatever ElevenLabs says to the next try.
    """
    before, clock = spoken(emulator), Clock()
    async with cloning(now=clock, provider_attempts=2) as cloner:
        faults = [Fault(method="PATCH", path=AGENT, status=status) for status in (504, 422)]
        faults[1].body = {"detail": "no"}
        emulator.faults.set(*faults[: 1 + rejected])
        with capture_logs() as logs:
            prepared = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
            if rejected:
                assert "AGENT_REJECTED" == reason(await failure(prepared))[0]
            else:
                assert (await prepared).agent_updated
            lost, _ = emulator.requests.matching(method="PATCH", path=AGENT)
            await end(cloner)
            clock.ahead = SOON
            await eventually(lambda: "agent restored" in {line["event"] for line in logs})
        emulator.agents.put("agent_demo", lost.json)
        clock.ahead += LANDS_SECONDS + 1
        await eventually(lambda: before == spoken(emulator))


async def test_others_that_do_not_answer(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """An agent is put back at once, also while updates of others get no answer."""
    before, hanging = spoken(emulator), ["agent_1", "agent_2"]
    for name in hanging:
        emulator.agents.put(name, {})
    async with cloning() as cloner:
        for number, name in enumerate([*hanging, "agent_demo"]):
            given = await cloner.PrepareCall(call(speech, number, agent_id=name), timeout=10)
            assert given.agent_updated
        paths = [f"/v1/convai/agents/{name}" for name in hanging]
        emulator.faults.set(*(Fault(method="PATCH", path=path, hold="before", times=None) for path in paths))
        for number in range(2):
            await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id=f"conv_{number}"))
        await emulator.requests.wait(method="PATCH", path=paths[0], stage="held")
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))
        emulator.faults.clear()
