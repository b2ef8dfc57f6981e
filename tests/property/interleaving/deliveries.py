"""Calls: a delivery, from the call that is noted to the agent that has the voice, and the end of a call."""

from collections.abc import Generator

from cloner.agents.giving import Reading, intended_row
from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import AgentUpdate, NewCall, NewVoiceRow, VoiceRow, agents, calls, voices
from tests.property.interleaving.upkeep import resume
from tests.property.interleaving.world import AFTERMATH, BEFORE, PATIENCE, PRESUMED, Steps, World


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


def end(world: World, agent: str, conversation: str) -> Steps:
    """An event after a call."""
    call = f"{agent}/{conversation}"
    world.open.pop(call, None)
    calls.complete(
        world.tx, now=world.now, conversation_id=conversation, call_id="", agent_id=agent, voice_id="",
        named_id=call,
    )  # fmt: skip
    yield
