"""What GetLimits and GetUsage tell, and how often ElevenLabs is asked for it."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from precall.v1 import cloning_pb2 as pb

from cloner.provider.answers import Subscription, read_subscription
from emulator import Emulator, Fault
from environment import Toml
from tests.cloner.clock import StoppedClock
from tests.kit.clients import entry, with_token
from tests.kit.failures import refusal
from tests.kit.requests import IVAN

CREATE = "/v1/voices/add"
SUBSCRIPTION = "/v1/user/subscription"


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


def clone(sample: bytes, number: int = 1) -> pb.CloneVoiceRequest:
    """A request of one of many callers."""
    caller = pb.Caller(name="Ivan", phone_number=f"+3161234{number:04}")
    return pb.CloneVoiceRequest(caller=caller, sample=sample)


async def usage(cloner: Any) -> pb.GetUsageResponse:
    """How much is used."""
    return await cloner.GetUsage(pb.GetUsageRequest(), timeout=10)


def seconds(number: int) -> Duration:
    """A length of time."""
    return Duration(seconds=number)


async def test_limits(cloning) -> None:
    """Everything as it is by default."""
    async with cloning() as cloner:
        limits = await cloner.GetLimits(pb.GetLimitsRequest(), timeout=5)

    assert pb.GetLimitsResponse(
        sample=pb.SampleLimits(
            max_bytes=10_485_760, min_duration=seconds(3), max_duration=seconds(600),
            min_sound_duration=seconds(1), min_sample_rate_hertz=16_000,
        ),
        retention=pb.Retention(
            unused_voice=seconds(86_400), enrolled_voice=seconds(30 * 86_400), longest_call=seconds(7_200),
            past=seconds(30 * 86_400), request_id=seconds(86_400),
        ),
        max_request_bytes=16_777_216, max_page_size=100, max_watch_duration=seconds(300), max_watches=100,
    ) == limits  # fmt: skip


async def test_limits_that_are_set(cloning) -> None:
    """Everything as it is set, fractions included."""
    async with cloning(
        voice_clone_max_size_mb=20.0, voice_clone_min_duration=1.25, voice_clone_max_duration=30.0,
        voice_clone_min_sound=0.5, voice_clone_min_sample_rate=8_000, voice_clone_auto_delete=False,
        require_consent=True, watch_seconds=60.0, watch_max=7,
    ) as cloner:  # fmt: skip
        limits = await cloner.GetLimits(pb.GetLimitsRequest(), timeout=5)

    assert (20 * 1_048_576, 21 * 1_048_576) == (limits.sample.max_bytes, limits.max_request_bytes)
    assert (1_250, 500) == (
        limits.sample.min_duration.ToMilliseconds(), limits.sample.min_sound_duration.ToMilliseconds(),
    )  # fmt: skip
    assert (True, False) == (limits.consent_required, limits.retention.HasField("unused_voice"))
    assert (8_000, 60, 7) == (
        limits.sample.min_sample_rate_hertz, limits.max_watch_duration.seconds, limits.max_watches,
    )  # fmt: skip


async def test_usage(cloning, emulator: Emulator, speech: bytes) -> None:
    """Slots, the month, the queue and the quota, with what is under way right now."""
    emulator.voices.limit, emulator.voices.monthly_limit = 30, 95
    async with cloning(provider_concurrency=2, provider_queue=9, cloner_max_requests=5) as cloner:
        while (idle := await usage(cloner)).provider_queue.running:
            pass  # until what a cloner asks when it starts is answered
        await cloner.CloneVoice(clone(speech), timeout=10)
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
        asking = [asyncio.ensure_future(cloner.CloneVoice(clone(speech, n), timeout=20)) for n in (2, 3)]
        await emulator.requests.wait(path=CREATE, stage="held")
        while (busy := await usage(cloner)).provider_queue.waiting < 1:
            await asyncio.sleep(0.02)
        emulator.faults.clear()
        await asyncio.gather(*asking)

    assert (0, 30) == (idle.voice_slots.used, idle.voice_slots.limit)
    month = idle.monthly_additions
    ends = emulator.voices.month_ends
    assert (0, 95, ends, False) == (month.used, month.limit, month.reset_time.seconds, month.exhausted)
    assert idle.HasField("account_time")
    assert (0, 2, 0, 9) == tuple(
        getattr(idle.provider_queue, name)
        for name in ("running", "running_limit", "waiting", "waiting_limit")
    )
    assert pb.Quota(in_use=0, limit=5) == idle.quota
    # Work that no call waits for leaves one turn free.
    assert (1, 1) == (busy.provider_queue.running, busy.provider_queue.waiting)
    assert pb.Quota(in_use=2, limit=5) == busy.quota


async def test_own_quota(cloning, emulator: Emulator, speech: bytes) -> None:
    """A client with a bound of its own is told what it has under way, without the call that asks."""
    clients = Toml(entry("crm", "token-of-the-crm", most=3) + entry("erp", "token-of-the-erp"))
    asked, crm = pb.GetUsageRequest(), with_token("token-of-the-crm")
    async with cloning(cloner_clients=clients, cloner_max_requests=5) as cloner:
        idle = await cloner.GetUsage(asked, timeout=10, metadata=crm)
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
        asking = asyncio.ensure_future(cloner.CloneVoice(clone(speech), timeout=20, metadata=crm))
        await emulator.requests.wait(path=CREATE, stage="held")
        busy = await cloner.GetUsage(asked, timeout=10, metadata=crm)
        other = await cloner.GetUsage(asked, timeout=10, metadata=with_token("token-of-the-erp"))
        emulator.faults.clear()
        await asking

    assert [pb.Quota(in_use=0, limit=3), pb.Quota(in_use=1, limit=3)] == [idle.quota, busy.quota]
    assert pb.Quota(in_use=1, limit=5) == other.quota


async def test_account_is_asked_once_a_minute(cloning, emulator: Emulator) -> None:
    """However many ask at once, and whatever became of it."""
    async with cloning(provider_attempts=1) as cloner:
        answers = await asyncio.gather(*(usage(cloner) for _ in range(20)))
        await usage(cloner)
        assert 1 == len(emulator.requests.matching(path=SUBSCRIPTION))

    assert {True} == {answer.HasField("voice_slots") for answer in answers}


@pytest.mark.parametrize(
    "fault",
    [{"error": "service_unavailable"}, {"error": "missing_permissions"}, {"status": 200, "body": "?"}],
    ids=str,
)
async def test_account_that_is_not_told(cloning, emulator: Emulator, fault: dict[str, Any]) -> None:
    """What else is known is told, and ElevenLabs is left alone for a minute."""
    emulator.faults.set(Fault(method="GET", path=SUBSCRIPTION, **fault))
    async with cloning(provider_attempts=1) as cloner:
        answers = [await usage(cloner) for _ in range(2)]

    for answer in answers:
        assert [False] * 3 == [
            answer.HasField(name) for name in ("voice_slots", "monthly_additions", "account_time")
        ]
        assert 64 == answer.quota.limit
    assert 1 == len(emulator.requests.matching(path=SUBSCRIPTION))


async def test_account_that_hangs(cloning, emulator: Emulator) -> None:
    """Nobody waits long for ElevenLabs."""
    emulator.faults.set(Fault(method="GET", path=SUBSCRIPTION, hold="before"))
    async with cloning() as cloner:
        answer = await cloner.GetUsage(pb.GetUsageRequest(), timeout=1)
        emulator.faults.release()

    assert not answer.HasField("voice_slots")


async def test_month_that_is_used_up(cloning, emulator: Emulator, speech: bytes) -> None:
    """It is told, with when it starts again, and so is every clone until then."""
    ends = emulator.voices.month_ends
    clock = StoppedClock(ends - 1_000.0)
    emulator.voices.monthly_limit = 0
    async with cloning(now=clock, provider_attempts=1) as cloner:
        assert "VOICE_MONTHLY_LIMIT" == (await refusal(cloner.CloneVoice(clone(speech), timeout=10)))[0]
        emulator.faults.set(Fault(method="GET", path=SUBSCRIPTION, times=None, error="service_unavailable"))
        answer = await usage(cloner)
        clock.now += 1_001
        later = await usage(cloner)

    month = answer.monthly_additions
    assert (True, ends, False) == (month.exhausted, month.reset_time.seconds, month.HasField("used"))
    assert not later.HasField("monthly_additions")


@pytest.mark.parametrize("value", [None, -1, True, "7", 2**31, 1.5, [], {}], ids=repr)
def test_counts_of_no_kind(value: Any) -> None:
    """What is not a count is not known, and the others are."""
    from json import dumps

    told = {"voice_slots_used": value, "voice_limit": 3, "max_voice_add_edits": value}

    assert Subscription(
        slots_used=None, slots_limit=3, month_used=None, month_limit=None, resets_at=None
    ) == read_subscription(dumps(told).encode())


async def test_idle_provider(cloning, emulator: Emulator) -> None:
    """Nobody who does not ask has ElevenLabs asked, and limits are told without it."""
    async with cloning() as cloner:
        await cloner.GetLimits(pb.GetLimitsRequest(), timeout=5)
        await cloner.ListVoices(pb.ListVoicesRequest(caller=IVAN), timeout=5)

    assert [] == emulator.requests.matching(path=SUBSCRIPTION)
