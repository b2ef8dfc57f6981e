"""What became of a clone is stored as soon as the registry can be written again."""

import asyncio
import sqlite3
from contextlib import closing

import grpc
import pytest
from structlog.testing import capture_logs

from emulator import Emulator, Fault
from tests.kit.failures import failure, told
from tests.kit.provider import AGENT, CREATE
from tests.kit.relay import Relay
from tests.kit.requests import call
from tests.kit.rows import values

LIST = "/v2/voices"


@pytest.mark.parametrize("fault", [{}, {"error": "service_unavailable"}], ids=["made", "failed"])
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_server_that_is_away(
    cloning, emulator: Emulator, speech: bytes, database: str, fault: dict[str, str]
) -> None:
    """A voice that was made while Postgres was away is the caller's, and one that was not may be made again."""
    address = database.split("@")[1].split("/", maxsplit=1)[0]
    async with Relay(address).listening() as relay:
        emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", **fault))
        there = database.replace(address, relay.address)
        async with cloning(database_url=there, provider_attempts=1) as cloner:
            first = asyncio.ensure_future(
                asyncio.gather(cloner.PrepareCall(call(speech), timeout=4), return_exceptions=True)
            )
            await emulator.requests.wait(path=CREATE, stage="held")
            await relay.down()
            emulator.faults.release()
            (answer,) = await first
            assert isinstance(answer, grpc.aio.AioRpcError)
            await relay.mend()
            async with asyncio.timeout(60):
                # Until what came of the first is stored, it is what the second one waits for.
                while isinstance(answer, grpc.aio.AioRpcError):
                    (answer,) = await asyncio.gather(
                        cloner.PrepareCall(call(speech), timeout=20), return_exceptions=True
                    )

    assert [answer.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    assert 1 + bool(fault) == len(emulator.requests.matching(path=CREATE))
    # Once at the start, and three times for a create without an answer: nobody took over what was under way.
    assert 1 + 3 * bool(fault) == len(emulator.requests.matching(path=LIST))


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([{"hold": "before", "error": "can_not_use_instant_voice_cloning"}], "PROVIDER_PLAN_LIMIT"),
        ([{"error": "concurrent_limit_exceeded"}, {"hold": "after"}], "REGISTRY_UNAVAILABLE"),
    ],
    ids=["refused", "made after another try"],
)
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_reason(
    cloning, emulator: Emulator, speech: bytes, database: str, faults: list[dict[str, str]], reason: str
) -> None:
    """Whoever waits is told what is at fault: ElevenLabs at once, the registry alone where the voice was made."""
    address = database.split("@")[1].split("/", maxsplit=1)[0]
    async with Relay(address).listening() as relay:
        emulator.faults.set(*(Fault(method="POST", path=CREATE, **fault) for fault in faults))
        there = database.replace(address, relay.address)
        async with cloning(database_url=there, shutdown_grace_seconds=0.5) as cloner:
            asked = asyncio.ensure_future(failure(cloner.PrepareCall(call(speech), timeout=6)))
            await emulator.requests.wait(path=CREATE, stage="held")
            await relay.down()
            emulator.faults.release()
            assert reason == told(await asked).reason
            await relay.mend()


async def test_repeat_of_a_delivery(cloning, emulator: Emulator, speech: bytes, sqlite: str) -> None:
    """What a repeat tells of the voice costs it no answer where it cannot be stored."""
    emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
    async with cloning(database_url=sqlite) as cloner:
        first = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=10))
        await emulator.requests.wait(path=AGENT, count=2, stage="arrived")
        again = call(speech, client_reference="ours", consent="form 1")
        second = asyncio.ensure_future(cloner.PrepareCall(again, timeout=10))
        # As it arrives, the reference and the consent are stored; the voice is to have the consent as well.
        while not await values(sqlite, "SELECT 1 FROM consents"):
            await asyncio.sleep(0.01)
        with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            emulator.faults.release()
            one, another = await asyncio.gather(first, second)
            other.execute("COMMIT")

    assert one.voice.voice_id == another.voice.voice_id


@pytest.mark.long
async def test_file_that_is_locked(
    cloning, emulator: Emulator, speech: bytes, sqlite: str, eventually
) -> None:
    """A voice that was made while another process held the file is answered once it lets go."""
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with cloning(database_url=sqlite, registry_patience_seconds=0.5) as cloner:
        with capture_logs() as logs:
            asked = asyncio.ensure_future(cloner.PrepareCall(call(speech), timeout=30))
            await emulator.requests.wait(path=CREATE, stage="held")
            with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                emulator.faults.release()
                await emulator.requests.wait(path=CREATE, stage="finished")
                await eventually(lambda: [line for line in logs if line["event"] == "clone not stored yet"])
                other.execute("COMMIT")
            answer = await asked

    assert [("ready", answer.voice.voice_id)] == await values(sqlite, "SELECT state, voice_id FROM voices")


@pytest.mark.long
async def test_marker_that_nobody_could_look_for(cloning, emulator: Emulator, speech: bytes) -> None:
    """A create without an answer is not sent again where no search says that it made no voice."""
    async with cloning() as cloner:
        # The list that every start asks for.
        await emulator.requests.wait(path=LIST, stage="finished")
        emulator.faults.set(
            Fault(method="POST", path=CREATE, drop="after"),
            Fault(method="GET", path=LIST, status=500, times=None),
        )
        refused = told(await failure(cloner.PrepareCall(call(speech), timeout=40)))

    assert "PROVIDER_UNAVAILABLE" == refused.reason
    assert 1 == len(emulator.requests.matching(path=CREATE))
