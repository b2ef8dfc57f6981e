import asyncio
import io
import wave
from collections import Counter

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator.voices import Voice
from tests.crash.conftest import Worlds
from tests.crash.replicas import CREATE, DEPLOYMENT, DEPLOYMENT_LABEL, World, delivery
from tests.kit.releases import LATEST

# Starting so many processes takes a busy machine its time.
pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

MANY = 200
VOICE = "/v1/voices/{voice_id}"


def plant(world: World, voice_id: str, *, deployment: str | None, age: float | None = 0, **more: str) -> None:
    """Places a voice at the provider, with the labels of a deployment."""
    labels = {"precall": f"precall-{deployment}-{voice_id}", DEPLOYMENT_LABEL: deployment}
    world.emulator.voices.put(
        Voice(
            voice_id=voice_id,
            name=f"{voice_id}_Clone_1",
            description=f"Made by Precall for one caller, precall-{DEPLOYMENT}-{voice_id}",
            labels=labels | more if deployment else more,
            created_at_unix=None if age is None else int(world.clock() - age),
        )
    )


def tone() -> bytes:
    """A WAV file that will do, and that costs next to nothing to look at."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes((b"\x00\x10" * 20 + b"\x00\xf0" * 20) * 1_280)
    return file.getvalue()


async def test_voices_of_others(worlds: Worlds, speech: bytes) -> None:
    """Of all the voices on an account, only orphans of this deployment are removed."""
    async with worlds("world") as world:
        plant(world, "nobodys", deployment=None, labels="of another product")
        plant(world, "anothers", deployment="other")
        plant(world, "prefix", deployment=DEPLOYMENT[:-1])
        plant(world, "longer", deployment=f"{DEPLOYMENT}-2")
        plant(world, "older", deployment=DEPLOYMENT, age=3600)
        plant(world, "ageless", deployment=DEPLOYMENT, age=None)
        there = {voice.voice_id for voice in world.emulator.voices}
        world.agent("agent_a")
        world.agent("agent_b")
        async with (
            world.replica() as replica,
            worlds("neighbour") as neighbour,
            neighbour.replica(ELEVENLABS_BASE_URL=world.url, PRECALL_DEPLOYMENT="neighbour") as other,
        ):
            ours = await replica.stub.PrepareCall(delivery("Ours", speech, agent="agent_a"), timeout=30)
            theirs = await other.stub.PrepareCall(delivery("Theirs", speech, agent="agent_b"), timeout=30)
            plant(world, "orphan", deployment=DEPLOYMENT, age=-1)
            await world.emulator.requests.wait(
                method="DELETE", path=VOICE.format(voice_id="orphan"), seconds=30
            )
            await world.reconciled(3)

        deleted = {request.path for request in world.emulator.requests.matching(method="DELETE")}
        assert {VOICE.format(voice_id="orphan")} == deleted
        assert there | {ours.voice.voice_id, theirs.voice.voice_id} == {
            voice.voice_id for voice in world.emulator.voices
        }


async def test_voice_lost_during_a_call(worlds: Worlds, speech: bytes) -> None:
    """A voice that somebody deletes by hand is closed, and the agent that has it is put back."""
    async with worlds("world") as world, world.replica() as replica:
        agent = world.agent("agent_a")
        answer = await replica.stub.PrepareCall(delivery("Ivan", speech, agent=agent), timeout=30)
        assert answer.agent_updated

        world.emulator.voices.remove(answer.voice.voice_id)
        async with asyncio.timeout(60):
            while world.changed() or await world.rows("SELECT 1 FROM voices WHERE state = 'ready'"):
                await asyncio.sleep(0.05)


async def test_several_start_at_once(worlds: Worlds, speech: bytes) -> None:
    """Several processes on one empty database all become ready, under one name and one key."""
    made_up = {"CALLER_HASH_KEY": "", "PRECALL_DEPLOYMENT": ""}
    async with worlds("world", empty=True) as world:
        if world.database.startswith("postgres"):
            made_up.pop("CALLER_HASH_KEY")
        async with world.replicas(4, **made_up) as replicas:
            agents = [world.agent(f"agent_{number}") for number in range(4)]
            answers = [
                await replica.stub.PrepareCall(delivery("Ivan", speech, agent=agent), timeout=30)
                for replica, agent in zip(replicas, agents, strict=True)
            ]
            (migrated,) = await world.rows("SELECT version_num FROM alembic_version")
            (deployment,) = await world.rows("SELECT name FROM deployment")

            assert {"version_num": LATEST} == migrated
            assert 1 == len({answer.voice.voice_id for answer in answers})
            (label,) = (
                voice.labels[DEPLOYMENT_LABEL]
                for voice in world.emulator.voices
                if DEPLOYMENT_LABEL in voice.labels
            )
            assert deployment["name"] == label


async def test_many_identical_deliveries(on_postgres: Worlds, speech: bytes) -> None:
    """However often a delivery arrives at once, at two processes, one voice is made and named."""
    async with on_postgres("world") as world, world.replicas(2, AUDIO_WORKERS="2") as (one, two):
        agent = world.agent("agent_a")
        answers = await asyncio.gather(
            *(
                replica.stub.PrepareCall(delivery("Ivan", speech, agent=agent), timeout=60)
                for replica in [one, two] * (MANY // 2)
            )
        )
        await world.quiet(10)

        assert 1 == len(world.emulator.requests.matching(path=CREATE))
        (voice_id,) = world.ours()
        assert {voice_id: MANY} == Counter(answer.voice.voice_id for answer in answers)
        assert voice_id == world.spoken(agent)[0]
        assert any(answer.agent_updated for answer in answers)


async def test_many_callers_at_one_agent(on_postgres: Worlds) -> None:
    """However many call one agent at once, each is answered their own voice."""
    speech = tone()
    async with on_postgres("world") as world, world.replicas(2, AUDIO_WORKERS="2") as (one, two):
        agent = world.agent("agent_a")
        names = [f"Caller{number}" for number in range(MANY)]
        answers = await asyncio.gather(
            *(
                (one, two)[number % 2].stub.PrepareCall(
                    delivery(name, speech, agent=agent, number=number + 1), timeout=60
                )
                for number, name in enumerate(names)
            )
        )
        await world.quiet(10)

        assert {
            answer.voice.voice_id: name for answer, name in zip(answers, names, strict=True)
        } == world.ours()
        assert MANY == len(world.ours()) == len(world.emulator.requests.matching(path=CREATE))
        updated = [answer.voice.voice_id for answer in answers if answer.agent_updated]
        assert len(updated) <= 1
        assert ([world.spoken(agent)[0]] if world.changed() else []) == updated

        for name in names:
            await one.stub.CompleteCall(pb.CompleteCallRequest(conversation_id=f"conv_{name}"))
        async with asyncio.timeout(60):
            while world.changed():
                await asyncio.sleep(0.05)
