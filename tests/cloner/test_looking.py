"""What became of voices and calls, for whoever asks: one of them, and lists by filters."""

import asyncio
import base64
from functools import partial
from typing import Any

import psycopg
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1 import error_reason_pb2

from emulator import Emulator, Fault
from tests.cloner.clock import StoppedClock
from tests.kit.changes import comes_true
from tests.kit.failures import refusal
from tests.kit.requests import IVAN, call_of_ivan
from tests.kit.voices import get

CREATE = "/v1/voices/add"
HOUR, DAY = 3_600, 86_400


async def listed(cloner: Any, **filters: Any) -> list[str]:
    """The ids of a list of voices."""
    page = await cloner.ListVoices(pb.ListVoicesRequest(**filters), timeout=10)
    return [voice.voice_id for voice in page.voices]


async def test_life_of_a_voice(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """Its state, when it goes, when it was used last, and why it is gone."""
    clock = StoppedClock(1_800_000_000.0)
    async with cloning(now=clock, voice_clone_keep_hours=2.0, enrolment_keep_days=1.0) as cloner:
        made = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=IVAN, sample=speech, client_reference=" customer 7 "), timeout=10
        )
        enrolled = await get(cloner, voice_id=made.voice.voice_id)
        clock.now += 23 * HOUR
        await cloner.PrepareCall(call_of_ivan(), timeout=10)
        in_call = await get(cloner, caller=IVAN)
        clock.now += 600
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_1"), timeout=10)
        called = await get(cloner, caller=IVAN)
        clock.now += 2 * HOUR
        await eventually(lambda: not emulator.voices.custom)
        gone = await get(cloner, voice_id=made.voice.voice_id)

    def told(voice: pb.Voice) -> tuple[Any, ...]:
        return (
            pb.VoiceState.Name(voice.state),
            voice.expire_time.seconds - 1_800_000_000,
            voice.last_use_time.seconds - 1_800_000_000,
        )

    assert (pb.VOICE_STATE_READY, "customer 7") == (made.voice.state, made.voice.client_reference)
    assert not made.voice.HasField("last_use_time")
    assert ("VOICE_STATE_READY", DAY, 0) == told(enrolled)
    assert ("VOICE_STATE_READY", False) == (told(in_call)[0], in_call.HasField("expire_time"))
    assert 23 * HOUR == told(in_call)[2]
    assert ("VOICE_STATE_READY", 25 * HOUR + 600, 23 * HOUR) == told(called)
    assert (pb.VOICE_STATE_GONE, pb.GONE_CAUSE_EXPIRED) == (gone.state, gone.gone_cause)
    assert ["customer 7"] * 3 == [voice.client_reference for voice in (enrolled, called, gone)]
    assert [False] * 2 == [voice.HasField("expire_time") for voice in (gone, in_call)]


async def test_kept_for_good(cloning, speech: bytes) -> None:
    """Where voices are not deleted by themselves nothing says that one will be."""
    async with cloning(voice_clone_auto_delete=False) as cloner:
        made = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
        voice = await get(cloner, voice_id=made.voice.voice_id)

    assert not voice.HasField("expire_time")


async def test_voice_that_may_yet_be_made(cloning, emulator: Emulator, speech: bytes) -> None:
    """While GetVoice tells that it is on its way, a list of those has it; then the list of those that failed."""
    clock = StoppedClock(1_800_000_000.0)

    async def told(cloner: Any) -> tuple[str, dict[str, int]]:
        voice = await get(cloner, caller=IVAN)
        lists = {
            name: len(await listed(cloner, states=[state])) for name, state in pb.VoiceState.items() if state
        }
        return pb.VoiceState.Name(voice.state), {name: length for name, length in lists.items() if length}

    async with cloning(now=clock, provider_attempts=1) as cloner:
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, drop="before"))
        await refusal(cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10))
        at_first = await told(cloner)
        clock.now += 11
        later = await told(cloner)

    assert ("VOICE_STATE_CREATING", {"VOICE_STATE_CREATING": 1}) == at_first
    assert ("VOICE_STATE_FAILED", {"VOICE_STATE_FAILED": 1}) == later


async def test_voice_that_others_failed_to_replace(cloning, emulator: Emulator, speech: bytes) -> None:
    """The voice that is ready counts, however many that should have taken its place have failed since."""
    async with cloning() as cloner:
        made = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, error="invalid_content"))
        for _ in range(20):
            await refusal(cloner.ReplaceVoice(pb.ReplaceVoiceRequest(caller=IVAN, sample=speech), timeout=10))
        told = await get(cloner, caller=IVAN)

    assert (made.voice.voice_id, pb.VOICE_STATE_READY) == (told.voice_id, told.state)


async def test_voice_that_failed(cloning, emulator: Emulator, speech: bytes) -> None:
    """Why it did stands with it, until there is another."""
    async with cloning() as cloner:
        emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))
        await refusal(cloner.PrepareCall(call_of_ivan(speech), timeout=10))
        failed = await get(cloner, caller=IVAN)
        in_list = await cloner.ListVoices(pb.ListVoicesRequest(states=[pb.VOICE_STATE_FAILED]), timeout=10)
        await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        ready = await get(cloner, caller=IVAN)

    assert (pb.VOICE_STATE_FAILED, error_reason_pb2.ERROR_REASON_SAMPLE_REJECTED, "") == (
        failed.state, failed.failure_reason, failed.voice_id,
    )  # fmt: skip
    assert [failed] == list(in_list.voices)
    assert (pb.VOICE_STATE_READY, error_reason_pb2.ERROR_REASON_UNSPECIFIED) == (
        ready.state, ready.failure_reason,
    )  # fmt: skip


async def test_voice_on_its_way(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice that ElevenLabs is asked to make is known at every process, by its caller."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as one, cloning() as other:
        asking = one.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=20)
        await emulator.requests.wait(path=CREATE, stage="held")
        voice = await get(other, caller=IVAN)
        emulator.faults.release()
        await asking

    assert (pb.VOICE_STATE_CREATING, "") == (voice.state, voice.voice_id)
    assert not voice.HasField("last_use_time")


async def test_which_voice(cloning, speech: bytes) -> None:
    """A voice is named by its id or by its caller; a number alone names the only one, or nobody."""
    maria = pb.Caller(name="Maria", phone_number="+31612345678")
    number = pb.Caller(phone_number="+31 6 12345678")
    async with cloning() as cloner:
        assert "NOT_FOUND" == (await refusal(cloner.GetVoice(pb.GetVoiceRequest(caller=IVAN))))[0]
        made = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=IVAN, sample=speech), timeout=10)
        assert made.voice.voice_id == (await get(cloner, caller=number)).voice_id
        await cloner.CloneVoice(pb.CloneVoiceRequest(caller=maria, sample=speech), timeout=10)
        several = await refusal(cloner.GetVoice(pb.GetVoiceRequest(caller=number)))
        nameless = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=number, sample=speech), timeout=10)
        assert nameless.voice.voice_id == (await get(cloner, caller=number)).voice_id
        for wrong, fields in (
            (pb.GetVoiceRequest(), ["voice_id"]),
            (pb.GetVoiceRequest(voice_id="a b", caller=pb.Caller(name="\0")), [
                "voice_id", "caller.name", "caller.phone_number", "voice_id",
            ]),
            (pb.GetVoiceRequest(caller=pb.Caller(phone_number="anonymous")), ["caller.phone_number"]),
        ):  # fmt: skip
            assert ("FIELD_INVALID", fields) == await refusal(cloner.GetVoice(wrong, timeout=10))
            watch = cloner.WatchVoice(
                pb.WatchVoiceRequest(
                    voice_id=wrong.voice_id, caller=wrong.caller if wrong.HasField("caller") else None
                ),
                timeout=10,
            )
            assert ("FIELD_INVALID", fields) == await refusal(watch.read())

    assert ("FIELD_INVALID", ["caller.name"]) == several


async def test_reference(cloning, speech: bytes) -> None:
    """A sender's own reference is kept as it is, the last one counts, and voices are found by it."""
    longest = "Zoë 家族 " + "x" * 121
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call_of_ivan(speech, client_reference="one"), timeout=10)
        again = await cloner.PrepareCall(call_of_ivan(conversation="conv_2"), timeout=10)
        second = await cloner.PrepareCall(
            call_of_ivan(conversation="conv_3", client_reference=longest), timeout=10
        )
        cloned = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=IVAN, sample=speech, client_reference="two"), timeout=10
        )
        replaced = await cloner.ReplaceVoice(
            pb.ReplaceVoiceRequest(caller=IVAN, sample=speech, client_reference="three"), timeout=10
        )
        by_reference = [
            await listed(cloner, client_reference=reference, states=list(pb.VoiceState.values()[1:]))
            for reference in ("one", "two", "three")
        ]

    assert 128 == len(longest)
    assert ["one", "one", longest, "two", "three"] == [
        answer.voice.client_reference for answer in (first, again, second, cloned, replaced)
    ]
    assert [[], [first.voice.voice_id], [replaced.voice.voice_id]] == by_reference


async def test_reference_is_part_of_a_request(cloning, speech: bytes) -> None:
    """A request of the same name with another reference is another request."""

    def request(reference: str) -> pb.CloneVoiceRequest:
        return pb.CloneVoiceRequest(caller=IVAN, sample=speech, request_id="one", client_reference=reference)

    async with cloning() as cloner:
        await cloner.CloneVoice(request("a"), timeout=10)
        assert ("FIELD_INVALID", ["request_id"]) == await refusal(cloner.CloneVoice(request("b"), timeout=10))


async def test_call_without_a_sample(cloning, emulator: Emulator, speech: bytes) -> None:
    """A known caller needs none; of anybody else one is asked for, and the next delivery may bring it."""
    async with cloning() as cloner:
        required = await refusal(cloner.PrepareCall(call_of_ivan(), timeout=10))
        nobody = await refusal(
            cloner.PrepareCall(call_of_ivan(caller=None, conversation="conv_2"), timeout=10)
        )
        made = await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        known = await cloner.PrepareCall(call_of_ivan(conversation="conv_3"), timeout=10)

    assert [("SAMPLE_REQUIRED", [])] * 2 == [required, nobody]
    assert (made.voice.voice_id, True, False) == (known.voice.voice_id, known.voice_reused, made.voice_reused)
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_delete_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """A voice goes, its agent gets back what it had, and the caller is cloned anew."""
    before = emulator.agents["agent_demo"]["conversation_config"]["tts"]["voice_id"]
    async with cloning() as cloner:
        made = await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        request = pb.DeleteVoiceRequest(voice_id=made.voice.voice_id)
        deleted = [(await cloner.DeleteVoice(request, timeout=10)).deleted for _ in range(2)]
        gone = await get(cloner, voice_id=made.voice.voice_id)
        unknown = await refusal(cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=before), timeout=10))
        agent = emulator.agents["agent_demo"]["conversation_config"]["tts"]["voice_id"]
        anew = await cloner.PrepareCall(call_of_ivan(speech, conversation="conv_2"), timeout=10)

    assert [True, True] == deleted
    assert (pb.VOICE_STATE_GONE, pb.GONE_CAUSE_DELETED) == (gone.state, gone.gone_cause)
    assert ("NOT_FOUND", before) == (unknown[0], agent)
    assert made.voice.voice_id != anew.voice.voice_id
    assert [anew.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


async def test_delete_voice_while_elevenlabs_is_down(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """What is not deleted at once is used no more, and deleted later."""
    async with cloning(provider_attempts=1) as cloner:
        made = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=IVAN, sample=speech, request_id="one"), timeout=10
        )
        emulator.faults.set(
            Fault(method="DELETE", path="/v1/voices/{voice_id}", times=None, error="service_unavailable")
        )
        answer = await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=made.voice.voice_id), timeout=10)
        waiting = await get(cloner, voice_id=made.voice.voice_id)
        again = pb.CloneVoiceRequest(caller=IVAN, sample=speech, request_id="one")
        assert "NOT_FOUND" == (await refusal(cloner.CloneVoice(again, timeout=10)))[0]
        emulator.faults.clear()
        await eventually(lambda: not emulator.voices.custom)

    assert not answer.deleted
    assert (pb.VOICE_STATE_GONE, pb.GONE_CAUSE_DELETED) == (waiting.state, waiting.gone_cause)


async def test_calls(cloning, emulator: Emulator, speech: bytes) -> None:
    """Calls are told with their voice, their begin and their end, and by every filter."""
    emulator.agents.put("agent_other", {})
    clock = StoppedClock(1_800_000_000.0)
    maria = pb.Caller(name="Maria", phone_number="+31612340002")
    async with cloning(now=clock) as cloner:
        first = await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        clock.now += 10
        second = await cloner.PrepareCall(
            call_of_ivan(speech, "conv_2", caller=maria, agent_id="agent_other"), timeout=10
        )
        clock.now += 10
        opened = await cloner.OpenCall(
            pb.OpenCallRequest(agent_id="agent_demo", call_sid="CA1", phone_number="+31612345678"), timeout=10
        )
        clock.now += 10
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_1"), timeout=10)
        # The end of a call that nobody asked about makes none.
        end = pb.CompleteCallRequest(conversation_id="conv_9", agent_id="agent_demo")
        await cloner.CompleteCall(end, timeout=10)

        got = (await cloner.GetCall(pb.GetCallRequest(call_id=first.call_id), timeout=10)).call
        same = await cloner.GetCall(
            pb.GetCallRequest(conversation_id="conv_1", agent_id="agent_demo"), timeout=10
        )
        for nothing in (
            pb.GetCallRequest(call_id="call_nowhere"),
            pb.GetCallRequest(conversation_id="conv_1", agent_id="agent_other"),
            pb.GetCallRequest(conversation_id="conv_9", agent_id="agent_demo"),
        ):
            assert "NOT_FOUND" == (await refusal(cloner.GetCall(nothing, timeout=10)))[0]
        assert ("FIELD_INVALID", ["call_id"]) == await refusal(cloner.GetCall(pb.GetCallRequest()))
        assert ("FIELD_INVALID", ["agent_id"]) == await refusal(
            cloner.GetCall(pb.GetCallRequest(conversation_id="conv_1"))
        )

        async def ids(**filters: Any) -> list[str]:
            page = await cloner.ListCalls(pb.ListCallsRequest(**filters), timeout=10)
            return [each.call_id for each in page.calls]

        one, two, three = first.call_id, second.call_id, opened.call_id
        assert [three, two, one] == await ids()
        assert [three, one] == await ids(agent_id="agent_demo")
        assert [three, two] == await ids(in_progress=True)
        assert [three, one] == await ids(voice_id=first.voice.voice_id)
        assert [two] == await ids(voice_id=second.voice.voice_id, agent_id="agent_other", in_progress=True)
        assert [two] == await ids(caller=maria)
        assert [three, one] == await ids(caller=IVAN)
        assert [three, one] == await ids(caller=pb.Caller(phone_number="+31612345678"))
        assert ("FIELD_INVALID", ["agent_id", "voice_id", "caller.phone_number"]) == await refusal(
            cloner.ListCalls(pb.ListCallsRequest(agent_id="../", voice_id="a b", caller=pb.Caller(name="x")))
        )

    assert same.call == got
    assert (one, "agent_demo", "conv_1", first.voice.voice_id) == (
        got.call_id, got.agent_id, got.conversation_id, got.voice_id,
    )  # fmt: skip
    assert (1_800_000_000, 1_800_000_030) == (got.begin_time.seconds, got.end_time.seconds)


@pytest.mark.parametrize("reuse", ["caller", "sample"])
async def test_calls_of_a_caller(cloning, speech: bytes, reuse: str) -> None:
    """Those that were opened from the caller's number and got the caller's voice are among them."""
    async with cloning(voice_reuse=reuse) as cloner:
        prepared = await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        opened = await cloner.OpenCall(
            pb.OpenCallRequest(agent_id="agent_demo", call_sid="sid_1", phone_number=IVAN.phone_number),
            timeout=10,
        )
        page = await cloner.ListCalls(pb.ListCallsRequest(caller=IVAN), timeout=10)

    assert prepared.voice.voice_id == opened.voice.voice_id
    assert [opened.call_id, prepared.call_id] == [each.call_id for each in page.calls]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_lists_that_hang(cloning, database: str) -> None:
    """However many lists are asked for, other calls are answered meanwhile."""
    async with cloning() as cloner:
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
            lists = [
                asyncio.ensure_future(ask(timeout=60))
                for _ in range(6)
                for ask in (
                    partial(cloner.ListCalls, pb.ListCallsRequest()),
                    partial(cloner.ListVoices, pb.ListVoicesRequest()),
                )
            ]
            # The first ones may yet overtake the lists.
            for _ in range(20):
                await cloner.GetUsage(pb.GetUsageRequest(), timeout=5)
        answers = await asyncio.gather(*lists)

    assert 12 == len(answers)


@pytest.mark.parametrize("hours", [5, 40 * 24])
async def test_call_that_was_never_ended(cloning, hours: int) -> None:
    """It ended as long after its begin as a call may take, however much later anybody looked, and is told then."""
    clock = StoppedClock(1_800_000_000.0)
    async with cloning(now=clock, call_max_minutes=30.0) as cloner:
        opened = await cloner.OpenCall(
            pb.OpenCallRequest(agent_id="agent_demo", conversation_id="conv_1"), timeout=10
        )
    clock.now += hours * HOUR
    async with cloning(now=clock, call_max_minutes=30.0) as cloner:

        async def told() -> pb.Call:
            return (await cloner.GetCall(pb.GetCallRequest(call_id=opened.call_id), timeout=10)).call

        async def is_over() -> bool:
            return (await told()).HasField("end_time")

        await comes_true(is_over)
        over = await told()

    assert 1_800_000_000 + 30 * 60 == over.end_time.ToSeconds()


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_pages(cloning, speech: bytes, size: int) -> None:
    """Lists come whole, page by page, also while something is added."""
    async with cloning() as cloner:
        voices, calls = [], []
        for n in range(5):
            caller = pb.Caller(name="Ivan", phone_number=f"+3161234000{n}")
            answer = await cloner.PrepareCall(call_of_ivan(speech, f"conv_{n}", caller=caller), timeout=10)
            voices.append(answer.voice.voice_id)
            calls.append(answer.call_id)

        async def whole(method: Any, request: Any, take: Any) -> list[str]:
            found: list[str] = []
            while True:
                page = await method(request, timeout=10)
                found += take(page)
                if not page.next_page_token:
                    return found
                request.page_token = page.next_page_token

        listed_voices = await whole(
            cloner.ListVoices, pb.ListVoicesRequest(page_size=size),
            lambda page: [voice.voice_id for voice in page.voices],
        )  # fmt: skip
        listed_calls = await whole(
            cloner.ListCalls, pb.ListCallsRequest(page_size=size),
            lambda page: [each.call_id for each in page.calls],
        )  # fmt: skip

    assert (voices[::-1], calls[::-1]) == (listed_voices, listed_calls)


async def test_page_tokens(cloning, speech: bytes) -> None:
    """A token is good for the list and the filter that it came from, at every process, and for nothing else."""
    others = {
        "ListVoices": [{"client_reference": "x"}, {"states": [pb.VOICE_STATE_GONE]}, {"caller": IVAN}],
        "ListCalls": [{"agent_id": "x"}, {"in_progress": True}, {"voice_id": "x"}, {"caller": IVAN}],
    }
    requests = {"ListVoices": pb.ListVoicesRequest, "ListCalls": pb.ListCallsRequest}
    async with cloning() as one, cloning() as other:
        for n in range(3):
            caller = pb.Caller(name="Ivan", phone_number=f"+3161234000{n}")
            await one.PrepareCall(call_of_ivan(speech, f"conv_{n}", caller=caller), timeout=10)
        tokens = {}
        for method, request in requests.items():
            page = await getattr(one, method)(request(page_size=1), timeout=10)
            tokens[method] = token = page.next_page_token
            assert await getattr(other, method)(request(page_size=2, page_token=token), timeout=10)
            raw = bytearray(base64.urlsafe_b64decode(token + "=="))
            raw[-1] ^= 1
            for wrong in (
                token[:-2],
                token + "AA",
                "x",
                "é",
                "a" * 600,
                base64.urlsafe_b64encode(raw).decode(),
            ):
                answer = getattr(one, method)(request(page_token=wrong), timeout=10)
                assert ("FIELD_INVALID", ["page_token"]) == await refusal(answer)
            for filters in others[method]:
                answer = getattr(one, method)(request(page_token=token, **filters), timeout=10)
                assert ("FIELD_INVALID", ["page_token"]) == await refusal(answer)
        swapped = one.ListVoices(pb.ListVoicesRequest(page_token=tokens["ListCalls"]), timeout=10)
        assert ("FIELD_INVALID", ["page_token"]) == await refusal(swapped)

    assert not any("precall-" in token or "call_" in token for token in tokens.values())


async def test_page_size(cloning, speech: bytes) -> None:
    """A page that is too large is cut; a number that is none is refused, and so is a filter that is none."""
    async with cloning() as cloner:
        await cloner.PrepareCall(call_of_ivan(speech), timeout=10)
        for size in (0, 100, 101, 2**31 - 1):
            voices = await cloner.ListVoices(pb.ListVoicesRequest(page_size=size), timeout=10)
            calls = await cloner.ListCalls(pb.ListCallsRequest(page_size=size), timeout=10)
            assert (1, 1) == (len(voices.voices), len(calls.calls))
        for method, request in (
            (cloner.ListVoices, pb.ListVoicesRequest(page_size=-1, states=[9])),
            (cloner.ListVoices, pb.ListVoicesRequest(page_size=-1, states=[pb.VOICE_STATE_UNSPECIFIED])),
        ):
            assert ("FIELD_INVALID", ["states", "page_size"]) == await refusal(method(request, timeout=10))
        every = pb.ListVoicesRequest(states=range(5, 1_000), client_reference="\t")
        assert ("FIELD_INVALID", ["client_reference", "states"]) == await refusal(
            cloner.ListVoices(every, timeout=10)
        )
        assert ("FIELD_INVALID", ["page_size"]) == await refusal(
            cloner.ListCalls(pb.ListCallsRequest(page_size=-1), timeout=10)
        )
