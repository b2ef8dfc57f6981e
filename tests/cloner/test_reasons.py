"""Every reason, of every call: promised by the contract, and given when its cause is there."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from precall.v1 import cloning_pb2 as pb
from precall.v1.error_reason_pb2 import ErrorReason

from cloner.rpc.status import TABLE
from emulator import Emulator, Fault
from tests.cloner.causes import MADE, OF_A_CALL
from tests.cloner.clock import StoppedClock
from tests.kit.failures import failed, told
from tests.kit.promises import EVERY, PROMISED, check
from tests.kit.requests import CLONING, IVAN, METHODS, request

PROTO = Path(__file__).parents[2] / "proto" / "precall" / "v1"
CONTRACT = (PROTO / "cloning.proto").read_text()
CREATE, AGENT = "/v1/voices/add", "/v1/convai/agents/{agent_id}"
SERVICE = pb.DESCRIPTOR.services_by_name["CloningService"]
# What only HTTP gives, or nobody as a failure.
ELSEWHERE = {
    "UNSPECIFIED", "SIGNATURE_MISSING", "SIGNATURE_MALFORMED", "SIGNATURE_MISMATCH", "SIGNATURE_EXPIRED",
    "UNSUPPORTED_MEDIA_TYPE", "VOICE_NOT_ACTIVATED",
}  # fmt: skip
# What is no call of ours.
UNKNOWN = {"METHOD_NOT_ALLOWED"}


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone; what has to hold a registry up makes one of Postgres."""
    return sqlite


def comment(name: str) -> str:
    """The comment of a call, in one line."""
    found = re.search(rf"((?:  //.*\n)+)  rpc {name}\(", CONTRACT)
    assert found
    return " ".join(line.strip().removeprefix("//").strip() for line in found[1].splitlines())


@pytest.mark.parametrize("method", METHODS)
def test_comments_promise(method: str) -> None:
    """Each comment lists the reasons, and says what a repetition does and what a deadline leaves."""
    text = comment(method)
    listed = re.search(r"Reasons: ([A-Z_, ]+)\.", text)

    assert PROMISED[method] == set(listed[1].split(", ") if listed else ())
    assert text.startswith(f"{method} ")
    assert re.search(r"may be repeated|[Rr]epeated under", text)
    assert "deadline" in text


def test_promise_of_every_call() -> None:
    """What any call can fail for is listed once, for all."""
    text = CONTRACT.partition("Any call can also fail for these:")[2].partition(". A method")[0]

    assert EVERY == set(re.findall(r"[A-Z]+(?:_[A-Z]+)*", text))


def test_every_reason_is_promised() -> None:
    """No reason is left that no call promises, and none is promised that there is not."""
    every = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 - no mapping, though it has keys
    promised = EVERY | UNKNOWN | frozenset.union(*map(frozenset, PROMISED.values()))

    assert every - ELSEWHERE == promised
    assert set(METHODS) == set(PROMISED)


def test_every_failure_is_promised() -> None:
    """Whatever the server translates ends in a reason that some call promises."""
    promised = EVERY | UNKNOWN | frozenset.union(*map(frozenset, PROMISED.values()))

    assert promised >= {ErrorReason.Name(code).removeprefix("ERROR_REASON_") for code, _ in TABLE.values()}


@pytest.mark.parametrize("expected", MADE)
async def test_making(
    cloning, emulator: Emulator, speech: bytes, silence: Callable[..., bytes], expected: str
) -> None:
    """Whatever keeps a voice from being made, by whichever call, each for a caller of its own."""
    way = MADE[expected]
    if fault := way.get("fault"):
        emulator.faults.set(Fault(method="POST", path=CREATE, times=None, **fault))
    sample = way["sample"](silence) if "sample" in way else speech
    asked = {
        method: request(method, sample, caller=pb.Caller(name="Ivan", phone_number=f"+3161234567{number}"))
        for number, method in enumerate(CLONING)
    }
    settings = {"provider_attempts": 1, **way.get("settings", {})}
    async with cloning(**settings) as cloner:
        failures = await asyncio.gather(
            *(failed(cloner, method, each, way.get("seconds", 15)) for method, each in asked.items())
        )
        emulator.faults.clear()

    for failure in failures:
        check(failure, expected)


@pytest.mark.parametrize("method", CLONING)
async def test_month_that_is_used_up(cloning, emulator: Emulator, speech: bytes, method: str) -> None:
    """Whoever is told that the month is used up is told until when, from what ElevenLabs said and from memory."""
    ends = emulator.voices.month_ends
    clock = StoppedClock(ends - 100_000.0)
    emulator.voices.monthly_limit = 0
    waits = []
    async with cloning(now=clock) as cloner:
        for _ in range(2):
            failure = await failed(cloner, method, request(method, speech))
            check(failure, "VOICE_MONTHLY_LIMIT")
            waits.append(clock.now + told(failure).retry.ToMilliseconds() / 1000)
            clock.now += 40_000

    assert [ends] * 2 == waits
    assert 1 == len(emulator.requests.matching(method="POST", path=CREATE))


@pytest.mark.parametrize(("expected", "fault"), OF_A_CALL.items())
async def test_of_a_call(cloning, emulator: Emulator, speech: bytes, expected: str, fault: Any) -> None:
    """Whatever keeps a call from being prepared beside its voice."""
    if fault is not None:
        emulator.faults.set(Fault(path=AGENT, times=None, **fault))
    sample = b"" if expected == "SAMPLE_REQUIRED" else speech
    async with cloning(provider_attempts=1) as cloner:
        if expected == "CONVERSATION_MISMATCH":
            await cloner.PrepareCall(
                request("PrepareCall", speech, caller=pb.Caller(name="Maria")), timeout=10
            )
        failure = await failed(cloner, "PrepareCall", request("PrepareCall", sample))

    check(failure, expected)


WRONG: dict[str, dict[str, Any]] = {
    "PrepareCall": {"agent_id": ""}, "OpenCall": {"agent_id": ""}, "CompleteCall": {"agent_id": "\0"},
    "GetCall": {"call_id": ""}, "ListCalls": {"page_size": -1}, "CloneVoice": {"sample": b""},
    "ReplaceVoice": {"sample": b""}, "GetVoice": {"voice_id": ""}, "WatchVoice": {"voice_id": ""},
    "DeleteVoice": {"voice_id": ""}, "ListVoices": {"page_token": "x"}, "ForgetCaller": {"voice_id": "x"},
    "SetConsent": {"consent": ""},
}  # fmt: skip


@pytest.mark.parametrize("method", [name for name in METHODS if "FIELD_INVALID" in PROMISED[name]])
async def test_wrong_field(cloning, speech: bytes, method: str) -> None:
    """What is wrong is named."""
    asked = request(method, **{"sample": speech} if "sample" in str(WRONG[method]) else {})
    for field, value in WRONG[method].items():
        asked.ClearField(field)
        if value:
            setattr(asked, field, value)
    async with cloning() as cloner:
        failure = await failed(cloner, method, asked)

    check(failure, "FIELD_INVALID")
    assert told(failure).fields


@pytest.mark.parametrize("method", [name for name in METHODS if "NOT_FOUND" in PROMISED[name]])
async def test_not_found(cloning, speech: bytes, method: str) -> None:
    """What there is not, or not any more."""
    asked = (
        request(method, speech) if method.endswith("eVoice") and "Delete" not in method else request(method)
    )
    async with cloning() as cloner:
        if method in ("CloneVoice", "ReplaceVoice"):
            asked.request_id = "one"
            await getattr(cloner, method)(asked, timeout=10)
            await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        failure = await failed(cloner, method, asked)

    check(failure, "NOT_FOUND")


@pytest.mark.parametrize("method", [name for name in METHODS if "REGISTRY_UNAVAILABLE" in PROMISED[name]])
async def test_registry_that_is_gone(cloning, sqlite: str, speech: bytes, method: str) -> None:
    """Nothing can be known or done."""
    with_sample = method in CLONING
    async with cloning() as cloner:
        Path(sqlite.removeprefix("sqlite:///")).unlink()
        failure = await failed(cloner, method, request(method, *([speech] if with_sample else [])))

    check(failure, "REGISTRY_UNAVAILABLE")


async def test_short_deadlines(cloning, request: pytest.FixtureRequest, speech: bytes) -> None:
    """Whoever gave the registry next to no time hears that it is the deadline's fault, whatever was asked."""
    databases = request.getfixturevalue("databases")
    url = databases.take()
    methods = [name for name in METHODS if "REGISTRY_UNAVAILABLE" in PROMISED[name]]
    tables = "voices, calls, agents, deployment, requests, consents, processes"
    few = asyncio.Semaphore(3)  # so that none waits for room, which has a reason of its own

    async def answer(method: str) -> grpc.aio.AioRpcError:
        async with few:
            return await failed(cloner, method, _asked(method, speech), 0.6)

    async with cloning(database_url=url) as cloner:
        with await asyncio.to_thread(psycopg.connect, url) as frozen:
            await freeze(frozen, tables)
            failures = dict(zip(methods, await asyncio.gather(*map(answer, methods)), strict=True))
            frozen.rollback()
    databases.give_back(url)

    assert 14 == len(failures)
    for failure in failures.values():
        check(failure, "DEADLINE_TOO_SHORT")


async def freeze(connection: psycopg.Connection, tables: str) -> None:
    """Nobody else reads or writes these tables until the transaction ends.

    It waits for none while it has another, so that it is in no circle with a transaction of the cloner.
    """
    async with asyncio.timeout(60):
        while True:
            try:
                connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE NOWAIT")
            except psycopg.errors.LockNotAvailable:
                connection.rollback()
                await asyncio.sleep(0.005)
            else:
                return


def _asked(method: str, speech: bytes) -> Any:
    with_sample = method in CLONING
    return request(method, *([speech] if with_sample else []))
