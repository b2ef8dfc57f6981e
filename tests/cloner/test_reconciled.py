"""What the registry learns from ElevenLabs by itself, now and then."""

from typing import Any

import msgspec

from emulator import Emulator
from tests.kit.failures import failure, told
from tests.kit.requests import call

SOON: dict[str, Any] = {"reconcile_seconds": 0.3, "reconcile_grace_seconds": 0.0}


async def test_create_that_was_sent_twice(cloning, emulator: Emulator, speech: bytes, eventually) -> None:
    """Of two voices with one marker, as a proxy makes that sends again, the one that is not in use is removed."""
    async with cloning(**SOON) as cloner:
        made = (await cloner.PrepareCall(call(speech), timeout=10)).voice.voice_id
        (voice,) = emulator.voices.custom
        emulator.voices.put(msgspec.structs.replace(voice, voice_id="twin000000000000000"))
        await eventually(lambda: len(emulator.voices.custom) == 1)

    assert [made] == [voice.voice_id for voice in emulator.voices.custom]


async def test_plan_that_was_raised(cloning, emulator: Emulator, speech: bytes, spans: Any) -> None:
    """Voices are made again before the month is over once the plan has room for them, and not before."""
    emulator.voices.monthly_limit = 0
    async with cloning(**SOON) as cloner:
        refused = told(await failure(cloner.PrepareCall(call(speech), timeout=10)))
        assert "VOICE_MONTHLY_LIMIT" == refused.reason
        asked = len(emulator.requests.matching(path="/v1/user/subscription"))
        await emulator.requests.wait(asked + 2, path="/v1/user/subscription", stage="finished")
        still = told(await failure(cloner.PrepareCall(call(speech), timeout=10)))
        emulator.voices.monthly_limit = 500
        await spans.wait("registry deployment.month_used_up", 2)
        await cloner.PrepareCall(call(speech), timeout=10)

    assert "VOICE_MONTHLY_LIMIT" == still.reason
