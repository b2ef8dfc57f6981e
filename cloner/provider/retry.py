"""The one rule by which a request to ElevenLabs is tried again: jittered, bounded, inside the deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import tenacity

from cloner.provider.failures import ProviderFailure, TimedOut
from environment.memory import unraised
from telemetry.facts import keyed
from telemetry.parts import part

__all__ = ["retrying"]

T = TypeVar("T")


async def retrying(
    attempt: Callable[[int], Awaitable[T]],
    on: tuple[type[ProviderFailure], ...],
    *,
    attempts: int,
    deadline: float,
    retried: Callable[[str], None],
    pausing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> T:
    """Calls `attempt` with the number of earlier tries, and again after the failures in `on`.

    Stops when the next pause would end after the deadline. If time runs out in a later try, the failure of
    the earlier one is raised, because it says more. A failure says `maybe_done` or `unanswered` if any try
    before it did. `retried` is called with the reason before each try but the first. Each pause is made
    within `pausing`.
    """
    # tenacity is used only after a failure, because it costs half as much as a request itself.
    try:
        return await attempt(0)
    except ProviderFailure as failure:
        again = _again(
            unraised(failure),
            attempt,
            on,
            attempts=attempts,
            deadline=deadline,
            retried=retried,
            pausing=pausing,
        )
    try:
        return await again
    except ProviderFailure as failure:
        # tenacity's objects refer to each other, and so stay for a while. They may keep the failure, but not
        # the frames that it passed: those hold the sample.
        raise unraised(failure.with_traceback(None)) from None


async def _again(
    known: ProviderFailure,
    attempt: Callable[[int], Awaitable[T]],
    on: tuple[type[ProviderFailure], ...],
    *,
    attempts: int,
    deadline: float,
    retried: Callable[[str], None],
    pausing: Callable[[], AbstractContextManager[None]],
) -> T:
    """What a later try returns. `known` is the failure of the first try."""
    loop = asyncio.get_running_loop()
    maybe_done, unanswered = known.maybe_done, known.unanswered

    async def slept(seconds: float) -> None:
        facts = {"reason": known.reason, "retry_after_seconds": known.retry_after}
        known_facts = keyed({name: value for name, value in facts.items() if value is not None})
        with pausing(), part("pause", known_facts):
            await asyncio.sleep(seconds)

    def over(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= attempts or loop.time() + state.upcoming_sleep >= deadline

    async for trial in tenacity.AsyncRetrying(
        sleep=slept,
        retry=tenacity.retry_if_exception_type(on),
        wait=_pause,
        stop=over,
        before_sleep=lambda state: retried(_failure(state).reason),
        reraise=True,
    ):
        with trial:
            resent = trial.retry_state.attempt_number - 1
            last = known
            if resent > 0:
                try:
                    return await attempt(resent)
                except ProviderFailure as failure:
                    last = unraised(failure)
                if not isinstance(last, TimedOut):
                    known = last
                elif loop.time() >= deadline:
                    maybe_done |= last.maybe_done
                    unanswered |= last.unanswered
                    last = known
            maybe_done = last.maybe_done = last.maybe_done or maybe_done
            unanswered = last.unanswered = last.unanswered or unanswered
            # Not where it was caught: there it would refer to the failure, and to what that came from.
            raise unraised(last)
    raise AssertionError("unreachable: the loop returns or raises")


_jittered = tenacity.wait_random_exponential(multiplier=0.5, max=8)


def _pause(state: tenacity.RetryCallState) -> float:
    """A random pause below a growing bound, and no shorter than `Retry-After` asks for."""
    return _jittered(state) + (_failure(state).retry_after or 0.0)


def _failure(state: tenacity.RetryCallState) -> ProviderFailure:
    """The failure after which there is another try; any other exception ends the tries."""
    outcome = cast("tenacity.Future", state.outcome)
    return cast("ProviderFailure", outcome.exception())
