import asyncio

from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.exchange import Api
from cloner.provider.transport import AiohttpTransport, authorities
from cloner.registry import opened, voices
from cloner.voices.marked import Marked
from emulator import Emulator
from tests.cloner.conftest import API_KEY
from tests.kit.intents import intent

NOW = 1_765_000_000.0


async def test_recorded_by_another_process(
    emulator: Emulator, emulator_url: str, database: str, speech: bytes
) -> None:
    """A voice that nobody wants is deleted, but not one that another process recorded: an agent may have it."""
    async with (
        AiohttpTransport(authorities()) as transport,
        opened(database, name="tested", now=NOW) as store,
    ):
        api = Api(transport, base_url=emulator_url, api_key=API_KEY)
        provider = ElevenLabs(api, attempts=1, concurrency=1, queue=1)
        made = {}
        for marker in ("recorded", "unwanted"):
            await store.write(voices.intend, intent(marker, caller=marker), call_id=None, now=NOW)
            created = await provider.create_voice(
                name="n", description=marker, labels={}, filename="sample.mp3", media_type="audio/mpeg",
                sample=speech, deadline=asyncio.get_running_loop().time() + 20,
            )  # fmt: skip
            made[marker] = created.voice_id
        assert await store.write(voices.record, "recorded", made["recorded"], now=NOW)
        for marker, voice_id in made.items():
            await Marked(provider, store).discard(voice_id, marker, "no_longer_wanted")

    assert (True, False) == (made["recorded"] in emulator.voices, made["unwanted"] in emulator.voices)
