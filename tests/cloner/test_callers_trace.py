"""The trace of whoever calls, in whatever language: it goes on here, and what comes later links to it."""

import contextlib
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.kit.requests import CLONING, IVAN, METHODS, request

CREATE, VOICE = "/v1/voices/add", "/v1/voices/{voice_id}"
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


def carried(trace: int = TRACE, flags: str = "01") -> tuple[tuple[str, str], ...]:
    """What a client sends of its trace, with what nobody here may take over."""
    return (("traceparent", f"00-{trace:032x}-{SPAN:016x}-{flags}"), ("baggage", "theirs=words"))


def links(span: Any) -> list[tuple[int, int]]:
    """The spans that it links to."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@pytest.mark.parametrize("method", METHODS)
async def test_goes_on(cloning, spans, speech: bytes, method: str) -> None:
    """The span of each call, whatever comes of it, is the child of its caller's; baggage is dropped."""
    asked = request(method, *([speech] if method in CLONING else []))
    async with cloning() as cloner:
        answer = getattr(cloner, method)(asked, timeout=10, metadata=carried())
        with contextlib.suppress(grpc.aio.AioRpcError):  # there is no voice of that id
            await (answer.read() if method == "WatchVoice" else answer)
        (span,) = await spans.wait(f"precall.v1.CloningService/{method}")

    assert (TRACE, SPAN) == (span.context.trace_id, span.parent.span_id)
    of_theirs = [each for each in spans.finished() if each.context.trace_id == TRACE]
    inside = {each.context.span_id for each in of_theirs}
    assert [] == [each.name for each in of_theirs if each is not span and each.parent.span_id not in inside]
    assert not any("theirs" in each.to_json() for each in of_theirs)


async def test_clone_that_outlives_its_call(cloning, emulator: Emulator, spans, speech: bytes) -> None:
    """Its own trace links to the span of the call that began it, in its caller's trace."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning() as cloner:
        begun = cloner.CloneVoice(request("CloneVoice", speech), timeout=60, metadata=carried())
        await emulator.requests.wait(path=CREATE, stage="held")
        begun.cancel()
        (span,) = await spans.wait("precall.v1.CloningService/CloneVoice")
        emulator.faults.release()
        (late,) = await spans.wait("finish clone")

    assert (TRACE, None) == (span.context.trace_id, late.parent)
    assert [(TRACE, span.context.span_id)] == links(late)


@pytest.mark.parametrize("method", ["DeleteVoice", "ForgetCaller", "SetConsent"])
async def test_deletion_that_comes_later(
    cloning, emulator: Emulator, spans, speech: bytes, method: str
) -> None:
    """It links to the call that had the voice made, and to the one that had it deleted."""
    async with cloning(provider_attempts=1) as cloner:
        made = await cloner.CloneVoice(request("CloneVoice", speech), timeout=20, metadata=carried())
        emulator.faults.set(Fault(method="DELETE", path=VOICE, error="service_unavailable"))
        asked = {
            "DeleteVoice": pb.DeleteVoiceRequest(voice_id=made.voice.voice_id),
            "ForgetCaller": pb.ForgetCallerRequest(caller=IVAN),
            "SetConsent": pb.SetConsentRequest(caller=IVAN, withdrawn=True),
        }[method]
        await getattr(cloner, method)(asked, timeout=20, metadata=carried(TRACE + 1))
        (later, *_) = await spans.wait("delete voice")

    maker, asker = (spans.one(f"precall.v1.CloningService/{name}") for name in ("CloneVoice", method))
    assert [TRACE, TRACE + 1] == [maker.context.trace_id, asker.context.trace_id]
    assert {(TRACE, maker.context.span_id), (TRACE + 1, asker.context.span_id)} == set(links(later))


async def test_voice_that_is_replaced(cloning, spans, speech: bytes, samples: Any) -> None:
    """Log and trace tell why it was given up, and link to who had it made and to who had it replaced."""
    another = (samples / "speech.flac").read_bytes()
    with capture_logs() as lines:
        async with cloning() as cloner:
            made = await cloner.CloneVoice(request("CloneVoice", speech), timeout=20, metadata=carried())
            replacing = pb.ReplaceVoiceRequest(caller=IVAN, sample=another)
            await cloner.ReplaceVoice(replacing, timeout=20, metadata=carried(TRACE + 1))
            (later, *_) = await spans.wait("delete voice")

    maker, asker = (spans.one(f"precall.v1.CloningService/{name}") for name in ("CloneVoice", "ReplaceVoice"))
    assert {(TRACE, maker.context.span_id), (TRACE + 1, asker.context.span_id)} == set(links(later))
    told = [(line["voice_id"], line["reason"]) for line in lines if line["event"] == "voice given up"]
    assert [(made.voice.voice_id, "replaced")] == told
    assert ("success", "replaced") == (
        later.attributes["precall.outcome"], later.attributes["precall.reason"],
    )  # fmt: skip


async def test_voice_that_is_deleted_twice(cloning, speech: bytes) -> None:
    """It was given up once, by who was first."""
    with capture_logs() as lines:
        async with cloning() as cloner:
            made = await cloner.CloneVoice(request("CloneVoice", speech), timeout=20)
            for _ in range(2):
                asked = pb.DeleteVoiceRequest(voice_id=made.voice.voice_id)
                assert (await cloner.DeleteVoice(asked, timeout=20)).deleted

    assert 1 == [line["event"] for line in lines].count("voice given up")


@pytest.mark.parametrize("carried_header", ["nonsense", f"00-{'0' * 32}-{'0' * 16}-01", "y" * 5_000])
async def test_what_is_no_trace(cloning, spans, carried_header: str) -> None:
    """A header that says nothing is passed over: the call has a trace of its own."""
    async with cloning() as cloner:
        await cloner.GetLimits(pb.GetLimitsRequest(), timeout=10, metadata=(("traceparent", carried_header),))
        (span,) = await spans.wait("precall.v1.CloningService/GetLimits")

    assert span.parent is None
    assert () == tuple(span.links)


async def test_what_its_caller_does_not_sample(cloning, spans, speech: bytes) -> None:
    """What its caller leaves out of its own trace is left out here, and is served all the same."""
    async with cloning() as cloner:
        answer = await cloner.CloneVoice(
            request("CloneVoice", speech), timeout=20, metadata=carried(flags="00")
        )

    assert answer.voice.voice_id
    assert [] == [span.name for span in spans.finished() if span.context.trace_id == TRACE]
