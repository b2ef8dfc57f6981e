"""The one rule by which a request to ElevenLabs is tried again: jittered, bounded, inside the deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from cloner.provider.failures import ProviderFailure, TimedOut
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
) -> T:
    """Calls `attempt` with the number of tries before, and again after the failures in `on`.

    Stops when the next pause would end after the deadline. If time runs out in a later try, the failure of
    the earlier one is raised, because it says more. `retried` is called with the reason before each try but
    the first.
    """
    try:
        return await attempt(0)
    except ProviderFailure as failure:
        # Without its traceback, which refers to the frames of what failed, and to the sample.
        first = failure.with_traceback(None)
    # Only what has failed is left to tenacity: for each request it costs half as much as the request itself.
    return await _again(attempt, on, first, attempts=attempts, deadline=deadline, retried=retried)


async def _again(
    attempt: Callable[[int], Awaitable[T]],
    on: tuple[type[ProviderFailure], ...],
    first: ProviderFailure,
    *,
    attempts: int,
    deadline: float,
    retried: Callable[[str], None],
) -> T:
    """What follows the failure of the first try, which is the first that tenacity is told of."""
    known = first
    loop = asyncio.get_running_loop()

    async def slept(seconds: float) -> None:
        facts = {"reason": known.reason, "retry_after_seconds": known.retry_after}
        with part("pause", keyed({name: value for name, value in facts.items() if value is not None})):
            await asyncio.sleep(seconds)

    def over(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= attempts or loop.time() + state.upcoming_sleep >= deadline

    def tell(state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, ProviderFailure):
            retried(failure.reason)

    async for trial in tenacity.AsyncRetrying(
        sleep=slept,
        retry=tenacity.retry_if_exception_type(on),
        wait=_pause,
        stop=over,
        before_sleep=tell,
        reraise=True,
    ):
        with trial:
            before = trial.retry_state.attempt_number - 1
            if before == 0:
                raise first
            try:
                return await attempt(before)
            except TimedOut:
                if loop.time() >= deadline:
                    raise known from None
                raise
            except ProviderFailure as failure:
                known = failure
                raise
    raise AssertionError("unreachable: the loop returns or raises")


_jittered = tenacity.wait_random_exponential(multiplier=0.5, max=8)


def _pause(state: tenacity.RetryCallState) -> float:
    """A random pause below a growing bound, and no shorter than `Retry-After` asks for."""
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after if isinstance(failure, ProviderFailure) else None
    return _jittered(state) + (asked or 0.0)
