"""The vendor's own client, over a socket, must be content with the emulator."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO

import elevenlabs
import httpx
import pytest
from elevenlabs import core, errors, types

from emulator import Emulator
from emulator.voices import Voices

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
MP3 = b"ID3\x04\x00\x00\x00\x00\x00\x00"


async def clone(sdk: "elevenlabs.AsyncElevenLabs", name: str = "Ana") -> str:
    """Clone a voice and return its id."""
    created = await sdk.voices.ivc.create(name=name, files=[BytesIO(WAV)])
    return str(created.voice_id)


def leaves(tree: dict) -> Iterator[object]:
    """Give what stands at the ends of a tree."""
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


async def test_create(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Makes a usable voice of a bare BytesIO, without labels."""
    created = await sdk.voices.ivc.create(name="Ana", files=[BytesIO(WAV)])

    assert (20, True, False) == (
        len(created.voice_id),
        created.voice_id.isalnum(),
        created.requires_verification,
    )


async def test_get(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Shows a voice as it was made, with every sample."""
    created = await sdk.voices.ivc.create(
        name="Ana",
        files=[("one.wav", WAV, "audio/wav"), ("two.mp3", MP3, "audio/mpeg")],
        description="from a test",
        labels={"language": "en", "marker": "m-1"},
        remove_background_noise=True,
    )

    voice = await sdk.voices.get(created.voice_id)

    assert ("Ana", "cloned", "from a test", {"language": "en", "marker": "m-1"}, True) == (
        voice.name,
        voice.category,
        voice.description,
        voice.labels,
        voice.is_owner,
    )
    assert [
        ("one.wav", "audio/wav", len(WAV), hashlib.sha256(WAV).hexdigest(), True),
        ("two.mp3", "audio/mpeg", len(MP3), hashlib.sha256(MP3).hexdigest(), True),
    ] == [
        (s.file_name, s.mime_type, s.size_bytes, s.hash, s.remove_background_noise)
        for s in voice.samples or []
    ]
    assert voice.settings is not None
    assert 0.75 == voice.settings.similarity_boost
    assert voice.voice_verification is not None
    assert voice.voice_verification.requires_verification is False


async def test_get_missing(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Says voice_not_found, with a request id that is the trace id."""
    with pytest.raises(core.ApiError) as caught:
        await sdk.voices.get("missing")

    headers = caught.value.headers or {}
    assert (404, "voice_not_found", headers["x-trace-id"]) == (
        caught.value.status_code,
        caught.value.body["detail"]["status"],
        caught.value.body["detail"]["request_id"],
    )
    assert "us-central1" == headers["x-region"]


async def test_search_pages(sdk: "elevenlabs.AsyncElevenLabs", emulator: Emulator) -> None:
    """Pages through more voices than one page holds, each of them once."""
    names = {f"Voice {number}" for number in range(23)}
    for name in names:
        await clone(sdk, name)

    found: list[str | None] = []
    sizes = []
    token = None
    while True:
        page = await sdk.voices.search(voice_type="personal", category="cloned", next_page_token=token)
        found += [voice.name for voice in page.voices]
        sizes.append(len(page.voices))
        token = page.next_page_token
        if not page.has_more:
            break

    assert [10, 10, 3] == sizes
    assert sorted(names) == sorted(map(str, found))
    assert (23, None) == (page.total_count, token)
    assert 3 == len(emulator.requests.matching(path="/v2/voices"))


async def test_search_first_page_holds_more(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Adds premade voices on top of the first page where the filters allow them."""
    for number in range(3):
        await clone(sdk, f"Voice {number}")

    first = await sdk.voices.search(page_size=2)
    second = await sdk.voices.search(page_size=2, next_page_token=first.next_page_token)

    assert (["premade"] * 3 + ["cloned"] * 2, ["cloned"]) == (
        [voice.category for voice in first.voices],
        [voice.category for voice in second.voices],
    )


async def test_search_survives_deletion_between_pages(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Skips nothing when the voices of one page are deleted before the next is asked for."""
    for number in range(6):
        await clone(sdk, f"Voice {number}")

    first = await sdk.voices.search(page_size=2, sort="name", sort_direction="asc", category="cloned")
    for voice in first.voices:
        await sdk.voices.delete(voice.voice_id)
    second = await sdk.voices.search(
        page_size=2,
        sort="name",
        sort_direction="asc",
        category="cloned",
        next_page_token=first.next_page_token,
    )

    assert ["Voice 2", "Voice 3"] == [voice.name for voice in second.voices]


@pytest.mark.parametrize("text", ["ANA", "of the desk", "marker-77", "cLoNed"])
async def test_search_text(sdk: "elevenlabs.AsyncElevenLabs", text: str) -> None:
    """Searches name, description, labels and category, whatever the case."""
    voice = await sdk.voices.ivc.create(
        name="Ana", files=[BytesIO(WAV)], description="Of the desk", labels={"accent": "marker-77"}
    )

    page = await sdk.voices.search(search=text)

    assert [voice.voice_id] == [found.voice_id for found in page.voices]


async def test_search_by_id(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Looks up the voices of a list of ids."""
    ids = [await clone(sdk, f"Voice {number}") for number in range(3)]

    page = await sdk.voices.search(voice_ids=[ids[2], ids[0], "missing"], include_total_count=False)

    assert ({ids[0], ids[2]}, 0) == ({voice.voice_id for voice in page.voices}, page.total_count)


async def test_search_refuses_page_size(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Refuses a page of more than a hundred, in FastAPI's shape."""
    with pytest.raises(errors.UnprocessableEntityError) as caught:
        await sdk.voices.search(page_size=101)

    assert ["query", "page_size"] == caught.value.body["detail"][0]["loc"]


async def test_get_all(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Lists premade and own voices on one page."""
    voice_id = await clone(sdk)

    listed = await sdk.voices.get_all()

    assert (4, voice_id) == (len(listed.voices), listed.voices[-1].voice_id)


async def test_delete(sdk: "elevenlabs.AsyncElevenLabs", emulator: Emulator) -> None:
    """Deletes a voice, frees its slot and keeps its operation used."""
    voice_id = await clone(sdk)

    deleted = await sdk.voices.delete(voice_id)

    assert ("ok", [], 1) == (deleted.status, emulator.voices.custom, emulator.voices.monthly_used)
    with pytest.raises(core.ApiError) as caught:
        await sdk.voices.delete(voice_id)
    assert 404 == caught.value.status_code


async def test_update(sdk: "elevenlabs.AsyncElevenLabs", emulator: Emulator) -> None:
    """Edits name and labels, which is an operation of the month too."""
    voice_id = await clone(sdk)

    await sdk.voices.update(voice_id, name="Bea", labels={"age": "old"})

    voice = emulator.voices[voice_id]
    assert ("Bea", {"age": "old"}, 2) == (voice.name, voice.labels, emulator.voices.monthly_used)


async def test_settings(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Keeps the settings of a voice."""
    voice_id = await clone(sdk)

    await sdk.voices.settings.update(voice_id, request=types.VoiceSettings(stability=0.9))

    settings = await sdk.voices.settings.get(voice_id)
    assert (0.9, 0.75, 1.0) == (settings.stability, settings.similarity_boost, settings.speed)


@pytest.mark.parametrize(
    ("now", "ends"),
    [
        ("2026-12-31T23:59:59", "2027-01-01"),
        ("2027-01-01T00:00:00", "2027-02-01"),
        ("2028-02-29T12:00", "2028-03-01"),
    ],
)
def test_end_of_the_month(now: str, ends: str) -> None:
    """The plan's month ends with that of the calendar."""
    time = datetime.fromisoformat(f"{now}+00:00").timestamp()
    voices = Voices(limit=1, monthly_limit=None, clock=lambda: time)

    assert datetime.fromisoformat(f"{ends}T00:00:00+00:00").timestamp() == voices.month_ends


async def test_subscription(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Counts slots and operations of the month apart."""
    await sdk.voices.delete(await clone(sdk))
    await clone(sdk)

    plan = await sdk.user.subscription.get()

    assert (1, 30, 2, 95) == (
        plan.voice_slots_used,
        plan.voice_limit,
        plan.voice_add_edit_counter,
        plan.max_voice_add_edits,
    )
    assert plan.can_use_instant_voice_cloning is True


async def test_agent_get(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Has an agent to begin with, whose voice and greeting may be overridden, and nothing else."""
    agent = await sdk.conversational_ai.agents.get("agent_demo")

    assert agent.conversation_config.agent is not None
    assert agent.conversation_config.agent.first_message
    assert agent.platform_settings is not None
    assert agent.platform_settings.overrides is not None
    allowed = agent.platform_settings.overrides.conversation_config_override
    assert allowed is not None
    assert allowed.agent is not None
    assert allowed.tts is not None
    assert (True, False, True) == (allowed.agent.first_message, allowed.agent.language, allowed.tts.voice_id)


async def test_agent_update(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Merges a change deeply, answers the whole agent and calls it a new version on the same branch."""
    voice_id = await clone(sdk)
    before = await sdk.conversational_ai.agents.get("agent_demo")

    after = await sdk.conversational_ai.agents.update(
        "agent_demo",
        conversation_config=types.ConversationalConfig(
            agent=types.AgentConfig(first_message="Hi Ana!"),
            tts=types.TtsConversationalConfigOutput(voice_id=voice_id),
        ),
    )

    assert before.conversation_config.tts is not None
    assert before.conversation_config.agent is not None
    assert after.conversation_config.tts is not None
    assert after.conversation_config.agent is not None
    assert (
        "Hi Ana!",
        voice_id,
        before.conversation_config.tts.model_id,
        before.conversation_config.agent.prompt,
    ) == (
        after.conversation_config.agent.first_message,
        after.conversation_config.tts.voice_id,
        after.conversation_config.tts.model_id,
        after.conversation_config.agent.prompt,
    )
    assert before.branch_id == after.branch_id == after.main_branch_id
    assert before.version_id != after.version_id
    assert after == await sdk.conversational_ai.agents.get("agent_demo")


async def test_agent_update_replaces_lists(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Replaces lists whole."""
    await sdk.conversational_ai.agents.update("agent_demo", tags=["one", "two"])

    agent = await sdk.conversational_ai.agents.update("agent_demo", tags=["three"])

    assert ["three"] == agent.tags


async def test_agent_update_missing_voice(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Refuses a voice that does not exist, and changes nothing of the agent."""
    before = await sdk.conversational_ai.agents.get("agent_demo")

    with pytest.raises(core.ApiError) as caught:
        await sdk.conversational_ai.agents.update(
            "agent_demo",
            name="Renamed",
            conversation_config=types.ConversationalConfig(
                tts=types.TtsConversationalConfigOutput(voice_id="gone")
            ),
        )

    assert (400, "bad_request") == (caught.value.status_code, caught.value.body["detail"]["code"])
    assert caught.value.body["detail"]["message"].startswith("Invalid conversation config: Value error, ")
    assert before == await sdk.conversational_ai.agents.get("agent_demo")


@pytest.mark.parametrize("model", ["eleven_multilingual_v2", "eleven_turbo_v2_5"])
async def test_model_of_an_english_agent(sdk: "elevenlabs.AsyncElevenLabs", model: str) -> None:
    """Refuses an English agent any other model than turbo or flash v2, whichever of the two comes later."""
    agents = sdk.conversational_ai.agents
    other = {"tts": {"model_id": model}}
    german = await agents.create(conversation_config=other | {"agent": {"language": "de"}})

    for change in (
        agents.update("agent_demo", conversation_config=other),
        agents.update(german.agent_id, conversation_config={"agent": {"language": "en"}}),
        agents.create(conversation_config=other),
    ):
        with pytest.raises(core.ApiError) as caught:
            await change
        assert (
            400,
            "Invalid conversation config: Value error, English Agents must use turbo or flash v2.",
        ) == (
            caught.value.status_code,
            caught.value.body["detail"]["message"],
        )
    await agents.update("agent_demo", conversation_config={"tts": {"model_id": "eleven_turbo_v2"}})


async def test_overrides_of_a_new_agent(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Makes an agent that neither asks a webhook nor lets anything be overridden, until it is told to."""
    made = await sdk.conversational_ai.agents.create(conversation_config={})

    agent = await sdk.conversational_ai.agents.get(made.agent_id)

    overrides = agent.platform_settings.overrides
    assert overrides.enable_conversation_initiation_client_data_from_webhook is False
    assert [] == [
        value for value in leaves(overrides.conversation_config_override.model_dump()) if value is not False
    ]


async def test_agent_missing(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Says agent_not_found."""
    with pytest.raises(core.ApiError) as caught:
        await sdk.conversational_ai.agents.update("agent_unknown", name="x")

    assert (404, {"detail": {"status": "agent_not_found", "message": "Agent not found"}}) == (
        caught.value.status_code,
        caught.value.body,
    )


async def test_agent_create_and_list(sdk: "elevenlabs.AsyncElevenLabs") -> None:
    """Makes agents and lists them page by page."""
    ids = ["agent_demo"]
    for number in range(4):
        made = await sdk.conversational_ai.agents.create(
            name=f"Desk {number}",
            conversation_config=types.ConversationalConfig(),
            platform_settings=types.AgentPlatformSettingsRequestModel(archived=False),
        )
        ids.append(made.agent_id)

    first = await sdk.conversational_ai.agents.list(page_size=3)
    second = await sdk.conversational_ai.agents.list(page_size=3, cursor=first.next_cursor)

    assert ids == [agent.agent_id for agent in first.agents + second.agents]
    assert (True, False, None) == (first.has_more, second.has_more, second.next_cursor)


async def test_wrong_key(url: str) -> None:
    """Refuses a key that is not the one."""
    async with httpx.AsyncClient(verify=False) as client:
        stranger = elevenlabs.AsyncElevenLabs(base_url=url, api_key="another", httpx_client=client)

        with pytest.raises(core.ApiError) as caught:
            await stranger.voices.get_all()

    assert (401, {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}}) == (
        caught.value.status_code,
        caught.value.body,
    )
