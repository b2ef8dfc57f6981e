"""What is done around every call: its time, its urgency, its failure as a status, its end in span and log."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import msgspec
import structlog
from google.protobuf.message import Message
from opentelemetry.trace import get_current_span

from cloner.provider.failures import FAIR_SECONDS, DeadlineTooShort
from cloner.provider.turns import Urgency, as_urgent_as
from cloner.refusals import Overloaded
from cloner.registry import Store
from cloner.rpc.status import answer_failure, reason_of
from telemetry.logs import about

__all__ = ["Answering", "Context", "answered"]

log = structlog.get_logger()

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

LONGEST_SECONDS = 60.0
# What is kept of the time for the way back to the caller, at most half of it.
HEADROOM_SECONDS = 0.15


class Answering(msgspec.Struct):
    """A call that is being answered: when its work must end, and what a failure is told beside why."""

    deadline: float
    """On the event loop's clock."""

    details: list[Message] = []
    """What goes out with a failure, beside why."""


@asynccontextmanager
async def answered(
    store: Store,
    context: Context,
    *,
    conversation_id: str = "",
    longest: float = LONGEST_SECONDS,
    waits: bool = False,
) -> AsyncIterator[Answering]:
    """Answers a failure as a status, in time, and tells span and log how the request ended.

    One that `waits` is not for a call that is starting: it lets those go before it at ElevenLabs.
    """
    began = time.monotonic()
    left = context.time_remaining()
    seconds = longest if left is None else max(0.0, min(left, longest))
    headroom = min(HEADROOM_SECONDS, seconds / 2)
    answering = Answering(asyncio.get_running_loop().time() + seconds - headroom)
    outcome = "cancelled"
    with (
        about(**({"conversation_id": _line(conversation_id)} if conversation_id else {})),
        as_urgent_as(Urgency(call=not waits, until=answering.deadline)),
    ):
        try:
            # What asks ElevenLabs ends at the deadline by itself; the rest waits for the registry.
            try:
                async with asyncio.timeout_at(answering.deadline + headroom / 2):
                    yield answering
            except (TimeoutError, Overloaded) as failure:
                # Who gave less than all is done in when all is well has no reason to complain of anybody.
                if seconds < min(FAIR_SECONDS, longest):
                    raise DeadlineTooShort from None
                if isinstance(failure, Overloaded):
                    raise
                raise store.missed(answering.deadline + headroom - seconds) from None
            outcome = "success"
        except Exception as failure:  # noqa: BLE001 - the boundary: whatever it is, it ends here
            outcome = reason_of(failure)
            answer_failure(context, failure, *answering.details)
        finally:
            get_current_span().set_attribute("precall.outcome", outcome)
            duration_ms = round((time.monotonic() - began) * 1000)
            log.info("request answered", outcome=outcome, duration_ms=duration_ms)


def _line(text: str) -> str:
    """What may stand in a log line before it has been checked."""
    return text[:256] if text.isprintable() else ""
