"""A voice that is given up while its call waits for the agent is not what the call is answered."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb

from emulator import Emulator, Fault
from tests.kit.failures import failure, told
from tests.kit.provider import AGENT, CREATE, spoken
from tests.kit.requests import IVAN, call, call_of_ivan, end, request
from tests.kit.rows import rows

MARIA = pb.Caller(name="Maria", phone_number="+31612345679")
MODES = ("auto", "always", "never")
Given = Callable[[str], Awaitable[Any]]


async def asked_with_its_agent_held(cloner: Any, emulator: Emulator, speech: bytes) -> tuple[str, Any]:
    """Ivan's voice, which was made ahead of time, and a call of his whose agent is being read."""
    made = await cloner.CloneVoice(request("CloneVoice", speech, consent="form 1"), timeout=10)
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    asked = asyncio.ensure_future(cloner.PrepareCall(call_of_ivan(speech), timeout=20))
    await emulator.requests.wait(path=AGENT, stage="held")
    return made.voice.voice_id, asked


@pytest.mark.parametrize("agent_update", MODES)
async def test_deleted(cloning, emulator: Emulator, speech: bytes, agent_update: str) -> None:
    """The call gets a voice of its own, as one that comes after the deletion does."""
    async with cloning(agent_update=agent_update) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=gone), timeout=10)
        emulator.faults.release()
        answer = await asked
        (there,) = emulator.voices.custom

    assert (there.voice_id, False) == (answer.voice.voice_id, answer.voice_reused)
    assert gone != there.voice_id
    assert 2 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("agent_update", MODES)
async def test_replaced(cloning, emulator: Emulator, speech: bytes, agent_update: str) -> None:
    """The call gets the voice that came in its place; no third one is made."""
    async with cloning(agent_update=agent_update) as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=10)).voice.voice_id
        emulator.faults.release()
        answer = await asked

    assert (new, True) == (answer.voice.voice_id, answer.voice_reused)
    assert gone != new
    assert 2 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.parametrize("agent_update", MODES)
async def test_forgotten(
    cloning, emulator: Emulator, speech: bytes, database: str, agent_update: str
) -> None:
    """The call is told so, and nothing is made for it or kept of it."""
    before = spoken(emulator)
    async with cloning(agent_update=agent_update) as cloner:
        _, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(failure(asked))
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        emulator.faults.release()
        refused = told(await waiting)

    assert ("CONSENT_MISSING", True) == (refused.reason, "forgotten" in refused.message)
    assert ([], before) == (emulator.voices.custom, spoken(emulator))
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert [] == await rows(database, "SELECT id FROM calls")


async def test_consent_withdrawn(cloning, emulator: Emulator, speech: bytes) -> None:
    """The call is told so, and no voice is made without a new consent."""
    async with cloning() as cloner:
        gone, asked = await asked_with_its_agent_held(cloner, emulator, speech)
        waiting = asyncio.ensure_future(failure(asked))
        await cloner.SetConsent(pb.SetConsentRequest(voice_id=gone, withdrawn=True), timeout=10)
        emulator.faults.release()
        refused = told(await waiting)

    assert "CONSENT_MISSING" == refused.reason
    assert 1 == len(emulator.requests.matching(path=CREATE))


async def test_deleted_while_the_agent_is_put_back(
    cloning, emulator: Emulator, spans, speech: bytes, eventually
) -> None:
    """The second try at an agent gives it the voice that the call has by then."""
    before = spoken(emulator)
    async with cloning() as cloner:
        made = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=MARIA, sample=speech), timeout=10)
        gone = made.voice.voice_id
        await cloner.PrepareCall(call(speech), timeout=20)
        emulator.faults.set(Fault(method="PATCH", path=AGENT, hold="before"))
        await end(cloner)
        await eventually(lambda: emulator.faults.held == 1)
        asked = asyncio.ensure_future(cloner.PrepareCall(call(speech, 2, caller=MARIA), timeout=20))
        await spans.wait("registry agents.state_for")
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=gone), timeout=10)
        emulator.faults.release()
        answer = await asked
        given = spoken(emulator)
        await end(cloner, 2)
        await eventually(lambda: before == spoken(emulator))

    assert answer.agent_updated
    assert answer.voice.voice_id not in ("", gone)
    assert (answer.voice.voice_id, answer.first_message) == given


async def opened_with_its_agent_held(cloner: Any, emulator: Emulator, speech: bytes) -> tuple[str, Any]:
    """Ivan's voice, which was made ahead of time, and a call of his that is opened while its agent is read."""
    made = await cloner.CloneVoice(request("CloneVoice", speech, consent="form 1"), timeout=10)
    emulator.faults.set(Fault(method="GET", path=AGENT, hold="before"))
    opening = request("OpenCall", phone_number=IVAN.phone_number)
    asked = asyncio.ensure_future(cloner.OpenCall(opening, timeout=20))
    await emulator.requests.wait(path=AGENT, stage="held")
    return made.voice.voice_id, asked


async def test_deleted_while_a_call_is_opened(cloning, emulator: Emulator, speech: bytes) -> None:
    """The call has no voice, as one that is opened after the deletion; who calls is known by the consent."""
    async with cloning() as cloner:
        gone, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        await cloner.DeleteVoice(pb.DeleteVoiceRequest(voice_id=gone), timeout=10)
        emulator.faults.release()
        opened = await asked

    assert (False, "", pb.CALLER_MATCH_ONE) == (opened.HasField("voice"), opened.name, opened.caller_match)


async def test_replaced_while_a_call_is_opened(cloning, emulator: Emulator, speech: bytes) -> None:
    """The call has the voice that came in its place."""
    async with cloning() as cloner:
        gone, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        replacing = request("ReplaceVoice", speech, consent="form 1")
        new = (await cloner.ReplaceVoice(replacing, timeout=10)).voice.voice_id
        emulator.faults.release()
        opened = await asked

    assert (new, "Ivan", pb.CALLER_MATCH_ONE) == (opened.voice.voice_id, opened.name, opened.caller_match)
    assert gone != new


async def test_forgotten_while_a_call_is_opened(cloning, emulator: Emulator, speech: bytes) -> None:
    """Nobody is greeted by the name of somebody who was forgotten."""
    async with cloning() as cloner:
        _, asked = await opened_with_its_agent_held(cloner, emulator, speech)
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=IVAN), timeout=10)
        emulator.faults.release()
        opened = await asked

    assert (False, "", "") == (opened.HasField("voice"), opened.name, opened.first_message)
    assert pb.CALLER_MATCH_NONE == opened.caller_match
