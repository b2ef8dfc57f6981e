"""The emulator's own routes for calls. Like those in `emulator.control`: no key, 400 with a `detail`.

PUT  /emulator/webhooks    Where and how the client is called: the fields of `emulator.calls.Webhooks`, those
                           not given unset. Answered without the values of headers and without the secret.
POST /emulator/calls       Start a call: the arguments of `Calls.start`, all optional. Answered with the
                           conversation once it speaks or failed; its `faults` say why.
GET  /emulator/calls       All conversations, oldest first: `{"calls": [...]}`.
POST /emulator/calls/{conversation_id}/end
                           End a call and send its events: the other arguments of `Calls.end`. Answered
                           `{"statuses": [...], "conversation": {...}}`; 404 for an unknown conversation.
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post, put
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.params import FromPath

from emulator.agents import DEMO_AGENT, Agents
from emulator.calls import LINE, PERSON, TRANSCRIPTION, Calls, Conversation, Webhooks
from emulator.control import read_body
from emulator.conversation import Direction, Kind

Json = dict[str, Any]
HTTPRequest = Request[Any, Any, Any]
Name = Annotated[str, msgspec.Meta(min_length=1)]

HIDDEN = "***"


class Started(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /emulator/calls`."""

    agent_id: str = DEMO_AGENT
    kind: Kind = "twilio"
    direction: Direction = "inbound"
    external_number: Name = PERSON
    agent_number: Name = LINE
    tell_conversation_id: bool = True
    client_data: Json | None = None


class Ended(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /emulator/calls/{conversation_id}/end`."""

    events: tuple[Name, ...] = (TRANSCRIPTION,)
    timestamp_as_text: bool = False
    audio_mb: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.0
    echo: bool = True


def call_router() -> Router:
    """All of the routes above."""
    return Router("/emulator", route_handlers=[set_webhooks, start_call, get_calls, end_call])


@put("/webhooks")
async def set_webhooks(request: HTTPRequest, calls: NamedDependency[Calls]) -> Webhooks:
    """Replace the webhooks."""
    calls.webhooks = read_body(await request.body(), Webhooks)
    return msgspec.structs.replace(
        calls.webhooks,
        initiation_headers=dict.fromkeys(calls.webhooks.initiation_headers, HIDDEN),
        post_call_secret=None if calls.webhooks.post_call_secret is None else HIDDEN,
    )


@post("/calls", status_code=200)
async def start_call(
    request: HTTPRequest, calls: NamedDependency[Calls], agents: NamedDependency[Agents]
) -> Conversation:
    """Start a call."""
    given = read_body(await request.body() or b"{}", Started)
    if given.agent_id not in agents:
        raise HTTPException("no such agent - at `$.agent_id`", status_code=400)
    return await calls.start(**msgspec.structs.asdict(given))


@get("/calls")
async def get_calls(calls: NamedDependency[Calls]) -> dict[str, list[Conversation]]:
    """All conversations."""
    return {"calls": list(calls)}


@post("/calls/{conversation_id:str}/end", status_code=200)
async def end_call(
    conversation_id: FromPath[str], request: HTTPRequest, calls: NamedDependency[Calls]
) -> Json:
    """End a call."""
    given = read_body(await request.body() or b"{}", Ended)
    if conversation_id not in calls:
        raise HTTPException("no such conversation", status_code=404)
    statuses = await calls.end(conversation_id, **msgspec.structs.asdict(given))
    return {"statuses": statuses, "conversation": calls[conversation_id]}
