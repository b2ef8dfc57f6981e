"""Calls: a delivery, from the call that is noted to the agent that has the voice, and the end of a call."""

from collections.abc import Generator
from contextlib import suppress

import msgspec

from cloner.agents.reading import Reading, intended_row
from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import (
    AgentIntended,
    AgentUpdate,
    NamedRequest,
    NewCall,
    NewVoiceRow,
    Noted,
    Obstacle,
    VoiceRow,
    agents,
    calls,
    late_updates,
    voices,
)
from cloner.registry.consents import CallerForgotten, ConsentWithdrawn
from cloner.registry.holding import LATE_SECONDS
from cloner.registry.requests import RequestDiffers, RequestForgotten
from tests.property.interleaving.upkeep import discard, resume
from tests.property.interleaving.world import (
    AHEAD,
    BEFORE,
    NUMBERS,
    PATIENCE,
    PERSONS,
    PRESUMED,
    Steps,
    Work,
    World,
)  # fmt: skip


def delivery(
    world: World,
    process: int,
    caller: str,
    agent: str,
    conversation: str,
    consent: str = "",
    *,
    slow: bool = False,
) -> Steps:
    """One delivery: finds or makes the caller's voice, and gives it to the agent if it may.

    No request but deliveries brings its `consent`.
    """
    tx, call, deadline = world.tx, f"{agent}/{conversation}", world.now + PATIENCE
    new = NewCall(
        id=call, agent_id=agent, conversation_id=conversation, caller=caller, stated=caller,
        person=caller, number=NUMBERS[caller], begun_at=world.now,
    )  # fmt: skip
    noted = calls.begin(tx, new, others_since=world.now - PRESUMED, consent=consent)
    stated = world.stated.setdefault(call, caller)
    assert (noted is None) == (stated != caller), "a conversation of two callers"
    if noted is not None and consent:
        assert noted.consented == ((caller, consent) not in world.told), (
            "a consent that counts twice, or never"
        )
        if noted.consented:
            world.told.add((caller, consent))
            world.withdrawn.discard(caller)
    if noted is None or noted.call.ended_at is not None:
        return
    assert noted.voice is None or noted.voice.person == caller, "a call with the voice of another"
    world.open[call] = (agent, caller, noted.call.begun_at)
    note_voice(world, call, noted.voice)
    check_before(world, noted)
    yield
    reading = yield from read(world, noted)
    wanted = AgentVoice(None, f"Hallo {caller}")
    update = planned(world, reading, wanted, caller=caller)
    new = new_voice(world, process, caller, consent=consent)
    voice, intended = yield from found_and_intended(
        world, process, new, noted, reading, update, deadline, slow=slow
    )
    if voice is None or intended is None:
        return
    wanted = AgentVoice(voice.voice_id, wanted.first_message)
    update = intended.update
    if intended.obstacle is Obstacle.CALLS:
        return
    if intended.obstacle is Obstacle.CHANGES:
        update = yield from intended_once_free(world, noted, voice, wanted, deadline)
    if update is None:
        return
    world.locks[update.holder] = Work(process, agent, sent=wanted)
    yield
    done = world.now < deadline and voice.voice_id in world.made
    unanswered = done and next(world.numbers) % 3 == 0
    if unanswered:
        world.send(agent, wanted)
    elif done:
        world.give(agent, wanted)
    world.locks[update.holder] = Work(process, agent)
    yield
    del world.locks[update.holder]
    until = world.now + LATE_SECONDS if unanswered else 0.0
    given = done and not unanswered
    held = agents.unlock(tx, agent, holder=update.holder, until=until, given=given, unanswered=unanswered)
    if not held and done:
        late_updates.note(tx, update.row, unanswered=unanswered)


def found_and_intended(
    world: World,
    process: int,
    new: NewVoiceRow,
    noted: Noted,
    reading: Reading,
    update: AgentUpdate | None,
    deadline: float,
    *,
    slow: bool,
) -> Generator[None, None, tuple[VoiceRow | None, AgentIntended | None]]:
    """The caller's voice, and the change of the agent to it, where it may be changed.

    A `slow` agent is still being read when there is a voice. If that is given up before the change is stored,
    there is another one.
    """
    call, caller, row = noted.call.id, new.person, noted.voice
    while True:
        voice, intended = yield from found_or_made(world, process, new, call, row, update, deadline)
        if voice is None or voice.voice_id is None:
            return None, None
        check_whose(world, voice, caller)
        if slow:
            yield
        if update is None:
            check_answered(world, call, voice)
        elif intended is None and world.now < deadline:
            wanted = AgentVoice(voice.voice_id, update.row.first_message)
            intended = intended_for(world, reading, wanted, voice, caller)
        if intended is None or intended.obstacle is not Obstacle.VOICE:
            return voice, intended
        row = voices.find_by_caller(world.tx, caller)
        yield


def read(world: World, noted: Noted) -> Generator[None, None, Reading]:
    """Reads the agent of a call at ElevenLabs, and finds out whether we made its voice."""
    now = world.agents[noted.call.agent_id]
    yield
    ours = voices.marker_of(world.tx, now.voice_id or "") is not None
    reading = Reading(now, noted, ours=ours)
    yield
    return reading


def intended_once_free(
    world: World, noted: Noted, voice: VoiceRow, wanted: AgentVoice, deadline: float
) -> Generator[None, None, AgentUpdate | None]:
    """Reads the agent anew where it was changed or put back meanwhile; None if it still may not be changed."""
    caller, since = noted.call.caller, world.now - PRESUMED
    state = agents.state_for(
        world.tx, noted.call.agent_id, call_id=noted.call.id, caller=caller, others_since=since
    )
    yield
    if state is None or not state.is_free(world.now):
        return None
    reading = yield from read(world, msgspec.structs.replace(noted, agent=state))
    if world.now >= deadline:
        return None
    intended = intended_for(world, reading, wanted, voice, caller)
    return intended.update if intended is not None and intended.obstacle is None else None


def opening(world: World, agent: str, conversation: str, number: str, *, require_consent: bool) -> Steps:
    """ElevenLabs asks about a call: it is told the voice of the one caller who is known by the number."""
    tx, call = world.tx, f"{agent}/{conversation}"
    persons = {row[0] for row in tx.all(PERSONS, number=number)}
    noted = calls.open_call(
        tx,
        NewCall(
            id=call, agent_id=agent, conversation_id=conversation, caller=number, number=number,
            begun_at=world.now, confirmed=True,
        ),
        apart=f"{call}/{number}", number=number, require_consent=require_consent,
    )  # fmt: skip
    call, voice = noted.call.id, noted.voice
    assert noted.call.stated or noted.call.number == number, "a call of another number"
    if voice is not None:
        stated = world.stated.get(call)
        had = voice.marker == world.voices.get(call)
        assert had or {voice.caller} == ({stated} if stated else persons), "the voice of another"
        assert stated or NUMBERS[voice.caller] == number, "the voice of another number"
        assert voice.consent or not require_consent, "a voice without the consent that is required"
        check_whose(world, voice, voice.caller)
    elif noted.call.ended_at is None and call not in world.stated and len(persons) == 1:
        assert require_consent or not [row for row in voices.ready(tx) if row.person in persons]
    stored, conversations = (
        calls.latest(tx, call_id=call),
        calls.latest(tx, call_id=f"{agent}/{conversation}"),
    )
    assert stored is not None
    assert conversations is not None
    assert conversations.ended_at is None or stored.ended_at is not None, (
        "a call in a conversation that is over"
    )
    if stored.ended_at is None:
        who = voice.caller if voice is not None else noted.call.caller
        assert voice is None or stored.marker == voice.marker, "a call without its voice"
        world.open[call] = (agent, world.stated.get(call, who), noted.call.begun_at)
        check_before(world, noted)
    if voice is not None:
        # Also of a call that is over from the start: it may be asked about again.
        note_voice(world, call, voice)
    yield


def check_whose(world: World, voice: VoiceRow, caller: str) -> None:
    """Nobody is answered with the voice of another."""
    assert caller == world.made.get(voice.voice_id or "", ("", caller))[1], "an answer with another's voice"


def check_answered(world: World, call: str, voice: VoiceRow) -> None:
    """Whose agent may not be changed is answered with no voice that nobody may have, either."""
    with suppress(CallerForgotten):
        obstacle = agents.obstacle_for(world.tx, call_id=call, marker=voice.marker, stated=voice.person)
        assert obstacle or voice.marker not in world.revoked, "an answer with a voice that was withdrawn"


def check_before(world: World, noted: Noted) -> None:
    """Whoever is answered while an agent has a caller's voice is told what it had before."""
    agent = noted.call.agent_id
    if world.agents[agent].voice_id != BEFORE[agent].voice_id:
        given = noted.agent.row
        assert given is not None, "what others must be answered is forgotten"
        assert given.before_voice_id == BEFORE[agent].voice_id, "what the agent had is forgotten"


def check_withdrawn(world: World, caller: str) -> None:
    """A caller who has not withdrawn a consent is not refused for it."""
    assert caller in world.withdrawn


def note_voice(world: World, call: str, voice: VoiceRow | None) -> None:
    """The call has the voice from now on."""
    if voice is None:
        world.voices.pop(call, None)
    else:
        world.voices[call] = voice.marker


def new_voice(
    world: World, process: int, caller: str, *, consent: str = "", replaces: bool = False, kept: bool = False
) -> NewVoiceRow:
    """What a process writes down before it makes a voice for a caller."""
    marker = f"marker_{next(world.numbers)}"
    return NewVoiceRow(
        marker=marker, caller=marker if replaces else caller, replaces=caller if replaces else None,
        number=NUMBERS[caller], person=caller, greeting_name=caller, name=caller, owner=world.owner(process),
        traceparent="", consent=consent, kept_until=world.now + AHEAD if kept else 0.0,
    )  # fmt: skip


def planned(
    world: World, reading: Reading, wanted: AgentVoice, *, caller: str, marker: str = ""
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
    )


def intended_for(
    world: World, reading: Reading, wanted: AgentVoice, voice: VoiceRow, caller: str
) -> AgentIntended | None:
    """Stores what the agent had and is about to be given.

    None where it may not be changed as it was read, or the caller was forgotten.
    """
    update = planned(world, reading, wanted, marker=voice.marker, caller=caller)
    if update is None:
        return None
    try:
        intended = AgentIntended(update, agents.intend(world.tx, update, stated=caller, now=world.now))
    except CallerForgotten:
        return None
    check_intended(world, intended)
    return intended


def check_intended(world: World, intended: AgentIntended) -> None:
    """No agent is changed for a call that is over, nor in another caller's, nor to a voice that nobody may have."""
    update = intended.update
    if intended.obstacle is None:
        assert update.row.marker not in world.revoked, "an agent was changed to a voice that was withdrawn"
        assert update.row.call_id in world.open, "an agent was changed for a call that is over"
        assert not world.others(update.row.agent_id, update.caller), "changed in another caller's call"


def found_or_made(
    world: World,
    process: int,
    new: NewVoiceRow,
    call: str | None,
    row: VoiceRow | None,
    update: AgentUpdate | None,
    deadline: float,
    request: NamedRequest | None = None,
) -> Generator[None, None, tuple[VoiceRow | None, AgentIntended | None]]:
    """The row of the caller's voice, which this process makes where nobody else does.

    Also the change of the agent, where that was stored with a voice that was made in time. Nothing is made where the consent was withdrawn, or the request was for another voice.
    """
    tx, caller = world.tx, new.person
    for _ in range(5):
        if row is None:
            new = msgspec.structs.replace(new, marker=f"marker_{next(world.numbers)}")
            if new.replaces is not None:
                new = msgspec.structs.replace(new, caller=new.marker)
            try:
                row = voices.intend(tx, new, call_id=call, stated=caller, now=world.now, request=request).row
            except ConsentWithdrawn:
                check_withdrawn(world, caller)
                return None, None
            except (RequestDiffers, RequestForgotten, CallerForgotten):
                return None, None
            assert row is not None
            if row.marker == new.marker:
                renewed = call is None and new.consent
                assert caller not in world.withdrawn or renewed, "a voice without consent was begun"
                world.withdrawn.discard(caller)
                world.kept[row.marker] = new.kept_until
            if call is not None and call in world.open and world.stated.get(call) == caller:
                note_voice(world, call, row)
            yield
            if row.marker == new.marker:
                voice, intended = f"voice_{next(world.numbers)}", None
                world.made[voice] = (row.marker, caller, world.now)
                yield
                if update is None or world.now >= deadline:
                    recorded = voices.record(
                        tx, row.marker, voice, now=world.now, call_id=call, stated=caller
                    )
                else:
                    update = update.with_voice(row.marker, voice)
                    recorded, obstacle = agents.record_and_intend(tx, update, stated=caller, now=world.now)
                    intended = AgentIntended(update, obstacle)
                    check_intended(world, intended)
                    assert recorded or obstacle, "a voice that is not recorded was to be given to an agent"
                if recorded:
                    made = voices.get(tx, row.marker)
                    yield
                    return made, intended
                discard(world, row.marker, voice)
                yield
        if row.state == "ready" and (
            call is None or calls.attach(tx, call, row.marker, stated=caller, now=world.now)
        ):
            if call is not None and call in world.open and world.stated.get(call) == caller:
                note_voice(world, call, row)
            return row, None
        if row.state == "intended":
            yield from resume(world, process, row)
        row = None if new.replaces is not None else voices.find_by_caller(tx, caller)
        yield
    return None, None


def end(world: World, agent: str, conversation: str) -> Steps:
    """An event after a call."""
    call = f"{agent}/{conversation}"
    for each in [each for each in world.open if each == call or each.startswith(f"{call}/")]:
        del world.open[each]
    calls.complete(
        world.tx, now=world.now, conversation_id=conversation, call_id="", agent_id=agent, voice_id="",
        conversation_call_id=call,
    )  # fmt: skip
    yield
