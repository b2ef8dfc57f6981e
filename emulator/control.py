"""The emulator's own routes, for tests and demos to steer it and look inside. No key; not for the internet.

    GET    /emulator/health    200 once it serves.
    POST   /emulator/faults    A JSON list of faults (see `emulator.faults`), in place of what was to come.
                               A fault for a request that the API does not have is refused.
    GET    /emulator/faults    The faults still to come, with the times left.
    DELETE /emulator/faults    No more faults; what is held is released.
    POST   /emulator/release   Let everything go on that a fault holds: `{"released": <how many>}`.
    GET    /emulator/requests  What the API was asked, oldest first: `{"requests": [...]}`, as described in
                               `emulator.journal`. `method`, `path` (exact or a template) and `stage`
                               (arrived, held, finished) narrow it down. With `count`, it answers as soon as
                               there are so many, or 408 after `timeout` seconds (5) with what there is.
    DELETE /emulator/requests  Forget them.
    GET    /emulator/state     Voices (premade included), agents, counters, and how many requests are held.
    PATCH  /emulator/state     Set `voice_limit`, `monthly_limit` (or null), `monthly_used` or `permissions`:
                               which the API key then has and no others: see `emulator.permissions`.
    POST   /emulator/voices    Place a voice past all limits: `voice_id`, `name`, and any other field of one.
    POST   /emulator/agents    Place an agent: `agent_id`, and any other part of one over the demo agent's.

The routes for calls are in `emulator.call_control`.

A request that cannot be understood is answered 400 with a `detail` that says why. Times are Unix seconds.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException

from emulator.agents import Agents
from emulator.faults import Fault, Faults
from emulator.journal import Received, Requests, Stage
from emulator.permissions import Permissions
from emulator.voices import Voice, Voices

T = TypeVar("T")

Json = dict[str, Any]
HTTPRequest = Request[Any, Any, Any]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Wanted(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The query of `GET /emulator/requests`."""

    method: str | None = None
    path: str | None = None
    stage: Stage = "arrived"
    count: Count = 0
    timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 5


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `PATCH /emulator/state`."""

    voice_limit: Count | msgspec.UnsetType = msgspec.UNSET
    monthly_limit: Count | msgspec.UnsetType | None = msgspec.UNSET
    monthly_used: Count | msgspec.UnsetType = msgspec.UNSET
    permissions: list[str] | msgspec.UnsetType = msgspec.UNSET


class PlacedAgent(msgspec.Struct, kw_only=True):
    """The checked parts of the body of `POST /emulator/agents`."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1)]


def control_router() -> Router:
    """All of the routes above."""
    return Router(
        "/emulator",
        route_handlers=[
            get_health,
            get_faults,
            set_faults,
            clear_faults,
            release,
            get_requests,
            clear_requests,
            get_state,
            set_limits,
            place_voice,
            place_agent,
        ],
    )


@get("/health")
async def get_health() -> Json:
    """Say that it serves."""
    return {"status": "ok"}


@get("/faults")
async def get_faults(faults: NamedDependency[Faults]) -> Json:
    """The faults still to come."""
    return {"faults": list(faults)}


@post("/faults", status_code=200)
async def set_faults(request: HTTPRequest, faults: NamedDependency[Faults]) -> Json:
    """Replace the faults to come."""
    given = read_body(await request.body(), list[Fault])
    try:
        faults.set(*given)
    except ValueError as error:
        raise HTTPException(str(error), status_code=400) from error
    return {"faults": given}


@delete("/faults", status_code=200)
async def clear_faults(faults: NamedDependency[Faults]) -> Json:
    """Remove all faults."""
    faults.clear()
    return {"faults": []}


@post("/release", status_code=200)
async def release(faults: NamedDependency[Faults]) -> Json:
    """Release what a fault holds."""
    return {"released": faults.release()}


@get("/requests")
async def get_requests(
    request: HTTPRequest, requests: NamedDependency[Requests]
) -> Response[dict[str, list[Received]]]:
    """The requests that match, at once or when there are enough."""
    try:
        wanted = msgspec.convert(dict(request.query_params), Wanted, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPException(str(error), status_code=400) from error
    narrowed: Json = {"method": wanted.method, "path": wanted.path, "stage": wanted.stage}
    try:
        found = await requests.wait(wanted.count, seconds=wanted.timeout, **narrowed)
    except TimeoutError:
        return Response({"requests": requests.matching(**narrowed)}, status_code=408)
    return Response({"requests": found})


@delete("/requests", status_code=200)
async def clear_requests(requests: NamedDependency[Requests]) -> Json:
    """Forget the requests."""
    requests.clear()
    return {"requests": []}


@get("/state")
async def get_state(
    voices: NamedDependency[Voices],
    agents: NamedDependency[Agents],
    permissions: NamedDependency[Permissions],
    faults: NamedDependency[Faults],
) -> Json:
    """Everything the workspace holds."""
    return {
        "voices": list(voices),
        "agents": list(agents),
        "voice_slots_used": len(voices.custom),
        "voice_limit": voices.limit,
        "monthly_used": voices.monthly_used,
        "monthly_limit": voices.monthly_limit,
        "permissions": list(permissions),
        "held": faults.held,
    }


@patch("/state")
async def set_limits(
    request: HTTPRequest, voices: NamedDependency[Voices], permissions: NamedDependency[Permissions]
) -> Json:
    """Change the limits of the plan, and what the key may do."""
    given = read_body(await request.body(), Limits)
    if given.permissions is not msgspec.UNSET:
        try:
            permissions.set(given.permissions)
        except ValueError as error:
            raise HTTPException(str(error), status_code=400) from error
    if given.voice_limit is not msgspec.UNSET:
        voices.limit = given.voice_limit
    if given.monthly_limit is not msgspec.UNSET:
        voices.monthly_limit = given.monthly_limit
    if given.monthly_used is not msgspec.UNSET:
        voices.monthly_used = given.monthly_used
    return {
        "voice_limit": voices.limit,
        "monthly_used": voices.monthly_used,
        "monthly_limit": voices.monthly_limit,
        "permissions": list(permissions),
    }


@post("/voices", status_code=200)
async def place_voice(request: HTTPRequest, voices: NamedDependency[Voices]) -> Voice:
    """Place a voice."""
    return voices.put(read_body(await request.body(), Voice))


@post("/agents", status_code=200)
async def place_agent(request: HTTPRequest, agents: NamedDependency[Agents]) -> Json:
    """Place an agent."""
    body = await request.body()
    return agents.put(read_body(body, PlacedAgent).agent_id, read_body(body, Json))


def read_body(body: bytes, kind: type[T]) -> T:
    """A body of JSON as that type, or 400 with what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's own, text that is not UTF-8, too deep
        raise HTTPException(str(error), status_code=400) from error
