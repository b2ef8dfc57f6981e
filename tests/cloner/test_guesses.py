"""Nothing irreversible follows from an answer that nobody can read, and nobody's voice is taken for another's."""

import asyncio
import copy
import time
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from emulator.faults import SearchLag
from emulator.voices import Voice
from tests.cloner.adversary import Adversary, http_answer
from tests.cloner.clock import Clock
from tests.kit.failures import refusal
from tests.kit.provider import AGENT, CREATE, VOICE, spoken
from tests.kit.requests import call, end
from tests.kit.rows import values

LIST = "/v2/voices"
NOT_ITS_WORD = [
    {"status": 404, "body": {"detail": "Not Found"}},
    {"status": 404, "body": "<html><body>404 Not Found</body></html>"},
    {"status": 404, "body": {"detail": {"type": "agent_not_found", "message": "agent_not_found voice_not_found"}}},
    {"status": 400, "body": {"detail": {"status": "something_new", "message": "?"}}},
    {"status": 403, "body": {"detail": {"status": "agent_not_found"}}},
    {"status": 403, "body": {"detail": {"status": "voice_not_found"}}},
    {"status": 410, "body": {"detail": "Gone"}},
    {"error": "missing_permissions"},
    {"status": 200, "body": "<html>Welcome</html>"},
    {"status": 204},
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize("fault", NOT_ITS_WORD, ids=str)
async def test_agent_is_put_back_in_the_end(
    cloning, emulator: Emulator, spans, speech: bytes, eventually, method: str, fault: dict[str, Any]
) -> None:
    """Whatever is answered meanwhile, no voice goes before its agent has back what it had; and it is told."""
    if (method, fault.get("status")) == ("PATCH", 204):
        fault = {"status": 200, "body": {}}
    before, clock = spoken(emulator), Clock()

    async with cloning(now=clock, voice_clone_keep_hours=0.0, provider_attempts=1) as cloner:
        with capture_logs() as logs:
            first = await cloner.PrepareCall(call(speech), timeout=10)
            # An update that the agent refuses is tried once more without the voice.
            times = 4 if (method, fault.get("status")) == ("PATCH", 400) else 2
            emulator.faults.set(Fault(method=method, path=AGENT, times=times, **fault))
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))

    assert before == spoken(emulator)
    told = [line for line in logs if line["event"] == "agent not put back yet"]
    trace_id = f"{spans.one('precall.v1.CloningService/PrepareCall').context.trace_id:032x}"
    assert [1, 2] == [line["tries"] for line in told]
    assert [1.0, 2.0] == [line["next_try_seconds"] for line in told]
    ids = {
        "agent_id": "agent_demo",
        "conversation_id": "conv_1",
        "call_id": first.call_id,
        "voice_id": first.voice.voice_id,
        "origin_trace_id": trace_id,
        "log_level": "warning",
    }
    assert [ids] * 2 == [{name: line[name] for name in ids} for line in told]
    (span, *_) = [
        span
        for span in spans.finished()
        if span.name in ("restore agent", "delete voice") and "precall.tries" in span.attributes
    ]
    for name, id_ in {
        "gen_ai.agent.id": "agent_demo",
        "gen_ai.conversation.id": "conv_1",
        "precall.voice.id": first.voice.voice_id,
        "precall.call.id": first.call_id,
        "precall.origin.trace_id": trace_id,
    }.items():
        assert id_ == span.attributes[name]


LATER = {"error": "system_busy", "headers": {"Retry-After": "120"}}


@pytest.mark.parametrize(
    ("asked", "pauses"),
    [("120", [120]), ("3600", [300]), ("5", [5, 5, 5, 8, 16, 30, 60, 60, 60])],
    ids=["a while", "long", "again and again"],
)
async def test_put_back_when_elevenlabs_says(
    cloning, emulator: Emulator, speech: bytes, eventually, asked: str, pauses: list[float]
) -> None:
    """Retry-After is kept to in the background as well; an agent waits for five minutes at most."""
    before, clock = spoken(emulator), Clock()
    later = {"error": "system_busy", "headers": {"Retry-After": asked}}

    async with cloning(now=clock, provider_attempts=1) as cloner:
        with capture_logs() as logs:
            await cloner.PrepareCall(call(speech), timeout=10)
            emulator.faults.set(Fault(method="PATCH", path=AGENT, times=len(pauses), **later))
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: before == spoken(emulator)))

    told = [line for line in logs if line["event"] == "agent not put back yet"]
    assert pauses == [line["next_try_seconds"] for line in told]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_deletion_waits_no_longer_than_its_agent(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """What Retry-After says of the agent that has a voice says nothing of the voice."""
    before, clock = spoken(emulator), Clock()

    async with cloning(now=clock) as cloner:
        with capture_logs() as logs:
            made = await cloner.PrepareCall(call(speech), timeout=10)
            emulator.faults.set(
                Fault(method="PATCH", path=AGENT, error="system_busy", headers={"Retry-After": "3600"})
            )
            await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=made.voice.voice_id), timeout=10)
            await eventually(clock.passing_pauses(logs, lambda: before == spoken(emulator)))
            await eventually(lambda: not emulator.voices.custom)

    assert [300.0] == [line["next_try_seconds"] for line in logs if "next_try_seconds" in line]


async def test_deletion_when_elevenlabs_says(
    cloning, emulator: Emulator, speech: bytes, database: str, eventually
) -> None:
    """Retry-After is kept to, whether the janitor was told or the request that had the voice deleted."""
    clock = Clock()

    async with cloning(now=clock, voice_clone_keep_hours=0.0) as cloner:
        with capture_logs() as logs:
            await cloner.PrepareCall(call(speech), timeout=10)
            emulator.faults.set(Fault(method="DELETE", path=VOICE, **LATER))
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))
        sample = pb.CloneVoiceRequest(caller=call(b"", 2).caller, sample=speech)
        made = (await cloner.CloneVoice(sample, timeout=10)).voice.voice_id
        emulator.faults.set(Fault(method="DELETE", path=VOICE, times=None, **LATER))
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=made), timeout=10)
        ((due_at,),) = await values(database, f"SELECT due_at FROM voices WHERE voice_id = '{made}'")

    (told,) = [line for line in logs if line["event"] == "voice not deleted yet"]
    assert 120.0 == told["next_try_seconds"]
    assert 100.0 < due_at - clock()


@pytest.mark.parametrize("looked", [0, 1])
async def test_marker_that_is_not_to_be_looked_for_yet(
    cloning, emulator: Emulator, speech: bytes, looked: int
) -> None:
    """Where Retry-After is longer than anybody waits, nothing more is asked, and nothing made twice."""
    async with cloning(precall_deployment="ours") as cloner:
        # The list that every start asks for.
        await emulator.requests.wait(path=LIST, stage="finished")
        emulator.faults.set(
            Fault(method="POST", path=CREATE, drop="after", search_lag=SearchLag(seconds=60)),
            *[Fault(method="GET", path=LIST)] * looked,
            Fault(method="GET", path=LIST, times=None, **LATER),
        )
        assert "PROVIDER_UNAVAILABLE" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]

    assert [1, 2 + looked] == [len(emulator.requests.matching(path=path)) for path in (CREATE, LIST)]


@pytest.mark.parametrize(
    "error", ["agent_not_found", {"status": 400, "body": {"detail": {"code": "agent_not_found"}}}]
)
async def test_agent_that_is_gone_keeps_no_voice(
    cloning, emulator: Emulator, speech: bytes, eventually, error: Any
) -> None:
    """In ElevenLabs' own word it is believed."""
    fault = {"error": error} if isinstance(error, str) else error
    async with cloning(voice_clone_keep_hours=0.0, provider_attempts=1) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        emulator.faults.set(Fault(method="GET", path=AGENT, times=None, **fault))
        await end(cloner)
        await eventually(lambda: not emulator.voices.custom)


@pytest.mark.parametrize("about", ["agent_demo", "agent_other"])
async def test_update_that_is_not_what_was_asked_for(
    cloning, emulator: Emulator, speech: bytes, eventually, about: str
) -> None:
    """A restoration whose answer still names our voice, or is about another agent, was none."""
    before, clock = spoken(emulator), Clock()
    other = copy.deepcopy(emulator.agents["agent_demo"]) | {"agent_id": "agent_other"}

    async with cloning(now=clock, voice_clone_keep_hours=0.0, provider_attempts=1) as cloner:
        with capture_logs() as logs:
            await cloner.PrepareCall(call(speech), timeout=10)
            body = other if about == "agent_other" else emulator.agents["agent_demo"]
            emulator.faults.set(Fault(method="PATCH", path=AGENT, status=200, body=body))
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))

    assert before == spoken(emulator)


async def test_agent_that_was_not_asked_for(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """What another agent has is never put back into this one: its own is not known, so it is not changed."""
    other = copy.deepcopy(emulator.agents["agent_demo"]) | {"agent_id": "agent_other"}
    other["conversation_config"]["tts"]["voice_id"] = "voice0fAnotherAgent0"
    emulator.faults.set(Fault(method="GET", path=AGENT, status=200, body=other))
    before = spoken(emulator)

    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        await eventually(lambda: not emulator.voices.custom)

    assert (False, False) == (answer.agent_updated, answer.settings_seen)
    assert before == spoken(emulator)


@pytest.mark.parametrize(
    ("branch", "told"), [("agtbrch_other", 1), (None, 0), (7, 0)], ids=["other", "none", "not a name"]
)
async def test_agent_that_is_changed_on_a_branch(
    cloning, emulator: Emulator, speech: bytes, eventually, branch: Any, told: int
) -> None:
    """An update of another branch than calls get is none; what it wrote there is put back all the same."""
    before = spoken(emulator)
    emulator.agents["agent_demo"]["branch_id"] = branch

    async with cloning() as cloner:
        with capture_logs() as logs:
            answer = await cloner.PrepareCall(call(speech), timeout=10)
            written = spoken(emulator)
            await end(cloner)
            await eventually(lambda: before == spoken(emulator))
            await eventually(lambda: [line for line in logs if line["event"] == "agent restored"])

    assert (answer.voice.voice_id, answer.agent_updated) == (written[0], not told)
    assert [("warning", "agent_demo")] * 2 * told == [
        (line["log_level"], line["agent_id"])
        for line in logs
        if line["event"] == "agent changed on a branch that is not its main one"
    ]


async def test_agent_that_is_put_back_on_a_branch(
    cloning, emulator: Emulator, speech: bytes, eventually
) -> None:
    """What is put back on another branch than calls get is put back there as well before the voice goes."""
    before, clock = spoken(emulator), Clock()
    elsewhere = {"branch_id": "agtbrch_other", "main_branch_id": "agtbrch_main"}

    async with cloning(now=clock, voice_clone_keep_hours=0.0) as cloner:
        with capture_logs() as logs:
            await cloner.PrepareCall(call(speech), timeout=10)
            voice_id, first_message = before
            config = {"tts": {"voice_id": voice_id}, "agent": {"first_message": first_message}}
            answer = {**elsewhere, "conversation_config": config}
            emulator.faults.set(Fault(method="PATCH", path=AGENT, status=200, body=answer))
            await end(cloner)
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))

    assert before == spoken(emulator)


async def test_agent_with_a_voice_of_ours_that_nobody_noted(
    cloning, emulator: Emulator, speech: bytes, database: str
) -> None:
    """A voice of ours is never taken for what an agent had before; the override carries the new one."""
    async with cloning(reconcile_seconds=1e9) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await end(cloner)
        async with asyncio.timeout(60):
            while await values(database, "SELECT agent_id FROM agents WHERE marker IS NOT NULL"):
                await asyncio.sleep(0.01)
        emulator.agents.patch(
            "agent_demo", {"conversation_config": {"tts": {"voice_id": first.voice.voice_id}}}
        )
        with capture_logs() as logs:
            second = await cloner.PrepareCall(call(speech, 2), timeout=10)
            third = await cloner.PrepareCall(call(speech, conversation_id="conv_3"), timeout=10)

    assert [False, False] == [second.agent_updated, third.agent_updated]
    assert first.voice.voice_id == spoken(emulator)[0]
    assert [] == await values(database, "SELECT agent_id FROM agents WHERE before_voice_id IS NOT NULL")
    assert ["agent left alone"] == [line["event"] for line in logs if line["event"] == "agent left alone"]


@pytest.mark.parametrize(("part", "leaf"), [("agent", "first_message"), ("tts", "voice_id")])
async def test_agent_of_which_a_part_is_not_told(
    cloning, emulator: Emulator, speech: bytes, part: str, leaf: str
) -> None:
    """What could not be put back is not changed, whatever the operator's choice; the override carries it."""
    emulator.agents["agent_demo"]["conversation_config"][part][leaf] = None
    before = spoken(emulator)
    async with cloning(agent_update="always") as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert not answer.agent_updated
    assert before == spoken(emulator)


async def test_process_that_was_only_slow(cloning, emulator: Emulator, speech: bytes) -> None:
    """A clone that is under way is not taken for a dead process's, however late its sign of life is."""
    clock = Clock()
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning(now=clock) as cloner:
        # The list that every start asks for.
        await emulator.requests.wait(path=LIST)
        first = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
        await emulator.requests.wait(path=CREATE)
        for _ in range(20):
            # Longer than a dead process is waited for, and sooner than the next sign of life.
            clock.ahead += 20
            await asyncio.sleep(0.06)
        second = asyncio.ensure_future(cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=30))
        await asyncio.sleep(0.06)
        emulator.faults.release()
        answers = await asyncio.gather(first, second)

    assert 1 == len({answer.voice.voice_id for answer in answers})
    assert [1, 1] == [len(emulator.requests.matching(path=path)) for path in (CREATE, LIST)]


async def test_known_voice_is_used_while_nobody_can_tell(
    cloning, emulator: Emulator, speech: bytes, subtests: pytest.Subtests
) -> None:
    """That a voice is gone is believed in ElevenLabs' own word alone."""
    clock = Clock()
    async with cloning(now=clock, provider_attempts=1) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        for number, fault in enumerate(NOT_ITS_WORD, 2):
            with subtests.test(str(fault)):
                clock.ahead += 601
                asked = len(emulator.requests.matching(method="GET", path=VOICE))
                emulator.faults.set(Fault(method="GET", path=VOICE, times=None, **fault))
                again = await cloner.PrepareCall(call(speech, conversation_id=f"conv_{number}"), timeout=10)

                assert (first.voice.voice_id, True) == (again.voice.voice_id, again.voice_reused)
                assert asked < len(emulator.requests.matching(method="GET", path=VOICE))

    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("error", ["voice_not_found", "voice_not_found_400"])
async def test_voice_that_is_gone_in_its_own_word(
    cloning, emulator: Emulator, speech: bytes, error: str
) -> None:
    """In either spelling."""
    clock = Clock()
    async with cloning(now=clock, provider_attempts=1) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        clock.ahead = 601
        emulator.faults.set(Fault(method="GET", path=VOICE, times=None, error=error))
        assert not (await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)).voice_reused


async def test_deletion_that_nobody_can_read(
    cloning, emulator: Emulator, speech: bytes, eventually, subtests: pytest.Subtests
) -> None:
    """It is not done before ElevenLabs says so, and tried until then."""
    clock = Clock()
    settings = {"now": clock, "voice_clone_keep_hours": 0.0, "provider_attempts": 1}

    with capture_logs() as logs:
        async with cloning(**settings) as cloner:
            for number, fault in enumerate([*NOT_ITS_WORD, {"status": 200, "body": {}}], 1):
                with subtests.test(str(fault)):
                    before = len(logs)
                    answer = await cloner.PrepareCall(call(speech, number), timeout=10)
                    emulator.faults.set(Fault(method="DELETE", path=VOICE, **fault))
                    await end(cloner, number)
                    await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))

                    (told,) = [line for line in logs[before:] if line["event"] == "voice not deleted yet"]
                    assert (answer.voice.voice_id, f"conv_{number}", "agent_demo", answer.call_id, 1) == (
                        told["voice_id"], told["conversation_id"], told["agent_id"], told["call_id"], told["tries"],
                    )  # fmt: skip


async def test_list_without_voices(cloning, emulator: Emulator, speech: bytes) -> None:
    """A list that misses every voice is no reason to take one for lost."""
    clock = Clock()
    emulator.faults.set(
        Fault(method="GET", path="/v2/voices", times=None, status=200, body={"voices": [], "has_more": False})
    )
    async with cloning(now=clock, reconcile_seconds=0.1, reconcile_grace_seconds=0.0) as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        clock.ahead = 10
        seen = len(emulator.requests.matching(path=VOICE))
        await emulator.requests.wait(seen + 1, path=VOICE, stage="finished")
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)

    assert again.voice_reused


async def reconciled(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a cloner tells of having gone through a list, once it has come to the list's end."""
    async with asyncio.timeout(60):
        while not (told := [line for line in logs if line["event"] == "reconciled"]):
            await asyncio.sleep(0.01)
    return told


@pytest.mark.parametrize(
    "page",
    [
        {"voices": [], "has_more": True, "next_page_token": "same"},
        {"voices": [{"voice_id": "../.."}, 7, None], "has_more": True, "next_page_token": "same"},
        {"voices": [], "has_more": True, "next_page_token": None},
    ],
    ids=str,
)
async def test_lists_without_end(cloning, emulator: Emulator, page: dict[str, Any]) -> None:
    """A list ends where it begins to repeat itself."""
    emulator.faults.set(Fault(method="GET", path="/v2/voices", times=None, status=200, body=page))
    with capture_logs() as logs:
        async with cloning():
            await reconciled(logs)

    assert 2 >= len(emulator.requests.matching(path="/v2/voices"))


async def test_lists_that_go_round(cloning, emulator: Emulator) -> None:
    """Tokens that come again end a list; between its pages there is a pause."""
    emulator.faults.set(
        *(
            Fault(
                method="GET", path="/v2/voices", status=200,
                body={"voices": [], "has_more": True, "next_page_token": token},
            )
            for token in ("a", "b", "c", "a", "b", "c")
        )
    )  # fmt: skip
    with capture_logs() as logs:
        async with cloning():
            await reconciled(logs)

    found = emulator.requests.matching(path="/v2/voices")
    assert [["a"], ["b"], ["c"]] == [request.query["next_page_token"] for request in found[1:]]
    assert 4 == len(found)
    assert 0.3 <= found[-1].at - found[0].at


@pytest.mark.parametrize("text", ["\0", "é", "\r\n", "x" * 300], ids=repr)
async def test_lists_of_markers_that_are_none(cloning, emulator: Emulator, speech: bytes, text: str) -> None:
    """A marker that none of ours can be hides no other voice of a list, and troubles no database."""
    clock = Clock()
    async with cloning(
        now=clock, precall_deployment="ours", reconcile_seconds=0.1, reconcile_grace_seconds=0.0
    ) as cloner:
        first = await cloner.PrepareCall(call(speech, 1), timeout=10)
        second = await cloner.PrepareCall(call(speech, 2), timeout=10)
        labels = emulator.voices[first.voice.voice_id].labels
        odd = {
            "voice_id": "odd", "created_at_unix": int(clock()) + 1,
            "labels": {**labels, "precall": f"precall-ours-{text}"},
        }  # fmt: skip
        listed = {"voice_id": first.voice.voice_id, "labels": labels}
        emulator.faults.set(
            Fault(method="GET", path=LIST, times=None, status=200, body={"voices": [odd, listed], "has_more": False}),
            Fault(method="GET", path=VOICE, times=None, error="voice_not_found"),
        )  # fmt: skip
        with capture_logs() as logs:
            clock.ahead = 10
            async with asyncio.timeout(60):
                # One may have begun before the list was another.
                while not (told := [line for line in logs if line["event"] == "reconciled" and line["lost"]]):
                    await asyncio.sleep(0.01)

    assert {"voices": 1, "removed": 0, "adopted": 0, "lost": 1}.items() <= told[0].items()
    assert [second.voice.voice_id] == [line["voice_id"] for line in logs if line["event"] == "voice lost"]
    assert [] == emulator.requests.matching(method="DELETE")
    assert [] == [line for line in logs if line["event"] in ("bug", "put off")]


async def test_lists_of_more_than_was_asked_for(cloning, emulator: Emulator) -> None:
    """However much stands on each page, no more is kept of it than a page may hold."""

    def page(number: int) -> list[dict[str, Any]]:
        return [
            {
                "voice_id": f"listed_{number}_{each}",
                "description": "x" * 1_000,
                "labels": {"precall": f"precall-ours-{number}-{each}", "precall_deployment": "ours"},
            }
            for each in range(500)
        ]

    emulator.faults.set(
        *(
            Fault(
                method="GET", path=LIST, status=200,
                body={"voices": page(number), "has_more": number < 3, "next_page_token": f"page{number}"},
            )
            for number in range(1, 4)
        )
    )  # fmt: skip
    with capture_logs() as logs:
        async with cloning(precall_deployment="ours"):
            told = await reconciled(logs)

    assert [300] == [line["voices"] for line in told]
    assert [] == emulator.requests.matching(method="DELETE")


async def test_default_voices_on_the_first_page(cloning, emulator: Emulator, speech: bytes) -> None:
    """They come on top of what was asked for, and hide neither a voice that is looked for nor an orphan."""
    clock, made = Clock(), int(time.time()) + 1
    for number in range(200):
        emulator.voices.put(Voice(voice_id=f"default{number}", name="Default", category="premade"))
    emulator.faults.set(
        Fault(method="GET", path=LIST, times=None, default_voices=True),
        Fault(method="POST", path=CREATE, drop="after"),
    )
    async with cloning(
        now=clock, precall_deployment="ours", reconcile_seconds=0.1, reconcile_grace_seconds=0.0
    ) as cloner:
        with capture_logs() as logs:
            found = await cloner.PrepareCall(call(speech), timeout=10)
            labels = {"precall": "precall-ours-nobody", "precall_deployment": "ours"}
            emulator.voices.put(Voice(voice_id="orphan", name="o", labels=labels, created_at_unix=made))
            clock.ahead = 10
            await emulator.requests.wait(method="DELETE", stage="finished")

    assert [found.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [] == [line for line in logs if line["event"] == "voices of a list not readable"]


@pytest.mark.parametrize("requires_verification", [False, True])
async def test_voice_of_somebody_else(
    cloning, emulator: Emulator, speech: bytes, requires_verification: bool
) -> None:
    """An id that is another caller's is an answer that nobody can read; nothing is deleted or tried for ever."""
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech, 1), timeout=10)
        body = {"voice_id": first.voice.voice_id, "requires_verification": requires_verification}
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, status=200, body=body))

        assert "PROVIDER_PROTOCOL" == (await refusal(cloner.PrepareCall(call(speech, 2), timeout=10)))[0]
        sample = pb.CloneVoiceRequest(caller=call(b"", 3).caller, sample=speech)
        assert "PROVIDER_PROTOCOL" == (await refusal(cloner.CloneVoice(sample, timeout=10)))[0]
        assert 3 == len(emulator.requests.matching(path=CREATE))

        emulator.faults.clear()
        again = await cloner.PrepareCall(call(speech, 1, conversation_id="conv_9"), timeout=10)
        second = await cloner.PrepareCall(call(speech, 2), timeout=10)

    assert [] == emulator.requests.matching(method="DELETE")
    assert first.voice.voice_id == again.voice.voice_id != second.voice.voice_id


@pytest.mark.parametrize("requires_verification", [False, True])
async def test_voice_of_the_agent_itself(
    cloning, emulator: Emulator, speech: bytes, requires_verification: bool, database: str
) -> None:
    """The voice that an agent has of its own is none that was just made; it is neither taken nor deleted."""
    own, _ = before = spoken(emulator)
    body = {"voice_id": own, "requires_verification": requires_verification}
    lie = Fault(method="POST", path=CREATE, times=None, status=200, body=body)
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        emulator.faults.set(lie)
        assert "PROVIDER_PROTOCOL" == (await refusal(cloner.PrepareCall(call(speech, 1), timeout=10)))[0]
        await end(cloner)
        emulator.faults.clear()
        given = await cloner.PrepareCall(call(speech, 2), timeout=10)
        assert given.agent_updated
        emulator.faults.set(lie)
        # What the agent had before its call counts, whoever the voice is said to be made for.
        sample = pb.CloneVoiceRequest(caller=call(b"", 3).caller, sample=speech)
        assert "PROVIDER_PROTOCOL" == (await refusal(cloner.CloneVoice(sample, timeout=10)))[0]
        emulator.faults.clear()
        await end(cloner, 2)
        (deleted,) = await emulator.requests.wait(1, method="DELETE", stage="finished")

    assert deleted.path.endswith(given.voice.voice_id)
    assert before == spoken(emulator)
    assert [] == await values(database, f"SELECT marker FROM voices WHERE voice_id = '{own}'")


async def test_orphan_that_is_somebody_elses(cloning, emulator: Emulator, speech: bytes) -> None:
    """A list that names a caller's voice as one of nobody's does not have it deleted."""
    clock = Clock()
    async with cloning(
        now=clock, precall_deployment="ours", reconcile_seconds=0.1, reconcile_grace_seconds=0.0
    ) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        voice = emulator.voices[first.voice.voice_id]
        voice.labels = {"precall": "precall-ours-nobody", "precall_deployment": "ours"}
        clock.ahead = 10
        seen = len(emulator.requests.matching(path="/v2/voices"))
        await emulator.requests.wait(seen + 3, path="/v2/voices", stage="finished")

    assert [first.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]


async def test_ids_that_do_not_fit_are_not_kept(
    cloning, emulator: Emulator, speech: bytes, database: str
) -> None:
    """No such id is answered, stored or made part of a request."""
    ids = ["", ".", "..", "../../v1/user", "a\r\nb", "a\0b", "x" * 200]
    emulator.faults.set(
        *(
            Fault(
                method="POST", path=CREATE, status=200,
                body={"voice_id": voice_id, "requires_verification": False},
            )
            for voice_id in ids
        )
    )  # fmt: skip
    callers = range(len(ids))
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        # At once, since each create that came to nothing is looked for, for two seconds.
        told = await asyncio.gather(
            *(refusal(cloner.PrepareCall(call(speech, number), timeout=20)) for number in callers)
        )
        for number in callers:
            await end(cloner, number)

    assert [("PROVIDER_PROTOCOL", [])] * len(ids) == told
    assert len(ids) == len(emulator.requests.matching(path=CREATE))
    assert [] == emulator.requests.matching(method="DELETE")
    assert [] == await values(database, "SELECT marker FROM voices WHERE voice_id IS NOT NULL")


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 200, "body": "<html>OK</html>"},
        {"status": 303, "headers": {"Location": "/v1/voices"}},
        {"status": 304},
        {"status": 408, "body": "<html>408 Request Time-out</html>"},
        {"error": "already_processing"},
        {"error": "voice_already_exists"},
        {"status": 403, "body": {"detail": {"code": "maintenance"}}},
    ],
    ids=str,
)
async def test_odd_answer_to_a_create_that_made_a_voice(
    cloning, emulator: Emulator, speech: bytes, fault: dict[str, Any]
) -> None:
    """The voice is found by its marker, so it is used and paid for once."""
    emulator.faults.set(Fault(method="POST", path=CREATE, work_done=True, **fault))
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert [answer.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    assert 1 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("greeting", ["Hello\0there", "x" * 70_000])
async def test_greeting_that_cannot_be_kept(
    cloning, emulator: Emulator, speech: bytes, greeting: str
) -> None:
    """Such an agent is left alone, and the override carries the voice."""
    emulator.agents["agent_demo"]["conversation_config"]["agent"]["first_message"] = greeting
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert (False, True) == (answer.agent_updated, answer.settings_seen)
    assert [] == emulator.requests.matching(method="PATCH")


async def test_huge_agent(cloning, emulator: Emulator, speech: bytes) -> None:
    """An agent that is longer than is read is left alone."""
    emulator.agents["agent_demo"]["conversation_config"]["agent"]["prompt"]["prompt"] = "x" * 10_000_000
    async with cloning() as cloner:
        assert not (await cloner.PrepareCall(call(speech), timeout=10)).agent_updated


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
async def test_agent_that_cannot_be_read_fails_nothing(
    cloning, emulator: Emulator, speech: bytes, subtests: pytest.Subtests, mode: str
) -> None:
    """What the override can carry does not fail for it."""
    async with cloning(agent_update=mode) as cloner:
        for number, fault in enumerate(NOT_ITS_WORD, 1):
            with subtests.test(str(fault)):
                asked = len(emulator.requests.matching(method="GET", path=AGENT))
                emulator.faults.set(Fault(method="GET", path=AGENT, times=None, **fault))
                answer = await cloner.PrepareCall(call(speech, number), timeout=10)

                assert (False, False) == (answer.agent_updated, answer.voice_reused)
                assert asked < len(emulator.requests.matching(method="GET", path=AGENT))


async def test_agent_update_that_nobody_can_read(cloning, emulator: Emulator, speech: bytes) -> None:
    """What the override can carry does not fail where something on the way refuses the update."""
    emulator.faults.set(
        Fault(method="PATCH", path=AGENT, times=None, status=400, body="<html>400 Bad Request</html>")
    )
    async with cloning() as cloner:
        answer = await cloner.PrepareCall(call(speech), timeout=10)

    assert (False, answer.voice.voice_id in emulator.voices) == (answer.agent_updated, True)
    assert 1 == len(emulator.requests.matching(method="PATCH"))


async def test_key_that_may_not_read_agents(cloning, emulator: Emulator, speech: bytes) -> None:
    """Deliveries go on without the agent; the log says what the key lacks, and not each time."""
    emulator.permissions.take("convai_read")
    async with cloning() as cloner:
        with capture_logs() as logs:
            answers = [await cloner.PrepareCall(call(speech, n), timeout=10) for n in (1, 2, 3)]

    assert [False] * 3 == [answer.agent_updated for answer in answers]
    (told,) = [line for line in logs if line["event"] == "agent not read"]
    assert ("warning", "agent_demo", "convai_read") == (
        told["log_level"], told["agent_id"], told["permission_needed"],
    )  # fmt: skip
    assert [] == emulator.requests.matching(method="PATCH")


async def test_key_that_may_not_change_agents(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """A voice that was bought is answered; nothing is put off for it, and it goes as usual."""
    emulator.permissions.take("convai_write")
    async with cloning(voice_clone_keep_hours=0.0) as cloner:
        with capture_logs() as logs:
            answers = [await cloner.PrepareCall(call(speech, n), timeout=10) for n in (1, 1)]
            await end(cloner)
            await eventually(lambda: not emulator.voices.custom)

    assert [(False, False), (False, True)] == [(a.agent_updated, a.voice_reused) for a in answers]
    (told,) = [line for line in logs if line["event"] == "agent not updated"]
    assert ("agent_demo", "convai_write") == (told["agent_id"], told["permission_needed"])


async def test_key_that_may_not_read_voices(cloning, emulator: Emulator, speech: bytes) -> None:
    """A known voice is used unchecked."""
    clock = Clock()
    emulator.permissions.take("voices_read")
    async with cloning(now=clock) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        clock.ahead = 601
        second = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)

    assert (True, first.voice.voice_id, True) == (
        first.agent_updated, second.voice.voice_id, second.voice_reused,
    )  # fmt: skip


async def test_key_that_may_not_delete_voices(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """Calls go on, and what stays is told, until the key may delete."""
    clock = Clock()

    emulator.permissions.take("voices_write")
    async with cloning(now=clock, voice_clone_keep_hours=0.0) as cloner:
        with capture_logs() as logs:
            await cloner.PrepareCall(call(speech), timeout=10)
            await end(cloner)
            await eventually(lambda: [line for line in logs if line["event"] == "voice not deleted yet"])
            emulator.permissions.set(["voices_write", "convai_read", "convai_write", "voices_read"])
            await eventually(clock.passing_pauses(logs, lambda: not emulator.voices.custom))

    assert {"PROVIDER_UNAUTHORIZED"} == {
        line["reason"] for line in logs if line["event"] == "voice not deleted yet"
    }


async def test_key_that_may_not_clone(cloning, emulator: Emulator, speech: bytes) -> None:
    """Known callers go on; new ones are told why not."""
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech, 1), timeout=10)
        emulator.permissions.take("create_instant_voice_clone")
        assert (await cloner.PrepareCall(call(speech, 1, conversation_id="c"), timeout=10)).voice_reused
        assert "PROVIDER_UNAUTHORIZED" == (await refusal(cloner.PrepareCall(call(speech, 2), timeout=10)))[0]


@pytest.mark.parametrize("reset", [None, -1, 0, 10**18, 10**400, "soon", 1.5], ids=lambda r: str(r)[:8])
async def test_month_that_ends_at_no_time(cloning, emulator: Emulator, speech: bytes, reset: Any) -> None:
    """Nothing that is said about the month keeps callers from being cloned for longer than an hour."""
    clock = Clock()
    emulator.voices.monthly_limit = 0
    emulator.faults.set(
        Fault(
            method="GET", path="/v1/user/subscription", times=None, status=200,
            body='{"next_character_count_reset_unix": %s}' % ("null" if reset is None else repr(reset).replace("'", '"')),
        )
    )  # fmt: skip
    async with cloning(now=clock) as cloner:
        for _ in range(2):
            assert "VOICE_MONTHLY_LIMIT" == (await refusal(cloner.PrepareCall(call(speech), timeout=10)))[0]
        assert 1 == len(emulator.requests.matching(path=CREATE))
        emulator.voices.monthly_limit = None
        clock.ahead = 3_700
        assert (await cloner.PrepareCall(call(speech), timeout=10)).voice.voice_id


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_provider_that_forgot_everything(cloning, emulator: Emulator, speech: bytes, mode: str) -> None:
    """The same delivery gets a new voice at once, since its agent refuses the one that is lost."""
    async with cloning(agent_update=mode) as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
    new = Emulator(emulator.settings)
    async with (
        new.listening() as url,
        cloning(agent_update=mode, elevenlabs_base_url=url, reconcile_seconds=1e9) as cloner,
    ):
        second = await cloner.PrepareCall(call(speech), timeout=10)
        third = await cloner.PrepareCall(call(speech), timeout=10)

    assert first.voice.voice_id != second.voice.voice_id
    assert (False, True) == (second.voice_reused, second.agent_updated)
    assert second.voice.voice_id == third.voice.voice_id == spoken(new)[0]
    assert 1 == len(new.requests.matching(path=CREATE))


async def test_refused_voice_that_is_there(cloning, emulator: Emulator, speech: bytes) -> None:
    """An agent that refuses a voice which ElevenLabs has is no reason to clone again."""
    async with cloning() as cloner:
        emulator.faults.set(Fault(method="PATCH", path=AGENT, times=None, status=400, body={"detail": "no"}))
        for conversation in ("conv_1", "conv_2"):
            answer = cloner.PrepareCall(call(speech, conversation_id=conversation), timeout=10)
            assert "AGENT_REJECTED" == (await refusal(answer))[0]

    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_cookies_are_not_kept(cloning, speech: bytes) -> None:
    """What an answer wants to be kept and sent along is dropped."""
    adversary = Adversary()
    adversary.answer = http_answer(b"{}", "Set-Cookie: a=1; Path=/", "Set-Cookie: b=2")
    async with adversary.listening() as url, cloning(elevenlabs_base_url=url) as cloner:
        asked = (refusal(cloner.PrepareCall(call(speech, number), timeout=20)) for number in (1, 2))
        assert [("PROVIDER_PROTOCOL", [])] * 2 == await asyncio.gather(*asked)

    assert 4 < len(adversary.heads)
    assert [] == [head for head in adversary.heads if "\r\ncookie:" in head.lower()]
