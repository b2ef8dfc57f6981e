"""Wraps every call: its deadline, its urgency, its failure as a status, its outcome in span and log."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from google.protobuf.message import Message

from callerid import MAX_CONVERSATION_ID
from cloner.provider.failures import FAIR_SECONDS, DeadlineTooShort, OwnQueueFull, ProviderFailure
from cloner.provider.turns import Urgency, with_urgency
from cloner.refusals import Overloaded
from cloner.registry import Store
from cloner.rpc.contract import Context
from cloner.rpc.late import extended_if_late
from cloner.rpc.status import answer_failure, ending_of_call, reason_of
from telemetry.facts import log_context, note
from telemetry.parts import measured

__all__ = ["HEADROOM_SECONDS", "Answering", "answered"]

log = structlog.get_logger()

LONGEST_SECONDS = 60.0
# Reserved for sending the answer, at most half of the time left. A call that still waits when a third of it
# is over is cancelled, so that the answer leaves 0.15 s before the deadline; 0.075 s is too little on a busy
# machine.
HEADROOM_SECONDS = 0.225


class Answering(msgspec.Struct):
    """A call that is being answered: its deadline, and what goes out with a failure."""

    deadline: float
    """On the event loop's clock."""

    details: list[Message] = []
    """What is sent with a failure, beside its reason."""

    may_end: bool = False
    """Whether the deadline is a regular end, as for a stream that has begun."""

    log_facts: dict[str, str | int | bool] = {}
    """Further facts for log and span, under the names of `telemetry.facts`."""


@asynccontextmanager
async def answered(
    store: Store,
    context: Context,
    *,
    conversation_id: str = "",
    longest: float = LONGEST_SECONDS,
    yields: bool = False,
) -> AsyncIterator[Answering]:
    """Answers a failure as a status, in time, and notes in span and log how the request ended.

    `yields`: no telephone call waits for this, so its requests to ElevenLabs let telephone calls go first.
    """
    began = time.monotonic()
    left = context.time_remaining()
    seconds = longest if left is None else max(0.0, min(left, longest))
    headroom = min(HEADROOM_SECONDS, seconds / 2)
    answering = Answering(asyncio.get_running_loop().time() + seconds - headroom)
    outcome, reason = "abandoned", None
    with (
        measured() as parts,
        log_context(**({"conversation_id": _line(conversation_id)} if conversation_id else {})),
        with_urgency(Urgency(call=not yields, until=answering.deadline)),
    ):
        try:
            # Requests to ElevenLabs end at the deadline by themselves; this limit is for the registry.
            try:
                async with (
                    asyncio.timeout_at(answering.deadline + headroom / 3) as clock,
                    extended_if_late(clock, headroom / 6),
                ):
                    yield answering
            except (TimeoutError, Overloaded) as failure:
                late = isinstance(failure, TimeoutError)
                if not (late and answering.may_end):
                    # If a caller gave less time than any answer takes, its deadline is at fault.
                    if seconds < min(FAIR_SECONDS, longest):
                        raise DeadlineTooShort from None
                    if not late:
                        raise
                    raise store.late_failure(answering.deadline + headroom - seconds) from None
            outcome = "success"
        except Exception as failure:  # noqa: BLE001 - the boundary: whatever it is, it ends here
            outcome, reason = "error", reason_of(failure)
            answering.log_facts |= _failure_facts(failure)
            answer_failure(context, failure, *answering.details)
            # From Python 3.12 on, the frame of this context manager refers to the failure, and the failure's
            # traceback to the frame. This breaks the cycle.
            failure.__traceback__ = None
        finally:
            facts: dict[str, Any] = {
                "outcome": outcome,
                **({"reason": reason} if reason else {}),
                **answering.log_facts,
                "duration_ms": round((time.monotonic() - began) * 1000),
                **parts.milliseconds,
            }
            ending = ending_of_call.get()
            if ending is not None:
                ending.parts = parts.seconds
            note(**facts)
            log.info("request answered", **facts)


def _failure_facts(failure: Exception) -> dict[str, str]:
    """What a failure says beside its reason: that our own queue was full, or ElevenLabs' own code."""
    if isinstance(failure, OwnQueueFull) or (isinstance(failure, Overloaded) and "queue" in failure.facts):
        return {"queue": "own"}
    if isinstance(failure, ProviderFailure) and failure.code is not None:
        return {"provider_code": failure.code}
    return {}


def _line(text: str) -> str:
    """Makes a text that was not checked yet fit for a log line: short, or empty if it is not printable."""
    return text[:MAX_CONVERSATION_ID] if text.isprintable() else ""
