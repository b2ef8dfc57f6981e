"""A voice that somebody watches: what is told of it, how often the registry is asked, and how streams end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1 import error_reason_pb2
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from emulator import Emulator, Fault
from environment import Secret
from tests.kit.clients import channel
from tests.kit.failures import failure, reason, refusal, told
from tests.kit.processes.cloner import API_KEY, process, ready
from tests.kit.requests import IVAN, call_of_ivan

pytestmark = pytest.mark.long

CREATE = "/v1/voices/add"
SPAN = "precall.v1.CloningService/WatchVoice"


def watch(cloner: Any, seconds: float = 20, **which: Any) -> Any:
    """A stream about Ivan's voice, or another."""
    return cloner.WatchVoice(pb.WatchVoiceRequest(**(which or {"caller": IVAN})), timeout=seconds)


def clone(sample: bytes, **changes: Any) -> pb.CloneVoiceRequest:
    """A request for Ivan's voice ahead of time."""
    return pb.CloneVoiceRequest(**{"caller": IVAN, "sample": sample, **changes})


async def state(stream: Any) -> str:
    """The state that the stream tells next."""
    answer = await asyncio.wait_for(stream.read(), 15)
    assert answer is not grpc.aio.EOF
    return pb.VoiceState.Name(answer.voice.state).removeprefix("VOICE_STATE_")


async def voices(stream: Any) -> list[pb.Voice]:
    """What the stream tells until it ends, which must be well."""
    told = []
    while (answer := await stream.read()) is not grpc.aio.EOF:
        told.append(answer.voice)
    assert grpc.StatusCode.OK == await stream.code()
    return told


async def rest(stream: Any) -> list[str]:
    """The states that the stream tells until it ends, which must be well."""
    return [pb.VoiceState.Name(voice.state) for voice in await voices(stream)]


async def failed(stream: Any) -> grpc.aio.AioRpcError:
    """How a stream fails that must."""
    return await failure(stream.read())


async def test_whole_life(cloning, emulator: Emulator, speech: bytes, asked) -> None:
    """From before the voice is begun, at another process, until it is gone."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as one, cloning() as other:
        streams = [watch(one), watch(other)]
        await asyncio.sleep(0.2)
        asking = asyncio.ensure_future(one.CloneVoice(clone(speech), timeout=20))
        assert ["CREATING"] * 2 == [await state(stream) for stream in streams]
        emulator.faults.release()
        made = (await asking).voice
        told = [await stream.read() for stream in streams]
        assert [(pb.VOICE_STATE_READY, made.voice_id)] * 2 == [
            (answer.voice.state, answer.voice.voice_id) for answer in told
        ]
        before = len(asked())
        by_id = watch(other, voice_id=made.voice_id)
        assert "READY" == await state(by_id)
        await asyncio.sleep(0.6)
        assert before == len(asked())
        await other.DeleteVoice(pb.DeleteVoiceRequest(voice_id=made.voice_id), timeout=10)
        assert [["VOICE_STATE_GONE"]] * 3 == [await rest(stream) for stream in (*streams, by_id)]
        # What is gone is told, and there is nothing to wait for.
        assert ["VOICE_STATE_GONE"] == await rest(watch(other, voice_id=made.voice_id))


async def test_failed(cloning, emulator: Emulator, speech: bytes) -> None:
    """The stream ends with the reason; one that begins later waits for the next voice."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", error="invalid_content"))
    async with cloning() as cloner:
        stream = watch(cloner)
        asking = asyncio.ensure_future(cloner.CloneVoice(clone(speech), timeout=20))
        assert "CREATING" == await state(stream)
        emulator.faults.release()
        answers = await voices(stream)
        assert "SAMPLE_REJECTED" == (await refusal(asking))[0]
        later = watch(cloner)
        assert "FAILED" == await state(later)
        asking = asyncio.ensure_future(cloner.CloneVoice(clone(speech), timeout=20))
        while (told := await state(later)) == "CREATING":
            pass
        await asking

    assert [(pb.VOICE_STATE_FAILED, error_reason_pb2.ERROR_REASON_SAMPLE_REJECTED)] == [
        (voice.state, voice.failure_reason) for voice in answers
    ]
    assert "READY" == told


async def test_create_that_is_tried_again(cloning, emulator: Emulator, speech: bytes) -> None:
    """A lost answer is no failure while it is made out, and another voice is made."""
    emulator.faults.set(Fault(method="POST", path=CREATE, drop="before"))
    async with cloning() as cloner:
        stream = watch(cloner)
        await cloner.CloneVoice(clone(speech), timeout=20)
        told = set()
        while "READY" not in told:
            told.add(await state(stream))
        stream.cancel()

    assert {"CREATING", "READY"} >= told


async def test_replaced(cloning, speech: bytes) -> None:
    """Of a caller the new voice is told, of the old voice that it is gone."""
    async with cloning() as cloner:
        old = (await cloner.CloneVoice(clone(speech), timeout=10)).voice
        of_caller, of_voice = watch(cloner), watch(cloner, voice_id=old.voice_id)
        assert ["READY", "READY"] == [await state(of_caller), await state(of_voice)]
        request = pb.ReplaceVoiceRequest(caller=IVAN, sample=speech)
        new = (await cloner.ReplaceVoice(request, timeout=10)).voice
        told = (await of_caller.read()).voice
        gone = await voices(of_voice)
        of_caller.cancel()

    assert (new.voice_id, pb.VOICE_STATE_READY) == (told.voice_id, told.state)
    assert [(old.voice_id, pb.GONE_CAUSE_REPLACED)] == [(voice.voice_id, voice.gone_cause) for voice in gone]


async def test_forgotten(cloning, speech: bytes) -> None:
    """Of a caller who is forgotten it is told that the voice is gone, and nothing more of the caller."""
    async with cloning() as cloner:
        made = await cloner.CloneVoice(clone(speech, consent="form 1", client_reference="x"), timeout=10)
        streams = [watch(cloner), watch(cloner, voice_id=made.voice.voice_id)]
        assert ["READY", "READY"] == [await state(stream) for stream in streams]
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        ends = [await voices(stream) for stream in streams]

    assert [[(pb.VOICE_STATE_GONE, pb.GONE_CAUSE_FORGOTTEN, "", "")]] * 2 == [
        [(voice.state, voice.gone_cause, voice.consent, voice.client_reference) for voice in end]
        for end in ends
    ]


async def test_unknown(cloning) -> None:
    """A voice that was never ours is not watched."""
    async with cloning() as cloner:
        answer = await failed(watch(cloner, voice_id="nowhere"))

    assert ("NOT_FOUND", grpc.StatusCode.NOT_FOUND) == reason(answer)


async def test_time_is_up(cloning, speech: bytes) -> None:
    """A stream ends well before its deadline, and where it had none, when it has lasted long enough."""
    async with cloning(watch_seconds=1.0) as cloner:
        # On a machine that stands still for a moment, the client's own clock may be first now and then.
        for last in (False, False, False, True):
            try:
                assert [] == await rest(watch(cloner, 0.8))
            except grpc.aio.AioRpcError:
                if last:
                    raise
            else:
                break
        await cloner.CloneVoice(clone(speech), timeout=10)
        began = asyncio.get_running_loop().time()
        stream = cloner.WatchVoice(pb.WatchVoiceRequest(caller=IVAN))
        assert ["VOICE_STATE_READY"] == await rest(stream)
        assert asyncio.get_running_loop().time() - began < 10


async def test_time_is_up_late(cloning, speech: bytes) -> None:
    """A process that stands still while the end of a stream comes ends it as ever, and blames nobody."""
    async with cloning(watch_seconds=1.0) as cloner:
        await cloner.CloneVoice(clone(speech), timeout=10)
        stream = cloner.WatchVoice(pb.WatchVoiceRequest(caller=IVAN))
        assert "READY" == await state(stream)
        time.sleep(1.5)  # noqa: ASYNC251 - everything stands still, the cloner's loop too
        assert [] == await rest(stream)


async def test_too_many(cloning, speech: bytes) -> None:
    """One more than there may be is refused, and told to come again; other calls are served."""
    async with cloning(watch_max=2) as cloner:
        voice_id = (await cloner.CloneVoice(clone(speech), timeout=20)).voice.voice_id
        streams = [watch(cloner, voice_id=voice_id) for _ in range(2)]
        assert ["READY", "READY"] == [await state(stream) for stream in streams]
        refused = await failed(watch(cloner, voice_id=voice_id))
        assert 1 == len((await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)).voices)

        streams[0].cancel()
        async with asyncio.timeout(60):  # until the cloner has heard of that
            while True:
                another = watch(cloner, voice_id=voice_id)
                try:
                    await state(another)
                except grpc.aio.AioRpcError as still:
                    refused = still
                else:
                    break
        another.cancel()
        streams[1].cancel()

    assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == reason(refused)
    assert 1 == told(refused).retry.seconds
    assert "2" == told(refused).metadata["limit_streams"]


async def test_registry_that_goes(cloning, sqlite: str) -> None:
    """A stream about which nothing can be known any more ends with that reason."""
    async with cloning(database_url=sqlite) as cloner:
        stream = watch(cloner)
        await asyncio.sleep(0.3)
        Path(sqlite.removeprefix("sqlite:///")).unlink()
        ended = await failed(stream)

    assert ("REGISTRY_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE) == reason(ended)
    assert 1 == told(ended).retry.seconds


async def test_strangers(cloning) -> None:
    """Without the token nothing is told."""
    async with cloning(cloner_token=(Secret("token-of-the-cloner-in-tests"),)) as cloner:
        refused = await failed(watch(cloner))

    assert ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED) == reason(refused)


@asynccontextmanager
async def running(emulator_url: str, **settings: str) -> AsyncIterator[Any]:
    """A cloner in a process of its own, and a client of it."""
    async with (
        process(
            ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0",
            DRAIN_SECONDS="0.2", **settings,
        ) as started,
        grpc.aio.insecure_channel(await ready(started)) as channel,
    ):  # fmt: skip
        yield started, CloningServiceStub(channel)


@pytest.mark.timeout(120)
async def test_drain(emulator_url: str) -> None:
    """A process that stops ends its streams at once, with a reason and a time to come again."""
    async with running(emulator_url, SHUTDOWN_GRACE_SECONDS="60") as (started, cloner):
        streams = [watch(cloner, 100) for _ in range(3)]
        await asyncio.sleep(0.5)
        # What was sent before it on this connection has arrived as well.
        await cloner.GetLimits(pb.GetLimitsRequest(), timeout=20)
        started.terminate()
        ends = [await failed(stream) for stream in streams]
        await asyncio.wait_for(started.wait(), 20)

    assert {("CLONER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)} == {reason(ended) for ended in ends}
    assert {1} == {told(ended).retry.seconds for ended in ends}
    assert 0 == started.returncode


async def test_one_question_for_all(database: str, eventually) -> None:
    """However many watch, the registry is asked once in half a second; when nobody does, not at all."""
    from cloner.registry import views
    from cloner.registry.opening import opened

    class Counting:
        """A registry that counts what it is asked."""

        def __init__(self, store: Any) -> None:
            self._store = store
            self.asked = 0

        async def read(self, work: Any, *args: Any, **named: Any) -> Any:
            self.asked += work is views.watched
            return await self._store.read(work, *args, **named)

    from cloner.voices.callers import Caller, Identities
    from cloner.voices.looking import Looking

    async with opened(database, name="tested", now=1.0) as store:
        counting = Counting(store)
        identities = Identities(b"key", "caller")
        looking = Looking(counting, identities, keep_seconds=None, call_seconds=60.0, now=lambda: 2.0)
        began = asyncio.get_running_loop().time()

        async def watching(number: int) -> None:
            watched = await looking.begin(Caller(phone_number=f"+316123400{number:02}"), "")
            assert [] == [voice async for voice in looking.follow(watched, until=began + 60)]

        watches = [asyncio.create_task(watching(number)) for number in range(50)]
        await eventually(lambda: 2 <= counting.asked)
        asked, took = counting.asked, asyncio.get_running_loop().time() - began
        for watch in watches:
            watch.cancel()
        await asyncio.wait(watches)
        left = counting.asked
        await asyncio.sleep(0.7)
        assert counting.asked <= left + 1
        await looking.close()

    assert asked <= took / 0.5 + 1


async def test_trace(cloning, spans) -> None:
    """A stream has one span in its caller's trace, which ends with it; what all streams ask together has none."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with cloning(watch_seconds=1.2) as cloner:
        request = pb.WatchVoiceRequest(caller=IVAN)
        stream = cloner.WatchVoice(request, timeout=30, metadata=(("traceparent", parent),))
        assert [] == await rest(stream)
        (span,) = await spans.wait(SPAN)

    assert [] == spans.finished("registry views.watched")
    assert (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331) == (
        span.context.trace_id,
        span.parent.span_id,
    )
    assert ("OK", "success") == (
        span.attributes["rpc.response.status_code"],
        span.attributes["precall.outcome"],
    )


async def test_work_that_outlives_its_request(cloning, emulator: Emulator, spans, speech: bytes) -> None:
    """What is done for a request that was answered has a trace of its own, which links to the request's."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        assert "PROVIDER_TIMEOUT" == (await refusal(cloner.PrepareCall(call_of_ivan(speech), timeout=3)))[0]
        server = (await spans.wait("precall.v1.CloningService/PrepareCall"))[0]
        emulator.faults.release()
        (late,) = await spans.wait("finish clone")

    assert [server.context.span_id] == [link.context.span_id for link in late.links]
    assert (None, True) == (late.parent, late.context.trace_id != server.context.trace_id)
    (voice,) = emulator.voices.custom
    assert voice.voice_id == late.attributes["precall.voice.id"]


async def test_retry_that_outlives_its_request(cloning, emulator: Emulator, spans, speech: bytes) -> None:
    """Requests to ElevenLabs that come after the answer are in the trace that links to it."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", drop="before"))
    async with cloning() as cloner:
        await refusal(cloner.PrepareCall(call_of_ivan(speech), timeout=4))
        server = (await spans.wait("precall.v1.CloningService/PrepareCall"))[0]
        emulator.faults.release()
        await emulator.requests.wait(2, path=CREATE, stage="finished")
        await spans.wait("finish clone", 2)
        again = (await spans.wait(f"POST {CREATE}", 2))[-1]

    late = spans.finished("finish clone")
    assert {server.context.span_id} == {link.context.span_id for span in late for link in span.links}
    assert again.parent.span_id in {span.context.span_id for span in late}


@pytest.mark.parametrize(
    ("body", "metadata", "expected"),
    [
        (b"\xff\xff", (), ("MALFORMED_BODY", grpc.StatusCode.INVALID_ARGUMENT)),
        (bytes(17 * 1_048_576), (), ("BODY_TOO_LARGE", grpc.StatusCode.INVALID_ARGUMENT)),
        (b"", (("x-much", "y" * 20_000),), ("BODY_TOO_LARGE", grpc.StatusCode.INVALID_ARGUMENT)),
    ],
    ids=["malformed", "large", "metadata"],
)
async def test_refused_at_the_door(
    cloning, sqlite: str, body: bytes, metadata: Any, expected: tuple[str, grpc.StatusCode]
) -> None:
    """What is no request is told as of every other call."""
    async with cloning(database_url=sqlite) as cloner, channel(cloner.port) as wire:
        raw = wire.unary_stream("/precall.v1.CloningService/WatchVoice")
        refused = await failed(raw(body, timeout=10, metadata=metadata))

    assert expected == reason(refused)
