"""Requests that their senders name: the same name, the same answer, for a day, at any process."""

import asyncio
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Emulator, Fault
from tests.cloner.clock import Clock
from tests.kit.failures import refusal
from tests.kit.rows import rows, values

CREATE = "/v1/voices/add"
CALLER = pb.Caller(name="Ivan", date_of_birth="11.12.2007", phone_number="+31612345678")
DAY = 86_400


def replacing(speech: bytes, request_id: str = "one", **changes: Any) -> pb.ReplaceVoiceRequest:
    """A request for another voice of one caller."""
    return pb.ReplaceVoiceRequest(**{"caller": CALLER, "sample": speech, "request_id": request_id, **changes})


def cloning_of(speech: bytes, request_id: str = "one", **changes: Any) -> pb.CloneVoiceRequest:
    """A request for the voice of one caller, ahead of time."""
    return pb.CloneVoiceRequest(**{"caller": CALLER, "sample": speech, "request_id": request_id, **changes})


def bought(emulator: Emulator) -> int:
    """How many voices ElevenLabs was asked to make."""
    return len(emulator.requests.matching(path=CREATE))


async def test_repeated(cloning, emulator: Emulator, speech: bytes) -> None:
    """Whatever was bought for a name is the answer at another process, and after a restart; another name buys."""
    async with cloning() as one, cloning() as other:
        cloned = await one.CloneVoice(cloning_of(speech, "clone"), timeout=10)
        first = await one.ReplaceVoice(replacing(speech), timeout=10)
        again = await other.ReplaceVoice(replacing(speech), timeout=10)
        assert 2 == bought(emulator)
        another = await other.ReplaceVoice(replacing(speech, "two"), timeout=10)
    async with cloning() as restarted:
        late = await restarted.ReplaceVoice(replacing(speech), timeout=10)
        late_clone = await restarted.CloneVoice(cloning_of(speech, "clone"), timeout=10)

    assert first == again == late
    assert first.voice.voice_id not in {cloned.voice.voice_id, another.voice.voice_id}
    assert (cloned, False) == (late_clone, late_clone.voice_reused)
    assert 3 == bought(emulator)


async def test_known_voice(cloning, emulator: Emulator, speech: bytes) -> None:
    """A clone that found a voice says so again, also once that voice was replaced."""
    async with cloning() as cloner:
        await cloner.CloneVoice(cloning_of(speech, ""), timeout=10)
        found = await cloner.CloneVoice(cloning_of(speech), timeout=10)
        await cloner.ReplaceVoice(replacing(speech, "two"), timeout=10)
        again = await cloner.CloneVoice(cloning_of(speech), timeout=10)

    assert (found, True) == (again, again.voice_reused)
    assert 2 == bought(emulator)


@pytest.mark.parametrize("known", [False, True], ids=["new caller", "known caller"])
@pytest.mark.parametrize("method", ["CloneVoice", "ReplaceVoice"])
async def test_two_at_once(cloning, emulator: Emulator, speech: bytes, method: str, known: bool) -> None:
    """Of several that come at once, at one process and at another, one buys and the others get its answer."""
    request = {"CloneVoice": cloning_of, "ReplaceVoice": replacing}[method](speech)
    async with cloning() as one, cloning() as other:
        if known:
            await one.PrepareCall(
                pb.PrepareCallRequest(
                    agent_id="agent_demo", conversation_id="conv_1", caller=CALLER, sample=speech
                ),
                timeout=10,
            )
        before = bought(emulator)
        buys = not (known and method == "CloneVoice")
        if buys:
            emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
        asking = [
            asyncio.ensure_future(getattr(cloner, method)(request, timeout=20))
            for cloner in (one, other, one, other)
        ]
        if buys:
            await emulator.requests.wait(path=CREATE, stage="held")
            await asyncio.sleep(0.5)
            emulator.faults.release()
        answers = await asyncio.gather(*asking)

    assert 1 == len({answer.SerializeToString(deterministic=True) for answer in answers})
    assert before + buys == bought(emulator)


async def test_lost_answer(cloning, emulator: Emulator, speech: bytes) -> None:
    """Whoever gave up waiting gets the voice that was bought meanwhile."""
    async with cloning() as one, cloning() as other:
        await one.CloneVoice(cloning_of(speech, ""), timeout=10)
        emulator.faults.set(Fault(method="POST", path=CREATE, hold="after"))
        left = asyncio.ensure_future(one.ReplaceVoice(replacing(speech), timeout=20))
        await emulator.requests.wait(2, path=CREATE)
        left.cancel()
        waiting = asyncio.ensure_future(other.ReplaceVoice(replacing(speech), timeout=20))
        await asyncio.sleep(0.5)
        emulator.faults.release()
        voice = (await waiting).voice
        again = await one.ReplaceVoice(replacing(speech), timeout=10)

    assert voice == again.voice
    assert 2 == bought(emulator)


@pytest.mark.parametrize(
    "other",
    [
        {"sample": b"another"},
        {"caller": pb.Caller(name="Ivan", phone_number="+31612345678")},
        {"caller": pb.Caller(name="Maria", date_of_birth="11.12.2007", phone_number="+31612345678")},
        {"consent": "given"},
    ],
    ids=["sample", "date of birth", "name", "consent"],
)
async def test_another_request_of_that_name(cloning, emulator: Emulator, speech: bytes, other: dict) -> None:
    """Another request under the name is refused, by all that it could differ in, and nothing is done."""
    async with cloning() as cloner:
        await cloner.ReplaceVoice(replacing(speech), timeout=10)
        refused = await refusal(cloner.ReplaceVoice(replacing(speech, **other), timeout=10))
        kind = await refusal(cloner.CloneVoice(cloning_of(speech), timeout=10))

    assert ("FIELD_INVALID", ["request_id"]) == refused == kind
    assert 1 == bought(emulator)


async def test_another_request_at_once(cloning, emulator: Emulator, speech: bytes, samples) -> None:
    """Of two requests of one name at once, the one that comes second is refused, whatever it asks for."""
    other = (samples / "speech.wav").read_bytes()
    async with cloning() as one, cloning() as two:
        emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
        asking = [
            asyncio.ensure_future(cloner.ReplaceVoice(replacing(sample), timeout=20))
            for cloner, sample in ((one, speech), (two, other))
        ]
        await emulator.requests.wait(path=CREATE, stage="held")
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        emulator.faults.release()
        (refused,) = done
        assert ("FIELD_INVALID", ["request_id"]) == await refusal(refused)
        (served,) = set(asking) - done
        assert (await served).voice.voice_id

    assert 1 == bought(emulator)


async def test_failure_is_not_remembered(cloning, emulator: Emulator, speech: bytes, silence) -> None:
    """What failed may be repeated under its name, with the same content or, since nothing came of it, another."""
    async with cloning() as cloner:
        assert "SAMPLE_SILENT" == (await refusal(cloner.ReplaceVoice(replacing(silence(5.0)), timeout=10)))[0]
        emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))
        assert "SAMPLE_REJECTED" == (await refusal(cloner.ReplaceVoice(replacing(speech), timeout=10)))[0]
        assert (await cloner.ReplaceVoice(replacing(speech), timeout=10)).voice.voice_id


async def test_a_day(cloning, emulator: Emulator, speech: bytes, database: str) -> None:
    """A name counts for a day, and nothing of it is kept for longer."""
    clock = Clock()
    async with cloning(now=clock) as cloner:
        first = await cloner.ReplaceVoice(replacing(speech), timeout=10)
        clock.ahead = DAY - 60
        assert first == await cloner.ReplaceVoice(replacing(speech), timeout=10)
        clock.ahead = DAY + 60
        second = await cloner.ReplaceVoice(replacing(speech), timeout=10)
        assert first.voice.voice_id != second.voice.voice_id
        clock.ahead = 2 * DAY + 120
        async with asyncio.timeout(60):
            while await values(database, "SELECT 1 FROM requests"):
                await asyncio.sleep(0.05)

    assert 2 == bought(emulator)


async def test_forgotten(cloning, emulator: Emulator, speech: bytes, database: str) -> None:
    """A request whose voice was forgotten does not make it anew when it comes once more."""
    async with cloning() as cloner:
        await cloner.ReplaceVoice(replacing(speech), timeout=10)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=CALLER), timeout=10)
        refused = await refusal(cloner.ReplaceVoice(replacing(speech), timeout=10))
        kept = await rows(database, "SELECT content, marker FROM requests")

    assert ("NOT_FOUND", []) == refused
    assert [{"content": "", "marker": None}] == kept
    assert 1 == bought(emulator)


async def test_nothing_private_at_rest(cloning, speech: bytes, database: str) -> None:
    """Neither the sender's name for a request nor what it asked for can be read in the registry."""
    async with cloning() as cloner:
        await cloner.ReplaceVoice(replacing(speech, "order-of-ivan"), timeout=10)
    (row,) = await rows(database, "SELECT * FROM requests")

    for private in ("order-of-ivan", "Ivan", "31612345678", "11.12.2007"):
        assert private not in str(row)


@pytest.mark.parametrize("token", ["0x1p+0_\0", "0x1p+0_", "0x1p+0_a b", "x_precall", f"0x1p+0_{'x' * 200}"])
async def test_made_up_page_token(cloning, token: str) -> None:
    """A page token that no answer carried is the sender's mistake, also where no database could hold it."""
    async with cloning() as cloner:
        refused = await refusal(cloner.ListVoices(pb.ListVoicesRequest(page_token=token), timeout=10))

    assert ("FIELD_INVALID", ["page_token"]) == refused
