"""One clone: what is wanted, and what becomes of it while it is under way."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import TypeVar

import msgspec
import structlog
from opentelemetry.trace import get_current_span

from cloner.provider.failures import DeadlineTooShort, ProviderFailure, TimedOut
from cloner.provider.turns import urgency
from cloner.registry import (
    AgentIntended,
    AgentUpdate,
    NamedRequest,
    NewVoiceRow,
    RegistryUnavailable,
    VoiceRow,
)
from cloner.voices.callers import Caller, Identity, voice_label
from cloner.voices.voice import Voice
from environment.memory import unraised
from telemetry.tracing import traceparent

__all__ = ["MOST_EVICTIONS", "Clone", "Superseded", "Wanted", "new_row"]

log = structlog.get_logger()

T = TypeVar("T")

# So many slots are freed for one clone.
MOST_EVICTIONS = 4
# Between two tries to store what became of a clone; the last one again and again.
STORE_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)


class Superseded(Exception):
    """Another intent replaced this one while its voice was being made. Waiters read the registry again."""


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


class Clone:
    """A clone under way in this process, and what to answer if time runs out while somebody waits for it."""

    task: "asyncio.Task[Voice | Exception]"
    """Ends with the voice, or with the failure that came instead. It is not raised here, so that it does not
    refer to the calls that made the voice: those hold the sample, and the clone."""

    def __init__(self, row: VoiceRow, wanted: Wanted | None) -> None:
        self.row = row
        self.wanted = wanted
        """What was asked for; None for the intent of a process that died."""

        self.begun = self.ours_at = asyncio.get_running_loop().time()
        """When it began, and when its intent was last known to be ours."""

        self.trace = get_current_span().get_span_context()
        self.failure: ProviderFailure | RegistryUnavailable | None = None
        """What went wrong last, or OwnQueueFull while it waits for its turn."""

        self.asked = wanted is None
        """Whether ElevenLabs was asked, or may have been."""

        self.agent_update = None if wanted is None else wanted.agent_update
        """The update to store together with the voice; None once the call that began the clone has left."""

        self.agent_intended: AgentIntended | None = None
        """The update and whether the registry allowed it; None if it was never tried."""

        self.evictions = 0
        """How often a slot was freed for it. Another clone may be faster to take it."""

        # A clone that was begun ahead of time becomes urgent when a call comes to need it.
        self.urgency = urgency()

    async def made(self) -> Voice:
        """Waits for the voice. Raises the failure with which the clone ended, to each who waits a copy."""
        ended = await asyncio.shield(self.task)
        if isinstance(ended, Exception):
            raise unraised(ended)
        return ended

    def late_failure(self) -> Exception:
        """What to answer if time runs out now: what went wrong last, if anything did."""
        if self.failure is not None:
            return unraised(self.failure)
        return TimedOut() if self.asked else DeadlineTooShort()

    async def stored(self, write: Callable[[], Awaitable[T]]) -> T:
        """The result of a write to the registry, tried again for as long as that cannot be written.

        An intent that stayed open would keep others waiting for as long as this process gives signs of life.
        """
        for pause in chain(STORE_PAUSES, repeat(STORE_PAUSES[-1])):
            try:
                return await write()
            except RegistryUnavailable as failure:
                self.failure = unraised(failure)
                log.warning("clone not stored yet", reason=failure.reason, next_try_seconds=pause)
            await asyncio.sleep(pause)
        raise AssertionError("the pauses have no end")

    def sent(self, *, again: bool) -> None:
        """Notes that a create is about to be sent. The failure of an earlier try is kept until the answer."""
        self.asked = True
        if not again:
            self.failure = None


def new_row(wanted: Wanted, *, deployment: str, owner: str, keep_seconds: float, now: float) -> NewVoiceRow:
    """The row of an intent, under a marker of its own.

    `owner` is the process that works at it. What is made ahead of time is kept for `keep_seconds`.
    """
    token, made = uuid.uuid4().hex, datetime.fromtimestamp(now, UTC)
    identity, caller = wanted.identity, wanted.caller
    return NewVoiceRow(
        marker=f"precall-{deployment}-{token}",
        # Until the new voice is ready, the caller has the one that it replaces.
        caller=token if wanted.replaces else identity.caller,
        replaces=identity.caller if wanted.replaces else None,
        number=identity.number,
        person=identity.person,
        greeting_name=caller.name,
        name=f"{voice_label(caller.name)}_Clone_{made:%Y%m%d_%H%M%S}_{token[-6:]}",
        owner=owner,
        traceparent=traceparent(),
        consent=caller.consent,
        client_reference=caller.reference,
        kept_until=0.0 if wanted.call_id is not None else now + keep_seconds,
    )
