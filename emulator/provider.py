"""The provider's routes, with its own names, shapes and refusals."""

from typing import Any

from litestar import Request, Router, delete, get, patch, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath

from emulator.agents import AgentQuery, Agents
from emulator.catalogue import LISTS, VoicePage, VoiceQuery, search
from emulator.errors import refused
from emulator.faults import Fault
from emulator.inputs import checked, json_object, query
from emulator.journal import Received
from emulator.routes import Routes
from emulator.settings import Settings
from emulator.voice_form import VoiceForm
from emulator.voices import Voice, Voices, VoiceSettings, new_id

Json = dict[str, Any]
HTTPRequest = Request[Any, Any, Any]

OK = {"status": "ok"}


def _authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    given = connection.headers.get("xi-api-key")
    if not given:
        raise refused("missing_api_key")
    workspace = connection.scope["state"]["workspace"]
    if given != workspace.settings.api_key:
        raise refused("invalid_api_key")
    if (permission := handler.opt.get("permission")) is not None:  # an OPTIONS needs none
        workspace.permissions.require(permission)


@post("/v1/voices/add", status_code=200, permission="create_instant_voice_clone")
async def add_voice(
    received: NamedDependency[Received],
    fault: NamedDependency[Fault],
    voices: NamedDependency[Voices],
    settings: NamedDependency[Settings],
) -> Json:
    """Make an instant clone: the form is judged at once, the voice is there after `create_latency`."""
    form = VoiceForm.read(received, needs_files=True)
    voices.require_slot()
    await settings.create_latency.spend()
    voice = voices.add(
        name=form.name,
        description=form.description,
        labels=form.labels or {},
        samples=form.samples,
        requires_verification=fault.requires_verification or fault.library_voice_match,
        lag=fault.search_lag,
    )
    made = {"voice_id": voice.voice_id, "requires_verification": fault.requires_verification}
    if fault.library_voice_match:
        made["library_voice_match"] = {"library_voice_id": new_id(), "public_owner_id": "owner_1"}
    return made


@get("/v1/voices", permission="voices_read")
async def get_voices(voices: NamedDependency[Voices]) -> dict[str, list[Voice]]:
    """All voices on one page."""
    return {"voices": voices.listed()}


@get("/v2/voices", permission="voices_read")
async def search_voices(
    received: NamedDependency[Received], fault: NamedDependency[Fault], voices: NamedDependency[Voices]
) -> VoicePage:
    """One page of the voices that match."""
    asked = query(received.query, VoiceQuery, lists=LISTS)
    return search(voices, asked, default_voices=fault.default_voices)


@get("/v1/voices/{voice_id:str}", permission="voices_read")
async def get_voice(voice_id: FromPath[str], voices: NamedDependency[Voices]) -> Voice:
    """One voice."""
    return voices.find(voice_id)


@delete("/v1/voices/{voice_id:str}", status_code=200, permission="voices_write")
async def delete_voice(voice_id: FromPath[str], voices: NamedDependency[Voices]) -> Json:
    """Delete one voice."""
    voices.remove(voice_id)
    return OK


@post("/v1/voices/{voice_id:str}/edit", status_code=200, permission="voices_write")
async def edit_voice(
    voice_id: FromPath[str], received: NamedDependency[Received], voices: NamedDependency[Voices]
) -> Json:
    """Change one voice, which is an operation of the month like adding one."""
    form = VoiceForm.read(received, needs_files=False)
    voices.edit(
        voice_id, name=form.name, description=form.description, labels=form.labels, samples=form.samples
    )
    return OK


@get("/v1/voices/{voice_id:str}/settings", permission="voices_read")
async def get_voice_settings(voice_id: FromPath[str], voices: NamedDependency[Voices]) -> VoiceSettings:
    """How one voice is rendered."""
    return voices.find(voice_id).settings


@post("/v1/voices/{voice_id:str}/settings/edit", status_code=200, permission="voices_write")
async def edit_voice_settings(
    voice_id: FromPath[str], request: HTTPRequest, voices: NamedDependency[Voices]
) -> Json:
    """Change how one voice is rendered; what is not given is back at its default."""
    given = checked(json_object(await request.body()), VoiceSettings, "body")
    voices.owned(voice_id).settings = given
    return OK


@get("/v1/user/subscription", permission="user_read")
async def get_subscription(voices: NamedDependency[Voices]) -> Json:
    """The plan: how much there is of everything, and how much of it is used."""
    return {
        "tier": "creator",
        "status": "active",
        "character_count": 0,
        "character_limit": 100_000,
        "max_character_limit_extension": None,
        "max_credit_limit_extension": 0,
        "can_extend_character_limit": False,
        "allowed_to_extend_character_limit": False,
        "next_character_count_reset_unix": voices.month_ends,
        "voice_slots_used": len(voices.custom),
        "voice_limit": voices.limit,
        "voice_add_edit_counter": voices.monthly_used,
        "max_voice_add_edits": voices.monthly_limit,
        "professional_voice_slots_used": 0,
        "professional_voice_slots_used_in_workspace": 0,
        "professional_voice_limit": 1,
        "can_extend_voice_limit": False,
        "can_use_instant_voice_cloning": True,
        "can_use_professional_voice_cloning": True,
        "currency": "usd",
        "billing_period": "monthly_period",
        "character_refresh_period": "monthly_period",
        "current_overage": {"amount": "0", "currency": "usd"},
        "next_invoice": None,
        "open_invoices": [],
        "has_open_invoices": False,
        "pending_change": None,
    }


@get("/v1/convai/agents", permission="convai_read")
async def get_agents(received: NamedDependency[Received], agents: NamedDependency[Agents]) -> Json:
    """One page of the agents."""
    return agents.page(query(received.query, AgentQuery))


@post("/v1/convai/agents/create", status_code=200, permission="convai_write")
async def create_agent(request: HTTPRequest, agents: NamedDependency[Agents]) -> Json:
    """Make an agent."""
    return {"agent_id": agents.create(json_object(await request.body()))["agent_id"]}


@get("/v1/convai/agents/{agent_id:str}", permission="convai_read")
async def get_agent(agent_id: FromPath[str], agents: NamedDependency[Agents]) -> Json:
    """One agent."""
    return agents.find(agent_id)


@patch("/v1/convai/agents/{agent_id:str}", permission="convai_write")
async def patch_agent(agent_id: FromPath[str], request: HTTPRequest, agents: NamedDependency[Agents]) -> Json:
    """Change one agent by deep merge, and answer the whole of it."""
    return agents.patch(agent_id, json_object(await request.body()))


HANDLERS = (
    add_voice,
    get_voices,
    search_voices,
    get_voice,
    delete_voice,
    edit_voice,
    get_voice_settings,
    edit_voice_settings,
    get_subscription,
    get_agents,
    create_agent,
    get_agent,
    patch_agent,
)


def provider_router() -> Router:
    """The provider's API, open to those who know the key of the workspace, as far as it may be used."""
    return Router("/", route_handlers=HANDLERS, guards=[_authenticate])


def provider_routes() -> Routes:
    """What the provider's API answers to."""
    methods: dict[str, set[str]] = {}
    for handler in HANDLERS:
        for path in handler.paths:
            methods.setdefault(path.replace(":str}", "}"), set()).update(map(str, handler.http_methods))
    return Routes(methods)
