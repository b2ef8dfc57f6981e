"""Voices that go: whatever happens at the same moment, none comes back, and nobody's name stays behind."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from cloner.registry import (
    NewCall,
    NewVoiceRow,
    Store,
    Transaction,
    calls,
    departures,
    due,
    erasing,
    opened,
    reasons,
    requests,
    voice_consents,
    voices,
)
from cloner.registry.consents import CallerForgotten
from cloner.registry.statement import Statement
from tests.kit.rows import values

NOW = 1_700_000_000.0
IVAN = "person of Ivan"
NUMBER = "number of Ivan"
WAITING = """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()
"""


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """An open registry, on both databases."""
    async with opened(database, name="tested", now=NOW) as made:
        yield made


def intent(marker: str, *, owner: str = "process") -> NewVoiceRow:
    """A voice of Ivan's that is about to be made."""
    return NewVoiceRow(
        marker=marker, caller=IVAN, replaces=None, number=NUMBER, person=IVAN, greeting_name="Ivan",
        name="Ivan_Clone", owner=owner, traceparent="", consent="signed by Ivan", kept_until=0.0,
        client_reference="ivan-1",
    )  # fmt: skip


def call(stated: str, *, number: str = NUMBER) -> NewCall:
    """The call of whom a delivery states, or of a number."""
    return NewCall(
        id="call", agent_id="agent", conversation_id="conv", caller=stated or number, number=number,
        stated=stated, begun_at=NOW,
    )  # fmt: skip


def begin(tx: Transaction, marker: str) -> None:
    """A call of Ivan's, with a voice that is about to be made for it."""
    calls.begin(tx, call(IVAN))
    voices.intend(tx, intent(marker), call_id="call", now=NOW)


async def made(store: Store, marker: str, voice_id: str) -> None:
    """Makes a voice of Ivan's, for a call."""
    await store.write(begin, marker)
    assert await store.write(voices.record, marker, voice_id, now=NOW)


async def state(store: Store, marker: str) -> tuple[str, str | None] | None:
    """How a voice stands, and why."""
    row = await store.read(voices.get, marker)
    return None if row is None else (row.state, row.reason)


@pytest.mark.parametrize("slot", ["marker", "former_marker"])
async def test_not_due_while_an_agent_speaks_with_it(store: Store, slot: str) -> None:
    """It is not claimed while somebody has its agent, or its agent waits to be tried again; after that it is."""
    await made(store, "marker", "voice")
    await store.write(departures.delete, "marker", now=NOW)
    given = Statement(
        f"INSERT INTO agents (agent_id, {slot}, held_until) VALUES ('agent', 'marker', {NOW + 60})"
    )
    await store.write(lambda tx: tx.run(given))

    moments = {"busy_since": 0.0, "unused_since": None, "dropped_before": 0.0, "stale": 0.0}
    due_at = [
        "delete" in await store.read(due.what_is_due, now=now, **moments) for now in (NOW + 59, NOW + 60)
    ]
    claimed = [
        await store.write(departures.claim_deletion, now=now, until=now + 60) for now in (NOW + 59, NOW + 60)
    ]
    assert [False, True] == due_at == [row is not None for row in claimed]


@pytest.mark.parametrize("reason", ["unanswered", "not made", "given up"])
async def test_withdrawn_after_a_create_without_an_answer(store: Store, reason: str) -> None:
    """A voice that turns out to have been made after all does not come back without its consent."""
    await store.write(voices.intend, intent("marker"), call_id=None, now=NOW)
    await store.write(voices.fail, "marker", reason, now=NOW)
    await store.write(voice_consents.withdraw, IVAN, "", number=NUMBER, now=NOW + 1)

    assert not await store.write(voices.record, "marker", "voice", now=NOW + 2)
    assert ("failed", "consent withdrawn") == await state(store, "marker")


async def test_recorded_before_it_is_given_up(store: Store) -> None:
    """A voice that another process has recorded stays ready, and stays that of its call."""
    await made(store, "marker", "voice")
    await store.write(voices.fail, "marker", "TIMED_OUT", now=NOW)

    assert ("ready", None) == await state(store, "marker")
    call = await store.read(calls.latest, call_id="call")
    assert call is not None
    assert "marker" == call.marker


async def test_given_up_by_whoever_has_it(store: Store) -> None:
    """An intent that another process took over is not its former owner's to give up."""
    await store.write(begin, "marker")
    assert await store.write(
        voices.take_over, "marker", dead="process", owner="taker", stale=NOW + 1, now=NOW + 2
    )

    await store.write(voices.fail, "marker", "TIMED_OUT", owner="process", now=NOW + 3)
    assert ("intended", None) == await state(store, "marker")
    await store.write(voices.fail, "marker", "TIMED_OUT", owner="taker", now=NOW + 4)
    assert ("failed", "TIMED_OUT") == await state(store, "marker")


async def test_forgotten_on_its_way(store: Store) -> None:
    """Nothing is left of a voice that was on its way, and it cannot be recorded."""
    await store.write(begin, "marker")

    assert [] == await store.write(erasing.forget, IVAN, None, now=NOW)
    assert not await store.write(voices.record, "marker", "voice", now=NOW)
    assert await state(store, "marker") is None
    assert await store.read(calls.latest, call_id="call") is None


async def test_forgotten_without_a_voice(store: Store) -> None:
    """A call that was noted of a person is forgotten, too, where no voice was begun for it."""
    await store.write(calls.begin, call(IVAN))

    await store.write(erasing.forget, IVAN, None, now=NOW)

    assert await store.read(calls.latest, call_id="call") is None


async def test_forgotten_and_the_call_is_anothers(store: Store) -> None:
    """A delivery under way, whose caller was forgotten, neither gives a voice to whose call it is nor takes one."""
    anna = "person of Anna"
    await made(store, "marker", "voice")
    await store.write(erasing.forget, IVAN, None, now=NOW)
    await store.write(calls.begin, call(anna))
    theirs = msgspec.structs.replace(intent("theirs"), caller=anna, person=anna)
    await store.write(voices.intend, theirs, call_id="call", stated=anna, now=NOW)
    before = await store.read(calls.latest, call_id="call")

    intended = await store.write(voices.intend, intent("late"), call_id="call", stated=IVAN, now=NOW)
    assert await store.write(calls.attach, "call", "late", stated=IVAN, now=NOW)

    assert intended.row is not None
    assert "late" == intended.row.marker
    assert before == await store.read(calls.latest, call_id="call")


async def test_forgotten_and_the_call_was_opened_since(store: Store) -> None:
    """Nor is a voice made for it where somebody was asked about the call after that."""
    await made(store, "marker", "voice")
    await store.write(erasing.forget, IVAN, None, now=NOW)
    opening = {"apart": "apart", "number": "of Anna", "require_consent": False}
    await store.write(calls.open_call, call("", number="of Anna"), **opening)
    before = await store.read(calls.latest, call_id="call")

    with pytest.raises(CallerForgotten):
        await store.write(voices.intend, intent("late"), call_id="call", stated=IVAN, now=NOW)
    with pytest.raises(CallerForgotten):
        await store.write(calls.begin, call(IVAN), once_more=True)

    assert before == await store.read(calls.latest, call_id="call")


@pytest.mark.parametrize("whose", [(IVAN, None), (None, NUMBER)])
async def test_forgotten_right_after_it_was_recorded(
    store: Store, database: str, whose: tuple[str | None, str | None]
) -> None:
    """One that is ready by then is to be deleted, and meanwhile its row tells nothing of whose it was."""
    await made(store, "marker", "voice")

    left = await store.write(erasing.forget, *whose, now=NOW + 1)

    assert [("marker", "voice", "deleting")] == [(row.marker, row.voice_id, row.state) for row in left]
    stored = await stored_texts(database)
    assert {text for text in stored if "Ivan" in text or "ivan" in text} == {IVAN}
    await store.write(departures.note_gone, "marker", now=NOW + 2)
    assert await state(store, "marker") is None


async def test_forgotten_while_it_is_being_deleted(store: Store) -> None:
    """One that was given up before, and is at work with somebody, leaves no row either."""
    await made(store, "marker", "voice")
    await store.write(departures.delete, "marker", now=NOW)
    assert await store.write(departures.claim_deletion, now=NOW, until=NOW + 30) is not None

    await store.write(erasing.forget, IVAN, None, now=NOW)
    await store.write(departures.note_gone, "marker", now=NOW + 1)

    assert await state(store, "marker") is None


# What gives a voice up for each reason.
WAYS: dict[str, tuple[Callable[..., object], dict[str, object]]] = {
    "deleted": (departures.delete, {"marker": "marker"}),
    "evicted": (departures.evict, {"marker": "marker", "busy_since": NOW}),
    "expired": (departures.expire, {"unused_since": NOW, "busy_since": NOW}),
    "consent withdrawn": (voice_consents.withdraw, {"person": IVAN, "consent": "", "number": NUMBER}),
}


@pytest.mark.parametrize("reason", WAYS)
async def test_why_it_went(store: Store, reason: str) -> None:
    """What a voice was given up for is told of it when it is gone, whoever deletes it."""
    await made(store, "marker", "voice")
    give_up, named = WAYS[reason]
    await store.write(give_up, **named, now=NOW)
    await store.write(departures.note_gone, "marker", now=NOW + 1)

    assert ("gone", reason) == await state(store, "marker")


async def test_lost_without_being_given_up(store: Store) -> None:
    """A voice that only ElevenLabs does not have any more is told as lost."""
    await made(store, "marker", "voice")
    await store.write(departures.note_gone, "marker", now=NOW + 1)

    assert ("gone", "lost") == await state(store, "marker")


async def stored_texts(database: str) -> set[str]:
    """Every text in the table of voices."""
    found = await values(database, "SELECT * FROM voices")
    return {value for row in found for value in row if isinstance(value, str)}


async def meanwhile(
    database: str, store: Store, first: Callable[[Transaction], object], then: Awaitable[object]
) -> tuple[object, object]:
    """The results of two transactions, of which the second comes while the first is not committed yet."""
    begun, go_on = threading.Event(), threading.Event()

    def slowly(tx: Transaction) -> object:
        result = first(tx)
        begun.set()
        assert go_on.wait(30)
        return result

    slow = asyncio.ensure_future(store.write(slowly))
    await asyncio.to_thread(begun.wait)
    quick = asyncio.ensure_future(then)
    if store.postgres:
        # SQLite has them wait in its queue, where nothing can be seen of it.
        async with asyncio.timeout(60):
            while not await values(database, WAITING):
                await asyncio.sleep(0.01)
    go_on.set()
    return await slow, await quick


@pytest.mark.parametrize("way", ["begin", "attach"])
async def test_evicted_while_a_call_gets_it(database: str, store: Store, way: str) -> None:
    """A voice that a call is just given is not given up for want of room."""
    await store.write(voices.intend, intent("marker"), call_id=None, now=NOW)
    assert await store.write(voices.record, "marker", "voice", now=NOW)
    if way == "attach":
        await store.write(calls.begin, msgspec.structs.replace(call(IVAN), caller="not known by then"))

    def given(tx: Transaction) -> object:
        if way == "begin":
            return calls.begin(tx, call(IVAN))
        return calls.attach(tx, "call", "marker", now=NOW, stated=IVAN)

    evicting = store.write(departures.evict, "marker", busy_since=NOW - 7200, now=NOW)
    has, evicted = await meanwhile(database, store, given, evicting)

    row = await store.read(voices.get, "marker")
    assert row is not None
    assert (True, False, "ready") == (bool(has), evicted, row.state)


@pytest.mark.parametrize("reason", [reasons.UNANSWERED, reasons.NOT_MADE])
async def test_withdrawn_while_it_turns_up(database: str, store: Store, reason: str) -> None:
    """A voice that is recorded late, just as its person withdraws the consent, goes with the others."""
    await store.write(voices.intend, intent("marker"), call_id=None, now=NOW)
    await store.write(voices.fail, "marker", reason, now=NOW)

    withdrawing = store.write(voice_consents.withdraw, IVAN, "", number=None, now=NOW)
    recorded, _ = await meanwhile(
        database, store, lambda tx: voices.record(tx, "marker", "voice", now=NOW), withdrawing
    )

    row = await store.read(voices.get, "marker")
    assert row is not None
    assert (True, "deleting") == (recorded is not None, row.state)


@pytest.mark.parametrize("failed", [False, True], ids=["just recorded", "recorded late"])
async def test_withdrawn_while_the_voice_of_a_request_is_recorded(
    database: str, store: Store, failed: bool
) -> None:
    """However the two meet, the request is not answered with that voice."""
    request = requests.NamedRequest(key="key", content="content")
    await store.write(voices.intend, intent("marker"), call_id=None, request=request, now=NOW)
    if failed:
        await store.write(voices.fail, "marker", reasons.UNANSWERED, now=NOW)

    withdrawing = store.write(voice_consents.withdraw, IVAN, "", number=None, now=NOW)
    await meanwhile(database, store, lambda tx: voices.record(tx, "marker", "voice", now=NOW), withdrawing)

    assert ("deleting", "consent withdrawn") == await state(store, "marker")
    with pytest.raises(requests.RequestForgotten):
        await store.read(requests.answer, request, now=NOW)
