import asyncio
import contextlib
import io
import logging
import re
import selectors
import sqlite3
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import psutil
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from structlog.testing import capture_logs

from cloner.rpc.answering import answered
from emulator import Emulator, Fault
from environment import Secret
from tests.kit.clients import bearer, channel
from tests.kit.failures import failure, read, reason, refusal, told
from tests.kit.processes.cloner import API_KEY, process, ready
from tests.kit.promises import EVERY
from tests.kit.requests import call
from tests.kit.wire import Wire

CREATE = "/v1/voices/add"
SERVICE = "/precall.v1.CloningService"
TOKEN = "token-of-the-cloner-in-tests"
GRPC = Path(__file__).parents[2] / "docs" / "GRPC.md"
MEBIBYTE = 1_048_576
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, SETTINGS_TAKEN = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0"
STALLED = b"\0" + (10 * MEBIBYTE).to_bytes(4) + bytes(10 * MEBIBYTE - 1)


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


@pytest.mark.parametrize(
    "method",
    [f"{SERVICE}/PrepareCall", f"{SERVICE}/GetVoice", f"{SERVICE}/Nothing", "/grpc.health.v1.Health/Check"],
)
async def test_strangers_are_not_read(method: str) -> None:
    """Two hundred bodies of 10 MB that nobody vouches for take up nothing, and their streams end at once."""
    async with process(ELEVENLABS_API_KEY="k", CLONER_PORT="0", CLONER_TOKEN=TOKEN) as started:
        port = int((await ready(started)).rpartition(":")[2])
        memory = psutil.Process(started.pid)
        wires = [await Wire.open(port) for _ in range(4)]
        before = memory.memory_info().rss

        async def stranger(wire: Wire) -> int:
            stream = wire.begin(method)
            await wire.send(stream, STALLED)
            await wire.end_of(stream)
            return wire.sent[stream]

        sent = await asyncio.gather(*(stranger(wire) for wire in wires for _ in range(50)))

        grown = memory.memory_info().rss - before
        for wire in wires:
            await wire.close()

    assert 70_000 > max(sent)
    assert 20 * MEBIBYTE > grown


def nine_megabytes(samples: Path) -> bytes:
    """The speech over and over, as WAV."""
    with wave.open(str(samples / "speech.wav")) as source:
        parameters, frames = source.getparams(), source.readframes(source.getnframes())
    file = io.BytesIO()
    with wave.open(file, "wb") as large:
        large.setparams(parameters)
        large.writeframes(frames * (9 * MEBIBYTE // len(frames)))
    return file.getvalue()


@pytest.mark.long
async def test_memory_goes_back(emulator_url: str, samples: Path) -> None:
    """Soon after many large samples were cloned hardly any of the memory that they took is held."""
    large = nine_megabytes(samples)
    async with process(
        ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0", AUDIO_WORKERS="1"
    ) as started:
        target, memory = await ready(started), psutil.Process(started.pid)
        async with grpc.aio.insecure_channel(target) as channel:
            stub = CloningServiceStub(channel)
            await stub.PrepareCall(call(large), timeout=60)
            before = memory.memory_info().rss
            await asyncio.gather(
                *(stub.PrepareCall(call(large, number), timeout=60) for number in range(2, 14))
            )
            async with asyncio.timeout(60):
                while memory.memory_info().rss - before > 50 * MEBIBYTE:
                    await asyncio.sleep(0.2)


async def test_stalled_bodies(cloning, speech: bytes) -> None:
    """A body that does not arrive in time is cut off, and no small call has to wait for one."""
    async with cloning(body_timeout_seconds=1.5) as cloner:
        wire = await Wire.open(cloner.port)
        streams = [wire.begin(f"{SERVICE}/PrepareCall") for _ in range(64)]
        for stream in streams:
            await wire.send(stream, STALLED[:1000])

        await cloner.ListVoices(pb.ListVoicesRequest(), timeout=1)

        ends = [await wire.end_of(stream) for stream in streams]
        await wire.close()
        assert (await cloner.PrepareCall(call(speech), timeout=10)).voice.voice_id

    assert any(b"did not arrive in time" in end for end in ends)


async def test_silent_connections(cloning) -> None:
    """One too many is closed at once, and one that never says what it wants soon, so that a client gets in."""
    words = (b"", PREFACE, PREFACE + SETTINGS, b"")
    async with (
        cloning(cloner_max_connections=3, body_timeout_seconds=1.0) as cloner,
        saying(cloner.port, *words) as silent,
        asyncio.timeout(60),
    ):
        await silent[3].read()
        closed = [reader.at_eof() for reader in silent]
        for reader in silent:
            await reader.read()
        answer = await cloner.ListVoices(pb.ListVoicesRequest(), wait_for_ready=True)

    assert [False, False, False, True] == closed
    assert [] == list(answer.voices)


async def test_stops_with_nobody_there(cloning) -> None:
    """Connections that say nothing, or that nobody is at any more, do not hold up a cloner that is to stop."""
    loop = asyncio.get_running_loop()
    words = (b"", PREFACE + SETTINGS, PREFACE + SETTINGS + SETTINGS_TAKEN)
    async with AsyncExitStack() as stack:
        async with cloning(shutdown_grace_seconds=10.0) as cloner:
            await stack.enter_async_context(saying(cloner.port, *words))
            told = loop.time()
        took = loop.time() - told

    assert 5 > took


@asynccontextmanager
async def saying(port: int, *words: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections to a server, on each of which this is said and no more, and what comes on them."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in words]
    for (_, writer), said in zip(opened, words, strict=True):
        writer.write(said)
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    ("patience", "seconds", "expected"), [(0.3, 10, "BODY_TIMEOUT"), (10, 1.5, "DEADLINE_TOO_SHORT")]
)
async def test_slow_body_says_so(cloning, patience: float, seconds: float, expected: str) -> None:
    """Whoever sends too slowly is told in time, in the shape of every failure, for a reason that every call promises."""

    async def never() -> Any:
        await asyncio.Event().wait()
        yield b""

    async with cloning(body_timeout_seconds=patience) as cloner, channel(cloner.port) as wire:
        answer = wire.stream_unary(f"{SERVICE}/GetLimits")(never(), timeout=seconds)

        assert (expected, grpc.StatusCode.DEADLINE_EXCEEDED) == reason(await failure(answer))
    assert expected in EVERY


async def test_too_many_calls(cloning, emulator: Emulator, speech: bytes) -> None:
    """One call too many is refused before its body is read, and told when to come again; reads are served."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(cloner_max_requests=2) as cloner:
        held = [asyncio.ensure_future(cloner.PrepareCall(call(speech, n), timeout=20)) for n in (1, 2)]
        await emulator.requests.wait(2, path=CREATE, stage="held")

        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            refused = await failure(cloner.PrepareCall(call(speech, 3), timeout=10))
        wire = await Wire.open(cloner.port)
        stream = wire.begin(f"{SERVICE}/PrepareCall")
        await wire.send(stream, STALLED)
        await wire.end_of(stream)
        await wire.close()
        assert [] == list((await cloner.ListVoices(pb.ListVoicesRequest(), timeout=5)).voices)
        emulator.faults.clear()
        await asyncio.gather(*held)
        assert (await cloner.PrepareCall(call(speech, 3), timeout=10)).voice.voice_id

    assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == reason(refused)
    assert 1 <= told(refused).retry.seconds
    assert "2" == told(refused).metadata["limit_requests"]
    (line,) = [line for line in lines if line["event"] == "call refused"]
    assert (f"{SERVICE}/PrepareCall".lstrip("/"), "RATE_LIMITED") == (line["method"], line["reason"])
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:[0-9]+", line["peer"])
    assert 70_000 > wire.sent[stream]


async def test_far_too_many_calls(cloning, emulator: Emulator, speech: bytes) -> None:
    """However many calls come at once over one connection, each is told why it is refused."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(cloner_max_requests=1) as cloner:
        held = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=60))
        await emulator.requests.wait(1, path=CREATE, stage="held")

        async def refused(number: int) -> list[tuple[str, grpc.StatusCode]]:
            return [
                reason(await failure(cloner.PrepareCall(call(speech, number), timeout=60))) for _ in range(3)
            ]

        reasons = {each for told in await asyncio.gather(*map(refused, range(2, 500))) for each in told}
        emulator.faults.clear()
        await held

    assert {("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED)} == reasons


async def test_voices_ahead_of_time_leave_places_to_calls(cloning, emulator: Emulator, speech: bytes) -> None:
    """However many voices are cloned ahead of time, a call still gets in."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(cloner_max_requests=4, provider_concurrency=10) as cloner:
        ahead = [asyncio.ensure_future(cloner.CloneVoice(clone(speech, n), timeout=20)) for n in range(4)]
        await emulator.requests.wait(3, path=CREATE, stage="held")
        starting = asyncio.ensure_future(cloner.PrepareCall(call(speech, 9), timeout=20))
        await emulator.requests.wait(4, path=CREATE, stage="held")
        emulator.faults.clear()
        answers = await asyncio.gather(*ahead, return_exceptions=True)

        assert (await starting).voice.voice_id

    (refused,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) == reason(refused)


async def test_stalled_bodies_ahead_of_time_leave_room_to_calls(cloning, speech: bytes) -> None:
    """However many bodies that no call waits for stall, what a call needs still gets in."""
    async with cloning() as cloner:
        wire = await Wire.open(cloner.port)
        for method in ("CloneVoice", "ReplaceVoice", "GetVoice", "ListCalls"):
            stalled = [wire.begin(f"{SERVICE}/{method}") for _ in range(65)]
            await wire.end_of(stalled[-1])  # there was no place for it, so all others have come

        prepared = await cloner.PrepareCall(call(speech), timeout=10)
        known = pb.OpenCallRequest(
            agent_id="agent_demo", conversation_id="conv_2", phone_number="+31600000000"
        )
        await cloner.OpenCall(known, timeout=10)
        ended = await cloner.CompleteCall(pb.CompleteCallRequest(call_id=prepared.call_id), timeout=10)
        await wire.close()

    assert ended.found


async def test_samples_ahead_of_time_leave_room_to_calls(cloning, emulator: Emulator, samples: Path) -> None:
    """However many large samples are cloned ahead of time, with a copy for each clone, a call still gets in."""
    large = nine_megabytes(samples)
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning(provider_concurrency=30, sample_buffer_mb=160.0) as cloner:
        ahead = [asyncio.ensure_future(cloner.CloneVoice(clone(large, n), timeout=20)) for n in range(12)]
        await emulator.requests.wait(path=CREATE, stage="held")
        for _ in range(20):
            answer = await failure(cloner.PrepareCall(call(b""), timeout=10))
            assert "SAMPLE_REQUIRED" == reason(answer)[0]
            await asyncio.sleep(0.1)
        emulator.faults.clear()
        await asyncio.gather(*ahead, return_exceptions=True)


def clone(sample: bytes, number: int) -> pb.CloneVoiceRequest:
    """A request to clone a voice ahead of time."""
    caller = pb.Caller(name="Maria", phone_number=f"+3161999{number:04}")
    return pb.CloneVoiceRequest(caller=caller, sample=sample)


@pytest.mark.parametrize(
    ("method", "body", "metadata", "expected"),
    [
        ("PrepareCall", b"\xff\xff\xff", (), ("MALFORMED_BODY", "INVALID_ARGUMENT")),
        ("GetVoice", b"\x0a\xff", (), ("MALFORMED_BODY", "INVALID_ARGUMENT")),
        ("PrepareCall", bytes(17 * MEBIBYTE), (), ("BODY_TOO_LARGE", "INVALID_ARGUMENT")),
        ("ListVoices", bytes(17 * MEBIBYTE), (), ("BODY_TOO_LARGE", "INVALID_ARGUMENT")),
        ("GetVoice", b"", (("x-much", "y" * 20_000),), ("BODY_TOO_LARGE", "INVALID_ARGUMENT")),
        ("Nothing", b"", (), ("METHOD_NOT_ALLOWED", "UNIMPLEMENTED")),
        ("/no.such.Service/Nothing", b"", (), ("METHOD_NOT_ALLOWED", "UNIMPLEMENTED")),
        ("/grpc.health.v1.Health/List", b"", (), ("METHOD_NOT_ALLOWED", "UNIMPLEMENTED")),
        ("/grpc.health.v1.Health/Nothing", b"", (), ("METHOD_NOT_ALLOWED", "UNIMPLEMENTED")),
        ("/grpc.health.v1.Health/Check", b"\x0a\x01x", (), ("NOT_FOUND", "NOT_FOUND")),
        ("/grpc.health.v1.Health/Check", b"\xff", (), ("MALFORMED_BODY", "INVALID_ARGUMENT")),
        *((f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", b"\xff\xff", (),
            ("MALFORMED_BODY", "INVALID_ARGUMENT")) for version in ("v1", "v1alpha")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
async def test_every_refusal_has_one_shape(
    cloning, caplog, capsys, method: str, body: bytes, metadata: Any, expected: tuple[str, str]
) -> None:
    """Whatever layer refuses a call, the answer says why in our words, and the log does not fill."""
    path = method if method.startswith("/") else f"{SERVICE}/{method}"
    async with cloning() as cloner, channel(cloner.port) as wire:
        failed = await failure(wire.unary_unary(path)(body, timeout=10, metadata=metadata))

    found, code = reason(failed)
    assert expected == (found, code.name)
    assert not re.search(r"[a-z][A-Z]|exception|<class|Error", failed.details())
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "error" not in capsys.readouterr().out


async def test_limits_are_told(cloning, silence: Callable[..., bytes]) -> None:
    """A limit that was not kept to is told with what was found."""
    async with cloning() as cloner, channel(cloner.port) as wire:
        many = [("x-much", "y" * 20_000)]
        metadata = await failure(cloner.GetLimits(pb.GetLimitsRequest(), metadata=many, timeout=10))
        raw = wire.unary_unary(f"{SERVICE}/PrepareCall")(bytes(17 * MEBIBYTE), timeout=10)
        large = await failure(raw)
        sample = await failure(cloner.PrepareCall(call(bytes(10 * MEBIBYTE + 1)), timeout=10))
        short = await failure(cloner.PrepareCall(call(silence(2.0)), timeout=10))

    def facts(failed: grpc.aio.AioRpcError) -> dict[str, str]:
        found = told(failed).metadata
        del found["trace_id"]
        return found

    assert "The metadata of the request is larger than this server takes." == metadata.details()
    assert ("16384", True) == (
        told(metadata).metadata["limit_bytes"],
        "actual_bytes" in told(metadata).metadata,
    )
    assert {"limit_bytes": "16777216", "actual_bytes": "17825792"} == facts(large)
    assert {"limit_bytes": "10485760", "actual_bytes": "10485761"} == facts(sample)
    assert {"limit_seconds": "3", "actual_seconds": "2"} == facts(short)


async def test_every_field_at_fault(cloning, asked) -> None:
    """All that is wrong with a request is told at once."""
    request = pb.PrepareCallRequest(
        agent_id="../x", caller=pb.Caller(name="x" * 201, date_of_birth="\0", phone_number="1" * 65), consent="a\nb",
        client_reference="\0",
    )  # fmt: skip
    async with cloning() as cloner:
        failed = await failure(cloner.PrepareCall(request, timeout=10))

    assert [
        "agent_id", "conversation_id", "consent", "client_reference", "caller.name", "caller.date_of_birth",
        "caller.phone_number",
    ] == told(failed).fields  # fmt: skip
    assert [] == asked()


async def test_nothing_but_blanks(cloning) -> None:
    """Where one of several fields is required, blanks alone are none."""
    async with cloning() as cloner:
        for blank in ("", "  ", "\t"):
            ended = cloner.CompleteCall(
                pb.CompleteCallRequest(conversation_id=blank, call_id=blank, agent_id="agent_demo"),
                timeout=10,
            )
            assert ("FIELD_INVALID", ["conversation_id"]) == await refusal(ended)
            asked = cloner.GetCall(pb.GetCallRequest(call_id=blank), timeout=10)
            assert ("FIELD_INVALID", ["call_id"]) == await refusal(asked)


@pytest.mark.parametrize("method", ["CloneVoice", "ReplaceVoice"])
async def test_request_id(cloning, speech: bytes, method: str) -> None:
    """A name that a sender gives a request keeps to the form of every id."""
    requests = {"CloneVoice": pb.CloneVoiceRequest, "ReplaceVoice": pb.ReplaceVoiceRequest}
    caller = pb.Caller(phone_number="+31612345678")
    async with cloning() as cloner:
        behavior = getattr(cloner, method)
        failed = await failure(
            behavior(requests[method](caller=caller, sample=speech, request_id="a b"), timeout=10)
        )
        taken = await behavior(requests[method](caller=caller, sample=speech, request_id="a-b"), timeout=10)

    assert ["request_id"] == told(failed).fields
    assert taken.voice.voice_id


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"BEARER   {TOKEN} ", True),
        (f"Bearer{TOKEN}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN.upper()}", False),
        ("Bearer ", False),
        ("", False),
    ],
)
async def test_bearer(cloning, given: str, allowed: bool) -> None:
    """The name of the scheme is written as one likes, the token is not."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        answer = cloner.ListVoices(pb.ListVoicesRequest(), timeout=5, metadata=bearer(given))
        if allowed:
            assert [] == list((await answer).voices)
        else:
            assert ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED) == reason(await failure(answer))


@pytest.mark.parametrize("seconds", [0.03, 0.06, 0.1, 0.2])
async def test_short_deadline_is_no_fault_of_the_registry(
    cloning, emulator: Emulator, speech: bytes, seconds: float
) -> None:
    """Where time runs out, the deadline is told, or who was being waited for; never the registry."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    told = set()
    async with cloning() as cloner:
        answers = [cloner.PrepareCall(call(speech, n), timeout=seconds) for n in range(20)]
        for answer in answers:
            failed = await failure(answer)
            if read(failed) is not None:  # else gRPC itself was the first to say so
                told.add(reason(failed)[0])
        emulator.faults.clear()

    assert {"DEADLINE_TOO_SHORT", "PROVIDER_TIMEOUT", "PROVIDER_BUSY"} >= told


class Told:
    """The context of a call that has so many seconds from the start."""

    code: Any = None

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float:
        return self._seconds

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, _: str) -> None:
        pass

    def set_trailing_metadata(self, _: Any) -> None:
        pass


async def test_deadline_that_had_passed() -> None:
    """A call that had no time from the start is an answer, and no error of the process."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    context = Told(0.0)

    async with answered(cast("Any", None), cast("Any", context)):
        await asyncio.sleep(60)

    assert (grpc.StatusCode.DEADLINE_EXCEEDED, []) == (context.code, errors)


class Instantly(selectors.DefaultSelector):
    """Has no loop wait: what it would wait for its timers passes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def test_answers_leave_before_the_deadline() -> None:
    """By what docs/GRPC.md says, whatever they wait for; a machine that is busy with them takes of that."""
    passing = Instantly()
    loop = asyncio.SelectorEventLoop(passing)
    loop.time = lambda: passing.now

    async def hangs() -> None:
        async with answered(cast("Any", None), cast("Any", Told(0.9))):
            await asyncio.Event().wait()

    with contextlib.closing(loop):
        loop.run_until_complete(hangs())

    (promised,) = re.findall(r"leaves (\S+) s before it", GRPC.read_text())
    assert float(promised) == pytest.approx(0.9 - passing.now, abs=0.001)


async def test_what_failed_is_told_whatever_the_registry_does(
    cloning, emulator: Emulator, speech: bytes, database: str
) -> None:
    """A registry that is held up while a failure is written down is not made the reason of it."""
    async with cloning() as cloner:
        # On a machine that stands still for a moment the client's own clock may be first; then another asks.
        for number in range(1, 6):
            emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", error="invalid_content"))
            asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, number), timeout=4))
            await emulator.requests.wait(number, path=CREATE, stage="held")
            with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as other:
                other.execute("BEGIN IMMEDIATE")
                emulator.faults.release()
                failed = await failure(asked)
                other.rollback()
            if read(failed) is not None:
                break

    assert ("SAMPLE_REJECTED", grpc.StatusCode.FAILED_PRECONDITION) == reason(failed)


@pytest.mark.long
async def test_pings(cloning) -> None:
    """A client that pings now and then with no call under way is not cut off."""
    async with cloning() as cloner:
        wire = await Wire.open(cloner.port)
        wire.ping()
        # gRPC cuts off whoever comes too soon for the third time.
        for _ in range(3):
            await asyncio.sleep(5.1)
            wire.ping()
        stream = wire.begin(f"{SERVICE}/ListVoices")
        await wire.send(stream, bytes(5), end=True)
        end = await wire.end_of(stream)
        gone = wire.told_to_go
        await wire.close()

    assert b"grpc-status" in end
    assert not gone


async def test_open_watch_does_not_delay_the_end(emulator_url: str) -> None:
    """Whoever watches the health hears that it ends, and nobody waits for them."""
    async with process(
        ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0", DRAIN_SECONDS="0.2"
    ) as started, grpc.aio.insecure_channel(await ready(started)) as wire:  # fmt: skip
        watch = health_pb2_grpc.HealthStub(wire).Watch(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status

        started.terminate()

        assert health_pb2.HealthCheckResponse.NOT_SERVING == (await watch.read()).status
        ended = await failure(watch.read())
        await asyncio.wait_for(started.wait(), 15)

    assert ("CLONER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE) == reason(ended)
    assert 0 == started.returncode


async def test_drain(emulator_url: str) -> None:
    """Between NOT_SERVING and the end calls are still served."""
    async with process(
        ELEVENLABS_API_KEY=API_KEY, ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0", DRAIN_SECONDS="3"
    ) as started, grpc.aio.insecure_channel(address := await ready(started)) as wire:  # fmt: skip
        watch = health_pb2_grpc.HealthStub(wire).Watch(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
        started.terminate()
        assert health_pb2.HealthCheckResponse.NOT_SERVING == (await watch.read()).status

        # A newcomer, too, who has not heard of it.
        async with grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as new:
            await CloningServiceStub(new).ListVoices(pb.ListVoicesRequest(), timeout=2)

        await asyncio.wait_for(started.wait(), 15)

    assert 0 == started.returncode
