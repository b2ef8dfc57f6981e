"""The provider misbehaves as told, from outside, and says what it was asked."""

import asyncio
import hashlib
import logging
from typing import Any

import httpx
import msgspec
import pytest

from emulator import Emulator, Fault, SearchLag, Settings
from emulator.errors import ERRORS

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
CREATE = "/v1/voices/add"
AGENT = "/v1/convai/agents/{agent_id}"


def on_create(**action: Any) -> Fault:
    """Give a fault of the call that makes a voice."""
    return Fault(method="POST", path=CREATE, **action)


def on_listing(**action: Any) -> Fault:
    """Give a fault of the older listing."""
    return Fault(method="GET", path="/v1/voices", **action)


async def create(http: httpx.AsyncClient, name: str = "Ana") -> httpx.Response:
    """Make a voice."""
    return await http.post(CREATE, data={"name": name}, files={"files": ("sample.wav", WAV, "audio/wav")})


async def test_set_from_outside(http: httpx.AsyncClient) -> None:
    """Hits the first request that fits, once, and lists what is left."""
    fault = {"method": "PATCH", "path": AGENT, "error": "concurrent_modification", "times": 2}
    await http.post("/emulator/faults", json=[fault])

    hit = await http.patch("/v1/convai/agents/agent_demo", json={})
    missed = await http.get("/v1/convai/agents/agent_demo")
    left = (await http.get("/emulator/faults")).json()["faults"]

    assert (409, 200, [1]) == (hit.status_code, missed.status_code, [fault["times"] for fault in left])


async def test_clear_from_outside(http: httpx.AsyncClient) -> None:
    """Behaves again once the faults are cleared."""
    await http.post(
        "/emulator/faults", json=[{"method": "GET", "path": "/v1/voices", "status": 500, "times": None}]
    )
    before = [(await http.get("/v1/voices")).status_code for _ in range(3)]

    await http.delete("/emulator/faults")

    assert ([500, 500, 500], 200) == (before, (await http.get("/v1/voices")).status_code)


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "GET", "path": "/v1/unheard-of", "status": 500},
        {"method": "PUT", "path": CREATE, "status": 500},
        {"method": "POST", "path": CREATE, "status": 500, "error": "html"},
        {"method": "POST", "path": CREATE, "error": "unheard_of"},
        {"method": "POST", "path": CREATE, "body": {}},
        {"method": "POST", "path": CREATE, "headers": {"retry-after": "1"}},
        {"method": "POST", "path": CREATE, "status": 500, "headers": {"a": "b\r\nc: d"}},
        {"method": "POST", "path": CREATE, "status": 204, "body": "x"},
        {"method": "GET", "path": "/v1/voices", "requires_verification": True},
        {"method": "GET", "path": "/v1/voices", "library_voice_match": True},
        {"method": "GET", "path": "/v1/voices", "delay": 1},
    ],
    ids=str,
)
async def test_impossible_fault(http: httpx.AsyncClient, emulator: Emulator, fault: dict[str, Any]) -> None:
    """Refuses a fault that could never do what it says, and keeps none of its list."""
    fine = {"method": "GET", "path": "/v1/voices", "status": 500}

    reply = await http.post("/emulator/faults", json=[fine, fault])

    assert (400, []) == (reply.status_code, list(emulator.faults))


@pytest.mark.parametrize("name", ERRORS)
async def test_error(http: httpx.AsyncClient, emulator: Emulator, name: str) -> None:
    """Answers any known error as it looks on the wire, and does no work."""
    emulator.faults.set(on_create(error=name, headers={"Retry-After": "7"}))

    reply = await create(http)

    known = ERRORS[name]
    assert (known.status, known.content_type, "7", []) == (
        reply.status_code,
        reply.headers["content-type"],
        reply.headers["retry-after"],
        emulator.voices.custom,
    )
    if isinstance(known.body, str):
        assert known.body == reply.text
    else:
        detail = reply.json()["detail"]
        request_id = detail.pop("request_id", None) if isinstance(detail, dict) else None
        assert known.body == {"detail": detail}
        assert request_id in {None, reply.headers["x-trace-id"]}


@pytest.mark.parametrize(
    ("fault", "content"),
    [
        (on_listing(status=503), b'{"detail":"Service Unavailable"}'),
        (on_listing(status=200, body={"voices": None}), b'{"voices":null}'),
        (on_listing(status=200, body="<html>"), b"<html>"),
        (on_listing(status=204), b""),
        (on_listing(status=599, body=""), b""),
    ],
)
async def test_status(http: httpx.AsyncClient, emulator: Emulator, fault: Fault, content: bytes) -> None:
    """Answers whatever was stated."""
    emulator.faults.set(fault)

    reply = await http.get("/v1/voices")

    assert (fault.status, content) == (reply.status_code, reply.content)


@pytest.mark.parametrize(("moment", "made"), [("before", 0), ("after", 1)])
async def test_drop(
    http: httpx.AsyncClient, emulator: Emulator, caplog: pytest.LogCaptureFixture, moment: str, made: int
) -> None:
    """Closes the connection without an answer, before or after the work, and makes no noise about it."""
    emulator.faults.set(on_create(drop=moment))

    with caplog.at_level(logging.WARNING), pytest.raises(httpx.RemoteProtocolError):
        await create(http)

    assert (made, None, "finished", []) == (
        len(emulator.voices.custom),
        emulator.requests[-1].status,
        emulator.requests[-1].stage,
        caplog.records,
    )
    assert 200 == (await create(http)).status_code


async def test_truncate(
    http: httpx.AsyncClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Cuts the answer in the middle of its body, the work done."""
    emulator.faults.set(on_create(truncate=True))

    with caplog.at_level(logging.WARNING):
        async with http.stream(
            "POST", CREATE, data={"name": "Ana"}, files={"files": ("sample.wav", WAV, "audio/wav")}
        ) as reply:
            with pytest.raises(httpx.RemoteProtocolError):
                await reply.aread()

    assert (200, 1, []) == (reply.status_code, len(emulator.voices.custom), caplog.records)


@pytest.mark.parametrize(("moment", "made"), [("before", 0), ("after", 1)])
async def test_hold(http: httpx.AsyncClient, emulator: Emulator, moment: str, made: int) -> None:
    """Holds a request before or after its work until it is released."""
    await http.post("/emulator/faults", json=[{"method": "POST", "path": CREATE, "hold": moment}])
    creating = asyncio.create_task(create(http))

    held = await http.get("/emulator/requests", params={"path": CREATE, "stage": "held", "count": 1})
    made_while_held = len(emulator.voices.custom)
    state = (await http.get("/emulator/state")).json()
    released = (await http.post("/emulator/release")).json()

    assert (200, made, 1, {"released": 1}) == (held.status_code, made_while_held, state["held"], released)
    assert 200 == (await creating).status_code
    assert 1 == len(emulator.voices.custom)


async def test_clear_releases(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Releases what is held when the faults are cleared."""
    emulator.faults.set(on_create(hold="before", times=None))
    creating = asyncio.create_task(create(http))
    await emulator.requests.wait(path=CREATE, stage="held")

    await http.delete("/emulator/faults")

    assert 200 == (await creating).status_code


async def test_work_outlives_its_client(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Makes the voice although nobody waits for it any more."""
    emulator.faults.set(on_create(hold="before"))
    creating = asyncio.create_task(create(http))
    await emulator.requests.wait(path=CREATE, stage="held")

    creating.cancel()
    emulator.faults.release()
    await emulator.requests.wait(path=CREATE, stage="finished")

    assert 1 == len(emulator.voices.custom)


async def test_delay(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Keeps a client waiting longer than it is willing to."""
    emulator.faults.set(on_listing(delay_seconds=60))

    with pytest.raises(httpx.ReadTimeout):
        await http.get("/v1/voices", timeout=httpx.Timeout(30, read=0.5))

    assert [None] == [received.status for received in emulator.requests]


@pytest.mark.parametrize("told", ["requires_verification", "library_voice_match"])
async def test_requires_verification(http: httpx.AsyncClient, emulator: Emulator, told: str) -> None:
    """Makes a voice that takes a slot, and that no agent and no call may have before it is verified."""
    emulator.faults.set(on_create(**{told: True}))

    made = (await create(http)).json()
    voice = emulator.voices[made["voice_id"]]
    assert made[told]
    assert voice.voice_verification.requires_verification

    speech = {"tts": {"voice_id": voice.voice_id}}
    data = {"type": "conversation_initiation_client_data", "conversation_config_override": speech}

    async def use() -> tuple[httpx.Response, list[str]]:
        patched = await http.patch("/v1/convai/agents/agent_demo", json={"conversation_config": speech})
        called = await http.post("/emulator/calls", json={"client_data": data})
        return patched, called.json()["faults"]

    refused, faults = await use()
    voice.voice_verification.is_verified = True
    patched, no_faults = await use()

    detail = refused.json()["detail"]
    assert (400, "bad_request") == (refused.status_code, detail["code"])
    assert detail["message"].endswith(f" {voice.voice_id} requires verification before use.")
    assert [
        f"conversation_config_override.tts.voice_id names a voice that is not verified: {voice.voice_id}."
    ] == faults
    assert (200, []) == (patched.status_code, no_faults)


async def test_search_lag_in_searches(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Misses a new voice in so many searches that ought to have found it, and shows it by id meanwhile."""
    emulator.faults.set(on_create(search_lag=SearchLag(searches=2)))
    voice_id = (await create(http)).json()["voice_id"]

    direct = (await http.get(f"/v1/voices/{voice_id}")).status_code
    await http.get("/v2/voices", params={"search": "somebody else"})
    found = [
        len((await http.get("/v2/voices", params={"search": "ana", "category": "cloned"})).json()["voices"])
        for _ in range(3)
    ]

    assert (200, [0, 0, 1]) == (direct, found)


async def test_default_voices_of_any_search(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Adds premade voices to the first page and to no other, also where a category was asked for."""
    emulator.faults.set(Fault(method="GET", path="/v2/voices", times=None, default_voices=True))
    for _ in range(2):
        await create(http)
    asked = {"category": "cloned", "search": "ana", "page_size": 1}

    first = (await http.get("/v2/voices", params=asked)).json()
    second = (
        await http.get("/v2/voices", params={**asked, "next_page_token": first["next_page_token"]})
    ).json()

    assert (["premade"] * 3 + ["cloned"], ["cloned"]) == (
        [voice["category"] for voice in first["voices"]],
        [voice["category"] for voice in second["voices"]],
    )


def test_search_lag_in_seconds() -> None:
    """Misses a new voice for so many seconds."""
    now = [1_000.0]
    voices = Emulator(Settings(), clock=lambda: now[0]).voices
    voice = voices.add(name="Ana", description=None, labels={}, samples=[], lag=SearchLag(seconds=5))

    before = voice in voices.listed()
    now[0] += 5

    assert (False, True) == (before, voice in voices.listed())


async def test_requests_tell_what_was_sent(http: httpx.AsyncClient) -> None:
    """Records parts, hashes, query and headers of a form, and masks the key."""
    await http.post(
        CREATE,
        params={"q": ["1", "2"]},
        data={"name": "Ana", "labels": '{"marker": "m-1"}'},
        files={"files": ("sample.wav", WAV, "audio/wav")},
        headers={"traceparent": "00-1-2-01"},
    )

    [sent] = (await http.get("/emulator/requests", params={"path": CREATE})).json()["requests"]

    assert ("POST", CREATE, CREATE, {"q": ["1", "2"]}, 200, "finished") == (
        sent["method"],
        sent["path"],
        sent["route"],
        sent["query"],
        sent["status"],
        sent["stage"],
    )
    assert ("***", "00-1-2-01") == (sent["headers"]["xi-api-key"], sent["headers"]["traceparent"])
    assert [("name", "Ana"), ("labels", '{"marker": "m-1"}'), ("files", None)] == [
        (part["name"], part["text"]) for part in sent["form"]
    ]
    file = sent["form"][2]
    assert ("sample.wav", "audio/wav", len(WAV), hashlib.sha256(WAV).hexdigest()) == (
        file["filename"],
        file["content_type"],
        file["size"],
        file["sha256"],
    )


async def test_requests_tell_json(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Records the JSON of a change, and the template of its path."""
    change = {"conversation_config": {"agent": {"first_message": "Hi"}}}

    await http.patch("/v1/convai/agents/agent_demo", json=change)

    assert (change, AGENT) == (emulator.requests[-1].json, emulator.requests[-1].route)


async def test_requests_wait(http: httpx.AsyncClient) -> None:
    """Answers as soon as so many requests have arrived."""
    waiting = asyncio.create_task(
        http.get("/emulator/requests", params={"path": "/v1/voices/{voice_id}", "count": 2, "timeout": 10})
    )
    for voice_id in ("one", "two"):
        await http.get(f"/v1/voices/{voice_id}")
        await http.get("/v1/voices")

    reply = await waiting

    assert (200, ["/v1/voices/one", "/v1/voices/two"]) == (
        reply.status_code,
        [sent["path"] for sent in reply.json()["requests"]],
    )


async def test_requests_wait_in_vain(http: httpx.AsyncClient) -> None:
    """Answers 408 with what there is when the time is over."""
    await http.get("/v1/voices")

    reply = await http.get("/emulator/requests", params={"count": 2, "timeout": 0.01})

    assert (408, 1) == (reply.status_code, len(reply.json()["requests"]))


async def test_requests_cleared(http: httpx.AsyncClient) -> None:
    """Forgets what was asked."""
    await http.get("/v1/voices")

    await http.delete("/emulator/requests")

    assert {"requests": []} == (await http.get("/emulator/requests")).json()


async def test_state(http: httpx.AsyncClient) -> None:
    """Shows voices, agents and counters, and lets the limits be changed."""
    await create(http)
    await http.patch("/emulator/state", json={"voice_limit": 1, "monthly_limit": None, "monthly_used": 50})

    state = (await http.get("/emulator/state")).json()

    assert (["Ana"], ["agent_demo"], 1, 1, 50, None) == (
        [voice["name"] for voice in state["voices"] if voice["category"] == "cloned"],
        [agent["agent_id"] for agent in state["agents"]],
        state["voice_slots_used"],
        state["voice_limit"],
        state["monthly_used"],
        state["monthly_limit"],
    )


async def test_placed_agent_and_voice(http: httpx.AsyncClient) -> None:
    """Has whatever agent and voice was placed there."""
    await http.post("/emulator/voices", json={"voice_id": "old", "name": "Old", "created_at_unix": 7})
    await http.post(
        "/emulator/agents",
        json={"agent_id": "agent_x", "conversation_config": {"tts": {"voice_id": "old"}}},
    )

    voice = (await http.get("/v1/voices/old")).json()
    agent = (await http.get("/v1/convai/agents/agent_x")).json()

    assert ("Old", 7, "old", "eleven_flash_v2") == (
        voice["name"],
        voice["created_at_unix"],
        agent["conversation_config"]["tts"]["voice_id"],
        agent["conversation_config"]["tts"]["model_id"],
    )


async def test_control_needs_no_key(url: str) -> None:
    """Lets anybody look, so that a container can be checked."""
    async with httpx.AsyncClient(verify=False, base_url=url) as stranger:
        reply = await stranger.get("/emulator/health")

    assert (200, {"status": "ok"}) == (reply.status_code, reply.json())


async def test_state_outlives_an_outage(emulator: Emulator) -> None:
    """Comes back with everything it had, and hangs up on whoever is being served when it goes."""
    emulator.faults.set(Fault(method="GET", path="/v1/voices", hold="before"))
    emulator.agents.put("agent_x", {})
    async with httpx.AsyncClient(verify=False, headers={"xi-api-key": emulator.settings.api_key}) as client:
        async with emulator.listening() as url:
            asking = asyncio.create_task(client.get(f"{url}/v1/voices"))
            await emulator.requests.wait(stage="held")

        with pytest.raises(httpx.RemoteProtocolError):
            await asking
        async with emulator.listening() as url:
            reply = await client.get(f"{url}/v1/convai/agents/agent_x")

    assert 200 == reply.status_code


def test_fault_is_checked_in_python_too(emulator: Emulator) -> None:
    """Refuses a fault that contradicts itself, or could never happen, wherever it is made."""
    with pytest.raises(ValueError, match="status and error"):
        Fault(method="GET", path="/v1/voices", status=500, error="html")
    with pytest.raises(ValueError, match="no such request"):
        emulator.faults.set(Fault(method="GET", path="/v1/voice", status=500))


async def test_fault_may_be_used_again(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Leaves the caller's own fault as it was."""
    fault = on_listing(status=500)

    for _ in range(2):
        emulator.faults.set(fault)
        assert 500 == (await http.get("/v1/voices")).status_code


def test_fault_survives_json() -> None:
    """Reads the same fault from JSON that Python makes."""
    fault = on_create(status=503, body={"a": [1]}, times=None)

    assert fault == msgspec.json.decode(msgspec.json.encode(fault), type=Fault)
