"""Calls over HTTP: the emulator's own routes for them."""

import asyncio

import httpx
import pytest

from emulator import Emulator, Webhooks
from emulator.agents import CONVERSATION_CONFIG

TYPE = "conversation_initiation_client_data"
GOOD = {"type": TYPE, "dynamic_variables": {"name": "Ana", "visits": 3, "vip": True, "ratio": 0.5}}
SECRET = "wsec_of_the_tests"
SARAH = "EXAVITQu4vr4xnSDxMaL"


async def test_over_http(http: httpx.AsyncClient, client) -> None:
    """Does all of it over HTTP."""
    webhooks = {
        "initiation_url": f"{client.url}/initiation",
        "initiation_headers": {"Authorization": "Bearer x"},
        "post_call_url": f"{client.url}/post-call",
        "post_call_secret": SECRET,
        "timeout_seconds": 5,
    }
    put = await http.put("/emulator/webhooks", json=webhooks)
    started = await http.post("/emulator/calls", json={"kind": "sip", "direction": "outbound"})
    listed = await http.get("/emulator/calls")
    ended = await http.post(
        f"/emulator/calls/{started.json()['conversation_id']}/end",
        json={"events": ["post_call_transcription", "unheard_of"], "timestamp_as_text": True},
    )

    assert (
        webhooks | {"initiation_headers": {"Authorization": "***"}, "post_call_secret": "***"} == put.json()
    )
    assert (200, "in-progress", [], GOOD) == (
        started.status_code,
        started.json()["status"],
        started.json()["faults"],
        started.json()["client_data"],
    )
    assert {"calls": [started.json()]} == listed.json()
    assert (200, [200, 200], started.json() | {"status": "done"}) == (
        ended.status_code,
        ended.json()["statuses"],
        ended.json()["conversation"],
    )
    assert isinstance(client.event()["event_timestamp"], str)


async def test_defaults_over_http(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Unsets what is not given, and starts and ends a call without a body."""
    emulator.calls.webhooks = Webhooks(post_call_url="http://127.0.0.1:9", post_call_secret=SECRET)

    put = await http.put("/emulator/webhooks", json={})
    started = await http.post("/emulator/calls")
    ended = await http.post(f"/emulator/calls/{started.json()['conversation_id']}/end")

    assert (200, Webhooks(), [0]) == (put.status_code, emulator.calls.webhooks, ended.json()["statuses"])
    assert CONVERSATION_CONFIG["agent"]["first_message"] == started.json()["first_message"]


@pytest.mark.usefixtures("calls")
async def test_call_blocks_nothing(http: httpx.AsyncClient, client) -> None:
    """Answers other requests while a call waits for its webhook, and lists that call."""
    client.gate.clear()
    starting = asyncio.create_task(http.post("/emulator/calls"))
    await client.arrived.wait()

    voices = await http.get("/v1/voices")
    listed = await http.get("/emulator/calls")
    client.gate.set()

    assert (200, [None]) == (voices.status_code, [call["voice_id"] for call in listed.json()["calls"]])
    assert SARAH == (await starting).json()["voice_id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("PUT", "/emulator/webhooks", {"url": "x"}, "url"),
        ("PUT", "/emulator/webhooks", {"initiation_url": "ftp://x"}, "initiation_url"),
        ("PUT", "/emulator/webhooks", {"timeout_seconds": 0}, "timeout_seconds"),
        ("POST", "/emulator/calls", {"colour": "red"}, "colour"),
        ("POST", "/emulator/calls", {"kind": "fax"}, "kind"),
        ("POST", "/emulator/calls", {"agent_id": "agent_unheard_of"}, "agent_id"),
        ("POST", "/emulator/calls", {"client_data": []}, "client_data"),
        ("POST", "/emulator/calls/conv_x/end", {"events": "all"}, "events"),
        ("POST", "/emulator/calls/conv_x/end", {"audio_mb": -1}, "audio_mb"),
    ],
)
async def test_wrong_field(http: httpx.AsyncClient, method: str, path: str, body: dict, named: str) -> None:
    """Names the field that is wrong."""
    reply = await http.request(method, path, json=body)

    assert (400, True) == (reply.status_code, named in reply.json()["detail"])


async def test_unknown_over_http(http: httpx.AsyncClient) -> None:
    """Answers 404 for a conversation that there is not."""
    reply = await http.post("/emulator/calls/conv_unheard_of/end", json={})

    assert (404, "no such conversation") == (reply.status_code, reply.json()["detail"])
