"""The path of one call that comes without a recording: what is known for it."""

import asyncio
from collections.abc import Callable

from callerid import spoken
from cloner.agents.agent_settings import AgentSettings
from cloner.call import Opened, agent_before
from cloner.registry import NewCall, Noted, RegistryUnavailable, Store, calls, voices
from cloner.voices import callers
from cloner.voices.callers import CallName, Identities
from cloner.voices.finding import Voices
from cloner.voices.voice import Voice
from telemetry.tracing import traceparent

__all__ = ["Openings"]

# The share of the time of a call for which ElevenLabs is asked at most; the rest is left for the answer.
ASKING_SHARE = 0.5
# How often a call is noted, where the voice that it had is gone after ElevenLabs was asked.
ROUNDS = 2


class Openings:
    """Opens calls. `now` tells the time, in Unix seconds."""

    def __init__(
        self,
        voices: Voices,
        store: Store,
        agent_settings: AgentSettings,
        *,
        identities: Identities,
        first_message: str,
        require_consent: bool,
        now: Callable[[], float],
    ) -> None:
        self._voices = voices
        self._store = store
        self._agent_settings = agent_settings
        self._identities = identities
        self._first_message = first_message
        self._require_consent = require_consent
        self._now = now

    async def open(
        self, *, agent_id: str, kind: CallName, name: str, phone_number: str, deadline: float
    ) -> Opened:
        """Finds what is known for a call without a sample. Clones nothing and changes no agent.

        ElevenLabs is asked only if the cached answer is too old, and only for a share of the time that is
        left. Raises RegistryUnavailable.
        """
        loop = asyncio.get_running_loop()
        voice: Voice | None = None
        for _ in range(ROUNDS):
            noted = await self._note(agent_id=agent_id, kind=kind, name=name, phone_number=phone_number)
            asks = self._voices.must_ask(noted.voice) or not self._agent_settings.is_recent(agent_id)
            until = loop.time() + (deadline - loop.time()) * ASKING_SHARE
            voice, refused_leaves = await asyncio.gather(
                self._voices.usable(noted.voice, deadline=until),
                self._agent_settings.refused_leaves(agent_id, deadline=until),
            )
            if noted.voice is None or noted.voice.state != "ready" or not asks:
                break
            if voice is not None and not await self._was_given_up(voice, until=(until + deadline) / 2):
                break
            voice = None
        given = noted.agent.row
        greeted = spoken(noted.voice.greeting_name) if noted.voice is not None and voice is not None else ""
        return Opened(
            call_id=noted.call.id,
            voice=voice,
            name=greeted,
            first_message=callers.greeting(self._first_message, greeted) if voice is not None else "",
            agent_before=agent_before(noted),
            refused_leaves=refused_leaves,
            persons=noted.persons,
            agent_updated=(
                voice is not None
                and given is not None
                and (given.marker, given.former_marker) == (voice.marker, None)
                and not noted.agent.restoring
            ),
        )

    async def _note(self, *, agent_id: str, kind: CallName, name: str, phone_number: str) -> Noted:
        """Stores that the call begins; what the registry knows for it."""
        call_id = self._identities.call_id(agent_id, kind, name)
        number = self._identities.number_hash(phone_number)
        return await self._store.write_at(
            agent_id,
            calls.open_call,
            NewCall(
                id=call_id,
                agent_id=agent_id,
                conversation_id=name if kind == "conversation_id" else "",
                caller=number or call_id,
                number=number,
                begun_at=self._now(),
                confirmed=kind == "conversation_id",
                traceparent=traceparent(),
            ),
            apart=self._identities.call_id(agent_id, kind, name, number=number or "none"),
            number=number if self._identities.numbers_find_voices else None,
            require_consent=self._require_consent,
        )

    async def _was_given_up(self, voice: Voice, *, until: float) -> bool:
        """Whether the voice was given up since the call was noted, as far as the registry says so in time."""
        try:
            async with asyncio.timeout_at(until):
                row = await self._store.read(voices.get, voice.marker)
        except (RegistryUnavailable, TimeoutError):
            return False
        return row is None or row.state != "ready"
