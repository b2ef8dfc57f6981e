"""What the cloner remembers: voices, calls and agents, in SQLite or Postgres.

The only place that speaks SQL. A transaction is a plain function in one of the modules imported here; a
Store carries it out and answers once it is committed, so a process may be killed between any two of them.
Times are Unix seconds, in UTC, and come in as arguments.
"""

from cloner.registry import (
    agents,
    calls,
    consents,
    departures,
    deployment,
    due,
    erasing,
    late_updates,
    processes,
    reasons,
    requests,
    views,
    voice_consents,
    voices,
)
from cloner.registry.agent import AgentIntended, AgentRow, AgentState, AgentUpdate, ClaimedAgent, Obstacle
from cloner.registry.consents import CallerForgotten, Consent, ConsentWithdrawn
from cloner.registry.opening import opened
from cloner.registry.ownership import is_ours, was_given_up
from cloner.registry.requests import NamedRequest, RequestDiffers, RequestForgotten
from cloner.registry.rows import CallRow, NewCall, NewVoiceRow, Noted, VoiceRow
from cloner.registry.store import Store
from cloner.registry.transaction import (
    RegistryBusy,
    RegistryNotOpened,
    RegistryOfOtherRelease,
    RegistryUnavailable,
    TextNotStorable,
    Transaction,
)
from cloner.registry.views import CallView, VoiceView

__all__ = [
    "AgentIntended",
    "AgentRow",
    "AgentState",
    "AgentUpdate",
    "CallRow",
    "CallView",
    "CallerForgotten",
    "ClaimedAgent",
    "Consent",
    "ConsentWithdrawn",
    "NamedRequest",
    "NewCall",
    "NewVoiceRow",
    "Noted",
    "Obstacle",
    "RegistryBusy",
    "RegistryNotOpened",
    "RegistryOfOtherRelease",
    "RegistryUnavailable",
    "RequestDiffers",
    "RequestForgotten",
    "Store",
    "TextNotStorable",
    "Transaction",
    "VoiceRow",
    "VoiceView",
    "agents",
    "calls",
    "consents",
    "departures",
    "deployment",
    "due",
    "erasing",
    "is_ours",
    "late_updates",
    "opened",
    "processes",
    "reasons",
    "requests",
    "views",
    "voice_consents",
    "voices",
    "was_given_up",
]
