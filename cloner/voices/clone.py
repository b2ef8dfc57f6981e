"""One clone: what is wanted, and what becomes of it while it is under way."""

import asyncio

import msgspec
from opentelemetry.trace import get_current_span

from cloner.provider.failures import ProviderFailure
from cloner.provider.turns import urgency
from cloner.registry import NamedRequest, VoiceRow
from cloner.voices.callers import Caller, Identity
from cloner.voices.voice import Voice

__all__ = ["Clone", "Superseded", "Wanted"]


class Superseded(Exception):
    """The intent was given up for another while it was worked at. Whoever waits looks again."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be cloned: for whom, for which call or request, and whether it replaces what there is.

    `heard` is the voice that the call's agent has meanwhile, where it was seen: no new one can be that.
    """

    identity: Identity
    caller: Caller
    call_id: str | None = None
    request: NamedRequest | None = None
    replaces: bool = False
    heard: str | None = None


class Clone:
    """A clone under way in this process, and what those are told whose time runs out while they wait."""

    task: "asyncio.Task[Voice]"

    def __init__(self, row: VoiceRow, *, asked: bool = False) -> None:
        self.row = row
        self.begun = self.seen = asyncio.get_running_loop().time()
        """When it was begun, and when its intent was last known to be ours."""

        self.trace = get_current_span().get_span_context()
        self.failure: ProviderFailure | None = None
        """What went wrong last, or OwnQueueFull while it waits for its turn."""

        self.asked = asked
        """Whether ElevenLabs was asked."""

        self.made_room = False
        # A clone that was begun ahead of time hurries when a call comes to need it.
        self.urgency = urgency()

    def sent(self, *, again: bool) -> None:
        """Notes that a create is about to be sent. What went wrong before stays known until the answer."""
        self.asked = True
        if not again:
            self.failure = None
