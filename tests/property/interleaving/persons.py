"""Callers beside their calls: voices that are made or replaced by request, consents, and erasure."""

import msgspec

from cloner.registry import NamedRequest, erasing, reasons, requests, voice_consents, voices
from cloner.registry.requests import RequestDiffers, RequestForgotten
from tests.property.interleaving.deliveries import check_whose, found_or_made, new_voice
from tests.property.interleaving.upkeep import resume
from tests.property.interleaving.world import AHEAD, NUMBERS, OF_NUMBER, PATIENCE, Steps, World


def ahead(world: World, process: int, caller: str, name: str, *, replaces: bool) -> Steps:
    """A request for a voice before any call, or for another voice in its place; it may come again."""
    tx, asked = world.tx, world.now
    request = NamedRequest(key=name, content=f"{'replace' if replaces else 'clone'}/{caller}")
    for _ in range(3):
        row = voices.find_by_caller(tx, caller)
        yield
        try:
            found = requests.answer(tx, request, now=world.now)
        except (RequestDiffers, RequestForgotten):
            return
        if found is not None:
            answered = voices.get(tx, found.marker)
            if answered is not None and answered.voice_id:
                check_whose(world, answered, caller)
                given_up = answered.marker in world.revoked and answered.reason != reasons.EVICTED
                assert not given_up, "an answer with a voice that nobody may have any more"
                world.answer(request, answered.marker, asked)
                return
            if answered is not None:
                yield from resume(world, process, answered)
            continue
        if replaces and row is not None and row.state == "intended":
            yield from resume(world, process, row)
            continue
        yield
        new = new_voice(
            world, process, caller, consent="form 1", replaces=replaces and row is not None, kept=True
        )
        new = msgspec.structs.replace(new, client_reference=new.marker)
        made, _ = yield from found_or_made(
            world, process, new, None, None if replaces else row, None, world.now + PATIENCE, request
        )
        if made is None:
            return
        check_whose(world, made, caller)
        yield
        # A voice that somebody else has made meanwhile does not replace.
        if replaces and made.client_reference != new.client_reference:
            continue
        until = world.now + AHEAD
        try:
            told = (
                requests.settle(tx, request, made.marker, reused=False, now=world.now)
                if replaces
                else voices.keep_for(tx, made.marker, request, until=until, reused=False, now=world.now)
            )
        except (RequestDiffers, RequestForgotten):
            return
        if told is not None and not replaces:
            world.kept[made.marker] = until
        if told is not None and told.marker == made.marker:
            world.answer(request, told.marker, asked)
            return
        yield


def consent(world: World, caller: str, number: int) -> Steps:
    """A caller gives a consent."""
    reference = f"form {number}"
    voice_consents.give(world.tx, caller, reference, number=NUMBERS[caller], now=world.now)
    world.withdrawn.discard(caller)
    row = voices.find_by_caller(world.tx, caller)
    assert row is None or row.consent == reference, "a voice under a former consent"
    yield


def withdraw(world: World, caller: str) -> Steps:
    """A caller withdraws the consent: the voices go, and none is made before there is another."""
    rows = voices.find_by_person_or_number(world.tx, caller, None)
    left = voice_consents.withdraw(world.tx, caller, "", number=NUMBERS[caller], now=world.now)
    world.withdrawn.add(caller)
    world.revoked |= {row.marker for row in rows}
    assert voices.find_by_caller(world.tx, caller) is None, "a voice that outlives its consent"
    assert {row.marker for row in rows if row.state == "ready"} <= {row.marker for row in left}
    yield


def forget(world: World, caller: str, *, whole_number: bool) -> Steps:
    """A caller is forgotten, or everybody who calls from the number."""
    tx, number = world.tx, NUMBERS[caller]
    callers = [each for each in NUMBERS if NUMBERS[each] == number] if whole_number else [caller]
    world.revoked |= {
        row.marker for each in callers for row in voices.find_by_person_or_number(tx, each, None)
    }
    if whole_number:
        erasing.forget(tx, None, number, now=world.now)
        for table, statement in OF_NUMBER.items():
            assert [] == tx.all(statement, number=number), f"{table} of a number that was forgotten"
        world.forget(*callers, number=number)
    else:
        erasing.forget(tx, caller, None, persons_number=number, now=world.now)
        alone = world.known_by(number) <= {caller}
        assert not alone or [] == tx.all(OF_NUMBER["calls"], number=number), "a call of a number of nobody"
        world.forget(caller, number=number if alone else "")
    yield
