"""How often a call waits for the registry, and what of its agent is stored there together with a new voice."""

import asyncio
from typing import Any

import psycopg
import pytest
from precall.v1 import cloning_pb2 as pb

from cloner.registry import (
    AgentRow,
    AgentUpdate,
    NewCall,
    agents,
    calls,
    departures,
    opened,
    voices,
)
from emulator import Emulator, Fault
from tests.kit.intents import intent
from tests.kit.requests import call
from tests.kit.rows import values

NOW = 1_700_000_000.0
CREATE = "/v1/voices/add"
PREPARE, OPEN = (f"precall.v1.CloningService/{name}" for name in ("PrepareCall", "OpenCall"))
GIVEN = "SELECT voice_id FROM agents"
# What is asked while the sample is inspected, and what is stored while the answer leaves.
BESIDE = {"registry voices.marker_of", "registry agents.unlock"}


def waited_for(spans: Any, of: Any) -> list[str]:
    """The transactions that a request had to wait for, in their order."""
    ended = [span for span in spans.finished() if span.context.trace_id == of.context.trace_id]
    stored = [span for span in ended if span.name.startswith("registry ") and span.name not in BESIDE]
    return [span.name for span in sorted(stored, key=lambda span: span.start_time)]


@pytest.mark.parametrize("consent", ["", "form 17"], ids=["without consent", "with consent"])
@pytest.mark.parametrize(
    ("mode", "made", "found"),
    [
        ("auto", "agents.record_and_intend", "agents.intend"),
        ("never", "voices.record", "agents.obstacle_for"),
    ],
)
async def test_transactions_of_a_call(
    cloning: Any,
    emulator: Emulator,
    spans: Any,
    speech: bytes,
    mode: str,
    made: str,
    found: str,
    consent: str,
) -> None:
    """A new caller waits for three transactions, a known one for two, and ElevenLabs' own webhook for one."""
    emulator.agents.put("agent_other", {})
    number = call(speech).caller.phone_number
    first_call, another = call(speech), call(speech)
    first_call.consent = another.consent = consent
    another.agent_id, another.conversation_id = "agent_other", "conv_2"
    opening = pb.OpenCallRequest(agent_id="agent_demo", conversation_id="conv_3", phone_number=number)
    async with cloning(agent_update=mode) as cloner:
        new = await cloner.PrepareCall(first_call, timeout=20)
        known = await cloner.PrepareCall(another, timeout=20)
        assert (False, True) == (new.voice_reused, known.voice_reused)
        assert [mode == "auto"] * 2 == [new.agent_updated, known.agent_updated]
        await cloner.OpenCall(opening, timeout=20)

    (first, second), (third,) = spans.finished(PREPARE), spans.finished(OPEN)
    assert [
        ["registry calls.begin", "registry voices.intend", f"registry {made}"],
        ["registry calls.begin", f"registry {found}"],
        ["registry calls.open_call"],
    ] == [waited_for(spans, span) for span in (first, second, third)]


@pytest.mark.parametrize("hangs_up", [True, False], ids=["hung up", "too late"])
async def test_call_that_no_longer_waits_for_its_voice(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, database: str, *, hangs_up: bool
) -> None:
    """The voice is recorded, but nothing of an agent that nobody will change; the next delivery changes it."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20 if hangs_up else 2))
        await emulator.requests.wait(path=CREATE, stage="held")
        if hangs_up:
            asked.cancel()
        await asyncio.wait({asked})
        await spans.wait(PREPARE)
        emulator.faults.release()
        await spans.wait("registry voices.record")

        assert [] == await values(database, GIVEN)
        assert [] == emulator.requests.matching(method="PATCH")
        again = await cloner.PrepareCall(call(speech), timeout=20)
        assert (True, True) == (again.voice_reused, again.agent_updated)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_call_that_goes_while_its_voice_is_recorded(
    cloning: Any, emulator: Emulator, spans: Any, speech: bytes, database: str
) -> None:
    """Its agent is let go of, unchanged, so that the next delivery can change it."""
    waiting = """
        SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND datname = current_database()
    """
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=20))
        await emulator.requests.wait(path=CREATE, stage="held")
        with psycopg.connect(database) as other:
            other.execute("SELECT 1 FROM voices FOR UPDATE")
            emulator.faults.release()
            async with asyncio.timeout(60):
                while [(1,)] != await values(database, waiting):
                    await asyncio.sleep(0.01)
            asked.cancel()
            await spans.wait(PREPARE)
        async with asyncio.timeout(60):
            while (0.0,) not in await values(database, "SELECT held_until FROM agents"):
                await asyncio.sleep(0.01)

        ((voice_id,),) = await values(database, GIVEN)
        assert [voice_id] == [voice.voice_id for voice in emulator.voices.custom]
        assert [] == emulator.requests.matching(method="PATCH")
        again = await cloner.PrepareCall(call(speech), timeout=20)
        assert (voice_id, True) == (again.voice.voice_id, again.agent_updated)


async def test_agent_of_another_callers_call(cloning: Any, spans: Any, speech: bytes) -> None:
    """Where the agent may not be changed, the voice is recorded all the same, and nothing is asked twice."""
    async with cloning() as cloner:
        assert (await cloner.PrepareCall(call(speech), timeout=20)).agent_updated
        second = await cloner.PrepareCall(call(speech, 2), timeout=20)

    assert (False, False) == (second.voice_reused, second.agent_updated)
    assert "registry agents.record_and_intend" == waited_for(spans, spans.finished(PREPARE)[1])[-1]


@pytest.mark.parametrize(
    ("meanwhile", "expected", "given"),
    [
        ("nothing", (True, True), ["new"]),
        ("it was stored, and nobody heard of it", (True, True), ["new"]),
        ("the call ended", (True, False), []),
        ("another caller began", (True, False), []),
        ("the voice was lost to another", (False, False), []),
        ("the voice was forgotten", (False, False), []),
    ],
)
async def test_new_voice_and_its_agent(
    database: str, meanwhile: str, expected: tuple[bool, bool], given: list[str]
) -> None:
    """No agent is given a voice that is not recorded; a voice is recorded also where no agent is given it."""
    row = AgentRow("agent", "", "call", "", "Hallo", "before", "Welcome.", None, None, None, "")
    update = AgentUpdate(row=row, changes=0, caller="Ivan", others_since=NOW - 900, holder="holder")
    async with opened(database, name="tested", now=NOW) as store:
        await store.write(calls.begin, new("call", "Ivan"))
        await store.write(voices.intend, intent("marker", caller="Ivan"), call_id="call", now=NOW)
        match meanwhile:
            case "it was stored, and nobody heard of it":
                await store.write(
                    agents.record_and_intend, update.with_voice("marker", "new"), stated="Ivan", now=NOW
                )
            case "the call ended":
                await store.write(
                    calls.complete, now=NOW, call_id="call", conversation_id="", agent_id="agent", voice_id="",
                    conversation_call_id="",
                )  # fmt: skip
            case "another caller began":
                await store.write(calls.begin, new("another", "Maria"))
            case "the voice was lost to another":
                await store.write(voices.fail, "marker", "unanswered", now=NOW)
                await store.write(voices.intend, intent("later", caller="Ivan"), call_id="call", now=NOW)
                assert await store.write(voices.record, "later", "voice of later", now=NOW)
            case "the voice was forgotten":
                await store.write(departures.forget, "marker", now=NOW)
        recorded, obstacle = await store.write(
            agents.record_and_intend, update.with_voice("marker", "new"), stated="Ivan", now=NOW
        )

    assert expected == (recorded is not None, obstacle is None)
    assert [(voice_id,) for voice_id in given] == await values(database, GIVEN)


def new(name: str, caller: str) -> NewCall:
    """A caller's call at the agent."""
    return NewCall(
        id=name, agent_id="agent", conversation_id=name, caller=caller, stated=caller, begun_at=NOW
    )
