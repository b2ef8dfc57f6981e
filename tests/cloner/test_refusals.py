"""What any call can fail for, at every call of the contract: refusals at the door, and bugs."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb

from environment import Toml
from tests.cloner.causes import TRIED
from tests.kit.clients import channel, entry, with_token
from tests.kit.failures import failed, told
from tests.kit.promises import EVERY, PROMISED, check
from tests.kit.requests import CLONING, METHODS, request
from tests.kit.wire import Wire

Method = Callable[..., Any]
SERVICE, MEBIBYTE = "/precall.v1.CloningService", 1_048_576
ALL, NOTHING, FULL = (with_token(f"token-of-{name}") for name in ("all", "nothing", "full"))
CLIENTS = (
    entry("all", "token-of-all") + entry("nothing", "token-of-nothing", may=()) + entry("full", "token-of-full", most=1)
)  # fmt: skip
STREAMS = {
    method.name
    for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods
    if method.server_streaming
}
# Neither of the first two asks for the time, and nothing else can be broken for them. Calls of one answer go to
# another server by themselves when theirs stops.
CANNOT_BE_MADE = {
    ("GetLimits", "INTERNAL"),
    ("GetCall", "INTERNAL"),
    *((name, "CLONER_UNAVAILABLE") for name in METHODS if name not in STREAMS),
}


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite


async def bodies(*of: bytes) -> AsyncIterator[bytes]:
    """Sends these, and never says that they are all."""
    for body in of:
        yield body
    await asyncio.Event().wait()


async def refused(
    wire: grpc.aio.Channel, name: str, sent: bytes | None, metadata: Any
) -> grpc.aio.AioRpcError:
    """How a call of any bytes fails that must; of none at all where they are None."""
    answer = wire.stream_unary(f"{SERVICE}/{name}")(
        bodies(*[] if sent is None else [sent]), timeout=20, metadata=metadata
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return caught.value


AT_ONCE = 3
MUCH = ("x-much", "y" * 20_000)
REFUSED = {
    "no token": ("UNAUTHENTICATED", b"", ()),
    "no right": ("PERMISSION_DENIED", b"", NOTHING),
    "no message": ("MALFORMED_BODY", b"\xff\xff\xff", ALL),
    "too much": ("BODY_TOO_LARGE", bytes(17 * MEBIBYTE), ALL),
    "too much metadata": ("BODY_TOO_LARGE", b"", (*ALL, MUCH)),
    "too slow": ("BODY_TIMEOUT", None, ALL),
}


@pytest.mark.parametrize(("expected", "sent", "metadata"), REFUSED.values(), ids=list(REFUSED))
async def test_at_the_door(cloning, asked: Any, expected: str, sent: bytes | None, metadata: Any) -> None:
    """Every call says why it is refused, in the one shape, and asks nobody."""
    # A busy machine may take its time for the large ones.
    patience = 0.4 if sent is None else 60.0
    async with (
        cloning(cloner_clients=Toml(CLIENTS), body_timeout_seconds=patience) as cloner,
        channel(cloner.port) as wire,
    ):
        if sent is None:  # each waits out its time, as many at once as are read at once
            failures = []
            for at in range(0, len(METHODS), AT_ONCE):
                together = (refused(wire, name, sent, metadata) for name in METHODS[at : at + AT_ONCE])
                failures += await asyncio.gather(*together)
        else:
            failures = [await refused(wire, name, sent, metadata) for name in METHODS]

    for failure in failures:
        check(failure, expected)
    if expected == "BODY_TOO_LARGE":
        facts = [told(failure).metadata for failure in failures]
        assert all(int(each["actual_bytes"]) > int(each["limit_bytes"]) for each in facts)
    assert [] == asked()


async def test_too_many_of_one_client(cloning, speech: bytes) -> None:
    """While a client has as much under way as it may, no call of its own is let in, and anybody else's is."""
    async with cloning(cloner_clients=Toml(CLIENTS)) as cloner, channel(cloner.port) as wire:
        cloned = await cloner.CloneVoice(request("CloneVoice", speech), timeout=20, metadata=ALL)
        watched = pb.WatchVoiceRequest(voice_id=cloned.voice.voice_id)
        first = cloner.WatchVoice(watched, timeout=60, metadata=FULL)
        await first.read()
        failures = [await refused(wire, name, b"", FULL) for name in METHODS]
        await cloner.GetLimits(pb.GetLimitsRequest(), timeout=10, metadata=ALL)
        first.cancel()

    for failure in failures:
        check(failure, "RATE_LIMITED")
        assert "1" == told(failure).metadata["limit_requests"]


NOBODY = {"name": "x" * 201, "date_of_birth": "\0", "phone_number": "anonymous"}
OF_NOBODY = {"caller.name", "caller.date_of_birth", "caller.phone_number"}
BY_CALLER = {"caller.name", "caller.date_of_birth"}
FAULTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "PrepareCall": (
        {"agent_id": "../", "consent": "\0", "client_reference": "\0", "caller": NOBODY},
        {"agent_id", "conversation_id", "consent", "client_reference"} | BY_CALLER,
    ),
    "OpenCall": (
        {"agent_id": "../", "conversation_id": "\0", "phone_number": "1" * 300},
        {"agent_id", "conversation_id", "phone_number"},
    ),
    "CloneVoice": (
        {"request_id": "a b", "consent": "\0", "client_reference": "\0", "caller": NOBODY},
        {"sample", "request_id", "consent", "client_reference"} | BY_CALLER,
    ),
    "ReplaceVoice": (
        {"request_id": "a b", "consent": "\0", "client_reference": "\0", "caller": NOBODY},
        {"sample", "request_id", "consent", "client_reference"} | OF_NOBODY,
    ),
    "CompleteCall": (
        {"conversation_id": "\0", "call_id": "\0", "agent_id": "\0", "voice_id": "\0"},
        {"conversation_id", "call_id", "agent_id", "voice_id"},
    ),
    "GetCall": ({"conversation_id": "\0", "agent_id": "../"}, {"conversation_id", "agent_id"}),
    "ListCalls": (
        {"page_size": -1, "page_token": "x", "agent_id": "../", "voice_id": "../", "caller": NOBODY},
        {"page_size", "page_token", "agent_id", "voice_id"} | OF_NOBODY,
    ),
    "ListVoices": (
        {"page_size": -1, "page_token": "x", "states": [99], "client_reference": "\0", "caller": NOBODY},
        {"page_size", "page_token", "states", "client_reference"} | OF_NOBODY,
    ),
    "GetVoice": ({"voice_id": "../", "caller": NOBODY}, {"voice_id"} | OF_NOBODY),
    "WatchVoice": ({"voice_id": "../", "caller": NOBODY}, {"voice_id"} | OF_NOBODY),
    "DeleteVoice": ({"voice_id": "../"}, {"voice_id"}),
    "ForgetCaller": ({"voice_id": "../", "caller": NOBODY}, {"voice_id"} | OF_NOBODY),
    "SetConsent": ({"voice_id": "../", "caller": NOBODY}, {"voice_id", "consent"} | OF_NOBODY),
}


async def test_every_field_at_fault(cloning, asked: Any) -> None:
    """Whatever is wrong with a request is told at once, in one BadRequest, and nobody is asked."""
    assert set(FAULTS) == {name for name in METHODS if "FIELD_INVALID" in PROMISED[name]}
    async with cloning() as cloner:
        failures = {
            name: await failed(cloner, name, getattr(pb, f"{name}Request")(**fields))
            for name, (fields, _) in FAULTS.items()
        }

    for name, failure in failures.items():
        check(failure, "FIELD_INVALID")
        assert FAULTS[name][1] == set(told(failure).fields), name
    assert [] == asked()


class Clock:
    """A bug that can be switched on."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self) -> float:
        if self.broken:
            raise ZeroDivisionError("what nobody may hear of")
        return 1_790_000_000.0


async def test_bug(cloning, speech: bytes) -> None:
    """Of a bug no caller hears more than where its trace is."""
    clock = Clock()
    methods = [name for name in METHODS if (name, "INTERNAL") not in CANNOT_BE_MADE]
    async with cloning(now=clock) as cloner:
        known = await cloner.CloneVoice(request("CloneVoice", speech), timeout=20)
        clock.broken = True
        failures = []
        for name in methods:
            asked = request(name, *([speech] if name in CLONING else []))
            if "voice_id" in asked.DESCRIPTOR.fields_by_name and asked.voice_id:
                asked.voice_id = known.voice.voice_id
            failures.append(await failed(cloner, name, asked))
        clock.broken = False

    for failure in failures:
        check(failure, "INTERNAL")
        assert "An internal error; the trace shows where." == failure.details()


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return bytes((compressed,)) + len(body).to_bytes(4) + body


def packed(size: int) -> Callable[[], bytes]:
    """Makes nothing, of that size, packed. Each process that runs tests reads the table, and few need this."""
    return lambda: message(gzip.compress(bytes(size)), compressed=True)


BELOW = {
    "compressed in an unknown way": (13, {"grpc-encoding": "br"}, message(b"?", compressed=True)),
    "compressed, and not said how": (13, {}, message(b"?", compressed=True)),
    "not what gzip makes": (13, {"grpc-encoding": "gzip"}, message(b"?", compressed=True)),
    "unpacks to too much by far": (8, {"grpc-encoding": "gzip"}, packed(33 * MEBIBYTE)),
    "too much by far": (8, {}, b"\0" + (33 * MEBIBYTE).to_bytes(4)),
    "metadata that are not base64": (13, {"x-thing-bin": "!"}, message(b"")),
    "no deadline": (13, {"grpc-timeout": "soon"}, message(b"")),
}


@pytest.mark.parametrize(("status", "metadata", "sent"), BELOW.values(), ids=list(BELOW))
async def test_below_us(
    cloning, status: int, metadata: dict[str, str], sent: bytes | Callable[[], bytes]
) -> None:
    """What gRPC refuses by itself, without asking anybody, has its status alone, and harms nobody else."""
    async with cloning() as cloner:
        wire = await Wire.open(cloner.port)
        streams = [wire.begin(f"{SERVICE}/GetLimits", **each) for each in (metadata, {})]
        first = sent if isinstance(sent, bytes) else sent()
        for stream, body in zip(streams, (first, message(b"")), strict=True):
            await wire.send(stream, body, end=True)
        failed, served = [await wire.end_of(stream) for stream in streams]
        await wire.close()

    assert b"grpc-status" + bytes((len(str(status)),)) + str(status).encode() in failed
    assert b"grpc-status-details-bin" not in failed
    assert b"grpc-status\x010" in served


async def test_packed(cloning) -> None:
    """What is packed counts as large as it is; what unpacks to a request is one."""
    async with cloning() as cloner, channel(cloner.port) as wire:
        call = wire.unary_unary(f"{SERVICE}/GetLimits")
        assert (await call(b"", timeout=10, compression=grpc.Compression.Gzip)).startswith(b"\x0a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(17 * MEBIBYTE), timeout=20, compression=grpc.Compression.Gzip)

    check(caught.value, "BODY_TOO_LARGE")
    assert "17825792" == told(caught.value).metadata["actual_bytes"]


def test_every_reason_of_every_call_is_tried() -> None:
    """Whatever a call promises to fail for, a test has it fail for."""
    promised = {(name, reason) for name in METHODS for reason in EVERY | PROMISED[name]}
    at_the_door = {(name, expected) for name in METHODS for expected, *_ in REFUSED.values()}
    others = {(name, reason) for name in METHODS for reason in ("RATE_LIMITED", "INTERNAL")} - CANNOT_BE_MADE
    stopping = {("WatchVoice", "CLONER_UNAVAILABLE")}  # test_watching.py: test_drain

    assert promised == TRIED | at_the_door | others | stopping | CANNOT_BE_MADE
