"""What is to be cloned, and how it is stored before ElevenLabs is asked."""

import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from cloner.registry import AgentUpdate, NamedRequest, NewVoiceRow, Store, VoiceRow, voices
from cloner.voices.callers import Caller, Identity, voice_label
from cloner.voices.monthly_limit import monthly_limit
from telemetry.tracing import traceparent

__all__ = ["Intents", "Wanted"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be cloned: for whom, for which call or request, and whether it replaces what there is.

    `agent_voice_id` is the agent's current voice, if it was read. If ElevenLabs returns that id for the new
    voice, the answer is wrong. `agent_update` is stored together with the new voice.
    """

    identity: Identity
    caller: Caller
    call_id: str | None = None
    request: NamedRequest | None = None
    replaces: bool = False
    agent_voice_id: str | None = None
    agent_update: AgentUpdate | None = None


class Intents:
    """Stores intents of this process. `now` tells the time, in Unix seconds.

    What is made ahead of time is kept for `keep_seconds`.
    """

    def __init__(self, store: Store, *, keep_seconds: float, now: Callable[[], float]) -> None:
        self._store = store
        self._keep_seconds = keep_seconds
        self._now = now
        self.owner = secrets.token_hex(8)
        """Names this process in the registry."""

    async def store(self, wanted: Wanted) -> tuple[VoiceRow, bool]:
        """The row of the caller's voice, and whether it is a new intent, which this process works at.

        Raises MonthlyLimit, and what `voices.intend` raises.
        """
        now = self._now()
        new = self._row(wanted, now)
        intent = await self._store.write(
            voices.intend,
            new,
            call_id=wanted.call_id,
            stated=wanted.identity.stated,
            request=wanted.request,
            now=now,
        )
        if intent.row is None:
            raise monthly_limit(intent.month_resets_at, now)
        return intent.row, intent.row.marker == new.marker

    async def take_over(self, row: VoiceRow, *, stale_seconds: float) -> bool:
        """Makes the intent of a process without a sign of life for so long ours, unless it gives one now."""
        now = self._now()
        return await self._store.write(
            voices.take_over, row.marker, dead=row.owner, owner=self.owner, stale=now - stale_seconds, now=now
        )

    def _row(self, wanted: Wanted, now: float) -> NewVoiceRow:
        """The row of an intent, under a marker of its own."""
        token, made = uuid.uuid4().hex, datetime.fromtimestamp(now, UTC)
        identity, caller = wanted.identity, wanted.caller
        return NewVoiceRow(
            marker=f"precall-{self._store.name}-{token}",
            # Until the new voice is ready, the caller has the one that it replaces.
            caller=token if wanted.replaces else identity.caller,
            replaces=identity.caller if wanted.replaces else None,
            number=identity.number,
            person=identity.person,
            greeting_name=caller.name,
            name=f"{voice_label(caller.name)}_Clone_{made:%Y%m%d_%H%M%S}_{token[-6:]}",
            owner=self.owner,
            traceparent=traceparent(),
            consent=caller.consent,
            client_reference=caller.reference,
            kept_until=0.0 if wanted.call_id is not None else now + self._keep_seconds,
        )
