"""What is due: intents of processes that died, agents and voices after calls, and what nobody knows of."""

from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import ClaimedAgent, VoiceRow, agents, calls, departures, deployment, voices
from tests.property.interleaving.world import (
    CALL_MAX,
    GRACE,
    KEEP,
    LEFT,
    RECONCILE,
    STALE,
    Steps,
    Work,
    World,
)


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
            voices.fail(tx, lost.marker, "not made", now=world.now)
            world.voices = {call: marker for call, marker in world.voices.items() if marker != lost.marker}
            if lost.replaces is not None:
                world.revoked.add(lost.marker)
        elif not voices.record(tx, lost.marker, made[0], now=world.now):
            discard(world, lost.marker, made[0])
        yield


def discard(world: World, marker: str, voice: str) -> None:
    """Deletes a voice that nobody will use, unless another process has recorded it meanwhile."""
    row = voices.get(world.tx, marker)
    if row is None or row.voice_id != voice or row.state == "gone":
        world.delete(voice)


def put_back(world: World, process: int, row: ClaimedAgent) -> Steps:
    """Gives an agent that was claimed back what it had, where our value still stands."""
    claimed, now = world.now, world.agents[row.agent_id]
    world.locks[row.holder] = Work(process, row.agent_id)
    yield
    ours = row.gave_voice(now.voice_id) or voices.marker_of(world.tx, now.voice_id or "") is not None
    voice = row.before_voice_id if ours and now.voice_id != row.before_voice_id else None
    message = row.before_first_message if row.gave_message(now.first_message) else None
    if world.now - claimed < LEFT:
        world.give(row.agent_id, AgentVoice(voice, message))
        yield
        agents.note_restored(world.tx, row, now=world.now)
    del world.locks[row.holder]


def restore(world: World, process: int) -> Steps:
    """Gives an agent back what it had before a call that is over."""
    row = agents.claim_restore(world.tx, holder=str(next(world.numbers)), now=world.now)
    yield
    if row is not None:
        yield from put_back(world, process, row)


def remove(world: World, process: int) -> Steps:
    """Deletes a voice that was given up, once no agent has it."""
    tx, holder = world.tx, str(next(world.numbers))
    row = departures.claim_deletion(tx, now=world.now, until=world.now + 60)
    if row is None:
        return
    agents.plan_restore(tx, marker=row.marker)
    yield
    while (agent := agents.claim_restore(tx, holder=holder, now=world.now, marker=row.marker)) is not None:
        yield from put_back(world, process, agent)
    if agents.has_voice(tx, row.marker):
        departures.postpone_deletion(tx, row.marker, due_at=world.now, untried=1)
        return
    yield
    world.delete(row.voice_id or "")
    yield
    departures.note_gone(tx, row.marker, now=world.now)


def close(world: World, process: int) -> Steps:
    """Ends calls that never ended, and gives up what nobody used for long."""
    del process
    now, tx = world.now, world.tx
    calls.close_old(tx, before=now - CALL_MAX, now=now)
    yield
    agents.plan_unsure_restores(tx, now=now)
    yield
    departures.expire(tx, unused_since=now - KEEP, busy_since=now - CALL_MAX, now=now)


def find_left_over(world: World, process: int) -> Steps:
    """Finds agents whose voice is lost."""
    del process
    yield
    if agents.any_left_over(world.tx, now=world.now):
        yield
        agents.plan_left_over_restores(world.tx, now=world.now)


def reconcile(world: World, process: int) -> Steps:
    """Removes, or takes in, what was made without anybody's knowledge.

    It is done within the time in which no other process begins.
    """
    del process
    listed, began = dict(world.made), world.now
    if not deployment.claim_reconciliation(world.tx, now=began, until=began + RECONCILE):
        return
    yield
    for voice, (marker, _, made) in listed.items():
        row = voices.get(world.tx, marker)
        if made > began - GRACE or (row is not None and row.state in {"intended", "ready", "deleting"}):
            continue
        yield
        returns = row is not None and (row.state == "failed" or row.is_lost)
        if not returns or not voices.record(world.tx, marker, voice, now=world.now):
            yield
            if world.now >= began + RECONCILE:
                return
            discard(world, marker, voice)


def evict(world: World, process: int) -> Steps:
    """Makes room: gives up the voice that was used the longest ago, unless a call has it by then."""
    tx, now = world.tx, world.now
    busy_since = now - CALL_MAX
    oldest = departures.least_recently_used(tx, busy_since=busy_since, now=now, kept=False, replaces=None)
    assert oldest is None or world.kept.get(oldest.marker, 0.0) <= now, "a voice that is kept was to go"
    # However much happened since the oldest was found, the rule holds for any voice.
    for row in voices.ready(tx)[process:]:
        if departures.evict(tx, row.marker, busy_since=busy_since, now=now):
            world.revoked.add(row.marker)
            in_call = [call for call in world.open if world.voices.get(call) == row.marker]
            assert all(now - world.open[call][2] >= CALL_MAX for call in in_call), "given up in a call"
            break
    yield


def lapse(world: World, process: int) -> Steps:
    """All are too slow to give a sign of life, and another process takes over what they go on to do."""
    world.now += STALE + 1
    yield from resume(world, process)
