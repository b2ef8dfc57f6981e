"""From the first delivery to the end: calls, voices, agents and callers."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from cloner.settings import Settings
from emulator import Emulator, Fault
from environment import Secret
from tests.cloner.clock import Clock
from tests.kit.cloning import TICK_SECONDS
from tests.kit.failures import failure
from tests.kit.postgres import drop_database
from tests.kit.provider import AGENT, CREATE, SUBSCRIPTION, VOICE, spoken
from tests.kit.requests import call, end
from tests.kit.rows import until_unlocked, values

QUICK = {"reconcile_seconds": 0.2, "reconcile_grace_seconds": 0.0}


async def reason(answer: Any) -> str:
    """Why a call failed, in words."""
    return (await failure(answer)).details()


async def let_go(database: str) -> None:
    """Waits until the agent may be given another voice: a moment after it has back what it had."""
    async with asyncio.timeout(60):
        while [(None,)] != await values(database, "SELECT marker FROM agents"):
            await asyncio.sleep(0.02)


async def test_agent_gets_back_what_it_had(
    cloning, emulator: Emulator, speech: bytes, eventually, database: str
) -> None:
    """When a call ends its agent speaks as before, and the voice stays for the next call."""
    before = spoken(emulator)
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)
        assert answer.agent_updated
        assert before != spoken(emulator)

        assert await end(cloner)
        await eventually(lambda: before == spoken(emulator))
        await let_go(database)
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)

    assert (True, True) == (again.voice_reused, again.agent_updated)
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_deleted_under_load(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """While new callers use every turn that may last, voices that are not needed any more are deleted all the same."""
    async with cloning(voice_clone_keep_hours=0.0, provider_concurrency=5) as cloner:
        for number in (1, 2):
            await cloner.PrepareCall(call(speech, number), timeout=10)
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
        calling = [
            asyncio.ensure_future(cloner.PrepareCall(call(speech, number), timeout=30))
            for number in range(3, 9)
        ]
        await emulator.requests.wait(4, path=CREATE, stage="held")
        for number in (1, 2):
            await end(cloner, number)
        await eventually(lambda: not emulator.voices.custom)
        emulator.faults.clear()
        await asyncio.gather(*calling)


async def test_leaf_by_leaf(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """What somebody else changed meanwhile stays; only where our value still stands it is put back."""
    voice_before, _ = spoken(emulator)
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        emulator.agents.patch(
            "agent_demo", {"conversation_config": {"agent": {"first_message": "The operator's own words."}}}
        )

        await end(cloner)
        await eventually(lambda: voice_before == spoken(emulator)[0])

    assert "The operator's own words." == spoken(emulator)[1]


async def test_voice_goes_at_once(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """With nothing to wait for, the voice goes when its call ends, after the agent was put back."""
    before = spoken(emulator)
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        await eventually(lambda: not emulator.voices.custom)

    methods = [request.method for request in emulator.requests if request.method in ("PATCH", "DELETE")]
    assert ["PATCH", "PATCH", "DELETE"] == methods
    assert before == spoken(emulator)


async def test_deletion_is_tried_until_it_is_done(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """A provider that fails to delete is asked again; already gone counts."""
    clock = Clock()

    emulator.faults.set(Fault(method="DELETE", path=VOICE, times=2, error="internal_error"))
    async with cloning(now=clock, voice_clone_keep_hours=0.0, provider_attempts=1) as cloner:
        with capture_logs() as logs:
            answer = await cloner.PrepareCall(call(speech), timeout=10)
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))
        listed = await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)

    assert 3 == len(emulator.requests.matching(method="DELETE"))
    assert answer.voice.voice_id not in [voice.voice_id for voice in listed.voices]


async def test_voice_that_is_kept(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """A voice goes so many hours after its last call, and not before; never without auto-deletion."""
    clock = Clock()
    async with cloning(voice_clone_keep_hours=1.0, now=clock) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        clock.ahead = 3_000
        await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_2"), timeout=10)
        clock.ahead = 3_000 + 3_000
        await end(cloner)  # wakes the janitor, and ends nothing anew
        assert 1 == len(emulator.voices.custom)

        clock.ahead = 3_000 + 3_700
        await eventually(lambda: not emulator.voices.custom)


async def test_call_that_never_ends(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """After so many minutes a call counts as over: agent and voice go the usual way."""
    before, clock = spoken(emulator), Clock()
    async with cloning(voice_clone_keep_hours=0.0, call_max_minutes=120.0, now=clock) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        clock.ahead = 121 * 60
        await eventually(lambda: not emulator.voices.custom)

    assert before == spoken(emulator)


@pytest.mark.parametrize("known_by", ["conversation_id", "call_id", "voice_id"])
async def test_ways_to_name_a_call(
    cloning, emulator: Emulator, speech: bytes, eventually, known_by: str
) -> None:
    """A call is found by its conversation, by its id, or by agent and voice."""
    before = spoken(emulator)
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)
        named = {
            "conversation_id": pb.CompleteCallRequest(conversation_id="conv_1"),
            "call_id": pb.CompleteCallRequest(agent_id="agent_demo", call_id=answer.call_id),
            "voice_id": pb.CompleteCallRequest(agent_id="agent_demo", voice_id=answer.voice.voice_id),
        }[known_by]

        assert (await cloner.CompleteCall(named, timeout=10)).found
        assert known_by == "voice_id" or (await cloner.CompleteCall(named, timeout=10)).found
        await eventually(lambda: before == spoken(emulator))
        unknown = pb.CompleteCallRequest(conversation_id="conv_9", call_id="call_9")
        assert not (await cloner.CompleteCall(unknown, timeout=10)).found


async def test_ended_call_touches_no_agent(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """A delivery that comes again after its call gets the voice, and the agent stays as it is."""
    before = spoken(emulator)
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        await eventually(lambda: before == spoken(emulator))
        again = await cloner.PrepareCall(call(speech), timeout=10)

    assert (first.voice, False) == (again.voice, again.agent_updated)
    assert before == spoken(emulator)


async def test_ended_call_makes_no_second_voice(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """A delivery that comes again after its call names the voice that it had, even if that is gone."""
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        await eventually(lambda: not emulator.voices.custom)
        again = await cloner.PrepareCall(call(speech), timeout=10)

    assert (first.voice, True, False) == (again.voice, again.voice_reused, again.agent_updated)
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_agent_is_free_again(
    cloning, emulator: Emulator, speech: bytes, eventually, database: str
) -> None:
    """Once the other caller's call was reported as ended, the agent is updated for the next."""
    before = spoken(emulator)
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech, 1), timeout=10)
        second = await cloner.PrepareCall(call(speech, 2), timeout=10)
        await end(cloner, 1)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))
        await let_go(database)
        third = await cloner.PrepareCall(call(speech, 3), timeout=10)

    assert [True, False, True] == [answer.agent_updated for answer in (first, second, third)]


async def test_restart_forgets_nothing(cloning, emulator: Emulator, speech: bytes) -> None:
    """Voices and calls outlive the process."""
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await cloner.PrepareCall(call(speech, 2), timeout=10)
    async with cloning() as cloner:
        again = await cloner.PrepareCall(call(b"not audio"), timeout=10)
        third = await cloner.PrepareCall(call(speech, 3), timeout=10)

    assert (first.voice.voice_id, True, first.call_id) == (again.voice.voice_id, True, again.call_id)
    assert not third.agent_updated
    assert 3 == len(emulator.requests.matching(path=CREATE))


async def test_one_conversation_has_one_voice(cloning, emulator: Emulator, speech: bytes, samples) -> None:
    """Deliveries for one conversation name one voice, even if they tell the caller differently."""
    other = (samples / "speech.flac").read_bytes()
    async with cloning() as cloner:
        answers = await asyncio.gather(
            cloner.PrepareCall(call(speech, caller=pb.Caller(name="Ivan")), timeout=10),
            cloner.PrepareCall(call(other, caller=pb.Caller(name="Ivan")), timeout=10),
        )

    assert 1 == len({answer.voice.voice_id for answer in answers})
    assert 1 == len(emulator.voices.custom)


@pytest.mark.parametrize(("reuse", "creates"), [("caller", 1), ("sample", 2), ("never", 3)])
async def test_voice_reuse(
    cloning, emulator: Emulator, speech: bytes, samples, reuse: str, creates: int
) -> None:
    """What a voice belongs to is the operator's choice."""
    async with cloning(voice_reuse=reuse) as cloner:
        for number, sample in enumerate((speech, speech, (samples / "speech.flac").read_bytes())):
            await cloner.PrepareCall(call(sample, conversation_id=f"conv_{number}"), timeout=10)

    assert creates == len(emulator.requests.matching(path=CREATE))


async def test_voice_deleted_by_hand(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice that the provider lost is noticed and made again within one delivery."""
    clock = Clock()
    async with cloning(now=clock) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        emulator.voices.remove(first.voice.voice_id)
        clock.ahead = 601
        second = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)
        third = await cloner.PrepareCall(call(speech, conversation_id="conv_3"), timeout=10)

    assert (False, True) == (second.voice_reused, third.voice_reused)
    assert second.voice == third.voice
    assert [second.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_voice_that_nobody_tells_of(cloning, emulator: Emulator, database: str, speech: bytes) -> None:
    """A call waits once, for a moment, to hear whether its voice is there still; then it counts as there."""
    clock = Clock()
    async with cloning(now=clock, reconcile_seconds=10_000) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await until_unlocked(database)
        clock.ahead = 601
        emulator.faults.set(Fault(method="GET", path=VOICE, times=None, hold="before"))
        second = await cloner.PrepareCall(call(speech), timeout=5)
        emulator.faults.clear()

    assert (first.voice.voice_id, True, True) == (
        second.voice.voice_id, second.voice_reused, second.agent_updated,
    )  # fmt: skip
    assert 1 == len(emulator.requests.matching(method="GET", path=VOICE))


async def test_slots_are_made_free(cloning, emulator: Emulator, speech: bytes) -> None:
    """A full account gives up the voice that was used the longest ago and is in no call."""
    emulator.voices.limit = 2
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech, 1), timeout=10)
        second = await cloner.PrepareCall(call(speech, 2), timeout=10)
        assert "slot" in await reason(cloner.PrepareCall(call(speech, 3), timeout=10))

        await end(cloner, 1)
        await end(cloner, 2)
        await cloner.PrepareCall(call(speech, 1, conversation_id="conv_1b"), timeout=10)
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_1b"), timeout=10)
        third = await cloner.PrepareCall(call(speech, 3), timeout=10)

    left = {voice.voice_id for voice in emulator.voices.custom}
    assert {first.voice.voice_id, third.voice.voice_id} == left
    assert second.voice.voice_id not in left


async def test_monthly_counter_is_remembered(cloning, emulator: Emulator, spans, speech: bytes) -> None:
    """Once it is used up nobody asks again before the provider's reset time."""
    clock = Clock()
    emulator.voices.monthly_limit = 1
    async with cloning(now=clock) as cloner:
        # That would ask whether the plan has more room by now.
        await spans.wait("reconcile")
        await cloner.PrepareCall(call(speech, 1), timeout=10)
        for number in (2, 3):
            assert "monthly" in await reason(cloner.PrepareCall(call(speech, number), timeout=10))
        assert 2 == len(emulator.requests.matching(path=CREATE))
        assert 1 == len(emulator.requests.matching(path=SUBSCRIPTION))

        emulator.voices.monthly_limit = None
        clock.ahead = 40 * 86_400
        assert (await cloner.PrepareCall(call(speech, 2), timeout=10)).voice.voice_id


async def test_back_pressure(cloning, emulator: Emulator, speech: bytes) -> None:
    """So many requests at once, so many waiting, and beyond that the provider counts as busy at once.

    Of the four, one place is kept for calls that are starting, and one for what is short.
    """
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(provider_concurrency=4, provider_queue=1, provider_attempts=1) as cloner:
        asked = [
            asyncio.ensure_future(
                cloner.CloneVoice(pb.CloneVoiceRequest(caller=call(b"", n).caller, sample=speech))
            )
            for n in range(4)
        ]
        (busy,), others = await asyncio.wait(asked, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert "Too many requests to ElevenLabs are waiting" in await reason(busy)
        await emulator.requests.wait(2, path=CREATE, stage="held")
        # One waits. Nothing tells that it does, but it would be asked for by now.
        await asyncio.sleep(0.2)
        assert 2 == len(emulator.requests.matching(path=CREATE))

        emulator.faults.clear()
        assert all([(await answer).voice.voice_id for answer in others])


async def test_forget_caller(cloning, emulator: Emulator, speech: bytes) -> None:
    """Voice, agent and rows: nothing is left of a caller, and the next call begins anew."""
    before = spoken(emulator)
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech, 1), timeout=10)
        other = await cloner.PrepareCall(call(speech, 2), timeout=10)

        forgotten = await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=call(b"", 1).caller), timeout=10)
        assert (1, 0) == (forgotten.voices_deleted, forgotten.voices_pending)
        assert [other.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
        assert before == spoken(emulator)
        assert not await end(cloner, 1)

        alone = pb.ForgetCallerRequest(caller=pb.Caller(phone_number="+3161234 0002"))
        assert 1 == (await cloner.ForgetCaller(alone, timeout=10)).voices_deleted
        assert [] == list((await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)).voices)
        assert 0 == (await cloner.ForgetCaller(alone, timeout=10)).voices_deleted

    assert [] == emulator.voices.custom


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("by", ["caller", "voice"])
async def test_forget_the_calls_of_a_number(
    cloning, speech: bytes, database: str, by: str, others: int
) -> None:
    """Calls from a number without a caller go with the only person known by it, and stay where there is another."""
    async with cloning(voice_reuse="never") as cloner:
        prepared = await cloner.PrepareCall(call(speech), timeout=10)
        number = call(b"").caller.phone_number
        for _ in range(others):
            anna = pb.Caller(name="Anna", phone_number=number)
            await cloner.PrepareCall(call(speech, caller=anna, conversation_id="conv_anna"), timeout=10)
        opened = pb.OpenCallRequest(agent_id="agent_demo", conversation_id="conv_9", phone_number=number)
        await cloner.OpenCall(opened, timeout=10)
        whom = {"caller": call(b"").caller} if by == "caller" else {"voice_id": prepared.voice.voice_id}
        await cloner.ForgetCaller(pb.ForgetCallerRequest(**whom), timeout=10)

    left = await values(database, "SELECT conversation_id FROM calls ORDER BY begun_at")
    assert [("conv_anna",), ("conv_9",)][: 2 * others] == left


async def test_forget_caller_by_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """A caller without a number is forgotten by their voice."""
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech, caller=pb.Caller(name="Ivan")), timeout=10)
        request = pb.ForgetCallerRequest(voice_id=answer.voice.voice_id)

        both = pb.ForgetCallerRequest(voice_id=answer.voice.voice_id, caller=pb.Caller(name="Maria"))
        assert "not both" in await reason(cloner.ForgetCaller(both, timeout=10))
        assert 1 == (await cloner.ForgetCaller(request, timeout=10)).voices_deleted
        assert "required" in await reason(cloner.ForgetCaller(pb.ForgetCallerRequest(), timeout=10))

    assert [] == emulator.voices.custom


async def test_forget_while_the_provider_is_down(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """What is not deleted at once is used no more, and deleted later."""
    async with cloning(provider_attempts=1) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        # For every request, as the voice is deleted at the same moment by what looks for voices that are due.
        emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, error="service_unavailable"))
        request = pb.ForgetCallerRequest(caller=call(b"").caller)

        forgotten = await cloner.ForgetCaller(request, timeout=10)
        assert (0, 1) == (forgotten.voices_deleted, forgotten.voices_pending)
        emulator.faults.clear()
        await eventually(lambda: not emulator.voices.custom)


async def test_replace_voice(cloning, emulator: Emulator, speech: bytes, samples, eventually) -> None:
    """A voice that turned out wrong is replaced, and the old one goes."""
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        sample = (samples / "speech.flac").read_bytes()
        replaced = await cloner.ReplaceVoice(
            pb.ReplaceVoiceRequest(caller=call(b"").caller, sample=sample), timeout=10
        )
        await eventually(lambda: 1 == len(emulator.voices.custom))
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)

    assert first.voice.voice_id != replaced.voice.voice_id
    assert replaced.voice == again.voice


async def test_reconciliation_leaves_others_alone(cloning, emulator: Emulator) -> None:
    """Voices of others, of another deployment and from before our database are never touched."""
    labels = {"precall": "precall-theirs-1", "precall_deployment": "theirs"}
    emulator.voices.add(name="a", description="precall-theirs-1", labels=labels, samples=[])
    emulator.voices.add(name="b", description="", labels={}, samples=[])
    old = {"precall": "precall-ours-1", "precall_deployment": "ours"}
    emulator.voices.add(
        name="c", description="precall-ours-1", labels=old, samples=[]
    ).created_at_unix = 1_000
    emulator.voices.add(
        name="d", description="precall-ours-2", labels={**old, "precall": "precall-ours-2"}, samples=[]
    )
    clock = Clock()
    async with cloning(precall_deployment="ours", now=clock, **QUICK):
        emulator.voices.add(
            name="e", description="precall-ours-3", labels={**old, "precall": "precall-ours-3"}, samples=[]
        )
        clock.ahead = 10
        async with asyncio.timeout(60):
            while "e" in {voice.name for voice in emulator.voices.custom}:
                await asyncio.sleep(0.01)

    assert {"a", "b", "c"} <= {voice.name for voice in emulator.voices.custom}


async def test_token(cloning, emulator: Emulator, speech: bytes) -> None:
    """Where there is a token every call needs it, or any of several, but for the health check."""
    tokens = (Secret("token-of-the-future"), Secret("token-of-the-cloner"))
    async with cloning(cloner_token=tokens) as cloner:
        for metadata in (
            None,
            (("authorization", "Bearer wrong"),),
            (("authorization", "token-of-the-cloner"),),
            (("authorization", "Bearer token-of-the-future,token-of-the-cloner"),),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cloner.PrepareCall(call(speech), timeout=10, metadata=metadata)
            assert grpc.StatusCode.UNAUTHENTICATED is caught.value.code()
        assert 0 == len(emulator.requests.matching(path=CREATE))

        for token in tokens:
            right = (("authorization", f"Bearer {token.reveal()}"),)
            assert (await cloner.PrepareCall(call(speech), timeout=10, metadata=right)).voice.voice_id


def test_token_is_needed_off_the_loopback() -> None:
    """Whoever serves others is told to choose one."""
    with pytest.raises(ValueError, match="CLONER_TOKEN"):
        Settings(elevenlabs_api_key=Secret("k"), cloner_host="0.0.0.0")


async def test_database_that_goes_away(cloning, emulator: Emulator, speech: bytes, database: str) -> None:
    """A store that cannot be reached is told as such, and nothing is asked of the provider."""
    if database.startswith("sqlite"):
        return  # a file does not go away while it is open
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await drop(database)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cloner.PrepareCall(call(speech, 2), timeout=10)

    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
    assert "registry" in caught.value.details()
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def drop(database: str) -> None:
    """Ends every connection to a database, and removes it."""
    await asyncio.to_thread(drop_database, database)


@pytest.mark.long
async def test_idle_cloner_writes_nothing(
    cloning, emulator: Emulator, speech: bytes, tmp_path: Any, database: str
) -> None:
    """While nothing is due, the registry is asked and never written to."""
    if database.startswith("postgres"):
        return  # the same question, whose writes would not show from outside
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await emulator.requests.wait(path="/v2/voices")
        with closing(sqlite3.connect(tmp_path / "precall.sqlite3")) as other:
            seen: list[int] = []
            while seen[-3:] != [(version := other.execute("PRAGMA data_version").fetchone()[0])] * 3:
                seen.append(version)
                await asyncio.sleep(5 * TICK_SECONDS)
                assert len(seen) < 20, "it writes every tick"


async def test_replays_are_answered_from_what_is_known(cloning, emulator: Emulator, speech: bytes) -> None:
    """A delivery that comes again in its call has the same answer, and ElevenLabs is not asked anew."""
    async with cloning() as cloner:
        await emulator.requests.wait(path="/v2/voices", stage="finished")
        first = await cloner.PrepareCall(call(speech), timeout=10)
        asked = len(emulator.requests.matching())

        again = [await cloner.PrepareCall(call(speech), timeout=10) for _ in range(5)]
        at_once = await asyncio.gather(*(cloner.PrepareCall(call(speech), timeout=10) for _ in range(16)))

    assert asked == len(emulator.requests.matching())
    for answer in (*again, *at_once):
        assert (first.voice.voice_id, True, True, first.agent_before) == (
            answer.voice.voice_id, answer.voice_reused, answer.agent_updated, answer.agent_before,
        )  # fmt: skip


async def test_replays_while_the_first_is_under_way(
    cloning, emulator: Emulator, speech: bytes, spans
) -> None:
    """Those who come while the voice is made wait for the one answer, each for as long as it may.

    Their traces lead to the one that they wait for.
    """
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        first = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
        await emulator.requests.wait(path=CREATE, stage="held")
        others = [asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30)) for _ in range(16)]
        # Who has noted the call finds the first one at once.
        await spans.wait("registry calls.begin", 17)
        for _ in range(5):
            impatient = await reason(cloner.PrepareCall(call(speech), timeout=1.5))
            # On a machine that stands still for a moment there is no time to see what was waited for.
            if "did not answer in time" in impatient:
                break
        emulator.faults.release()
        answers = await asyncio.gather(first, *others)

    assert "did not answer in time" in impatient
    assert 1 == len({answer.voice.voice_id for answer in answers})
    assert [False, *[True] * 16] == [answer.voice_reused for answer in answers]
    assert [True] * 17 == [answer.agent_updated for answer in answers]
    assert 1 == len(emulator.requests.matching(method="PATCH"))
    assert 2 >= len(emulator.requests.matching(method="GET", path=AGENT))
    calls = await spans.wait("precall.v1.CloningService/PrepareCall", 18)
    served = [span for span in calls if span.attributes["precall.outcome"] == "success"]
    (leading,) = [span.context.trace_id for span in served if not span.links]
    assert any(span.links for span in calls if span not in served)
    assert {leading} == {span.links[0].context.trace_id for span in calls if span.links}


async def test_replays_after_the_end_keep_no_voice(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """Who sends a delivery again and again after its call does not keep the caller's voice for ever."""
    clock = Clock()
    async with cloning(voice_clone_keep_hours=1.0, now=clock) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        for _ in range(4):
            clock.ahead += 1_000
            answer = await cloner.PrepareCall(call(speech), timeout=10)
            assert not answer.agent_updated
        await eventually(lambda: not emulator.voices.custom)
