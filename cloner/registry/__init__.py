"""What the cloner remembers: voices, calls and agents, in SQLite or Postgres.

The only place that speaks SQL. Every function is one transaction, committed before it returns, so a
process may be killed between any two of them. Times are Unix seconds, in UTC, and come in as
arguments.
"""

from cloner.registry.agents import AgentRow, Agents
from cloner.registry.calls import CallRow, Calls, NewCall, Noted
from cloner.registry.database import Registry, RegistryUnavailable, by, opened
from cloner.registry.deployment import Deployment
from cloner.registry.lookup import VoiceRow
from cloner.registry.voices import NewVoiceRow, Voices

__all__ = [
    "AgentRow",
    "Agents",
    "CallRow",
    "Calls",
    "Deployment",
    "NewCall",
    "NewVoiceRow",
    "Noted",
    "Registry",
    "RegistryUnavailable",
    "VoiceRow",
    "Voices",
    "by",
    "opened",
]
