"""The calls of the contract that report limits, and how much of them is used."""

from collections.abc import Callable
from contextvars import ContextVar

import msgspec
from precall.v1 import cloning_pb2 as pb

from cloner.provider.account import Account
from cloner.provider.elevenlabs import ElevenLabs
from cloner.registry import Store, deployment
from cloner.rpc.answering import answered
from cloner.rpc.contract import Context
from cloner.rpc.messages import moment

__all__ = ["Quota", "Usage", "get_limits", "own_quota"]


class Quota(msgspec.Struct, frozen=True):
    """How many calls are under way, and how many may be."""

    in_use: int
    limit: int


own_quota: ContextVar[Quota | None] = ContextVar("own_quota", default=None)
"""The quota of the client that calls, without this call, where it has a limit of its own."""


async def get_limits(context: Context, store: Store, limits: pb.GetLimitsResponse) -> pb.GetLimitsResponse:
    """Answers GetLimits."""
    async with answered(store, context):
        return limits
    return pb.GetLimitsResponse()


class Usage:
    """Reports how much is used. `quota` is that of all clients; `now` tells the time, in Unix seconds."""

    def __init__(
        self,
        account: Account,
        provider: ElevenLabs,
        store: Store,
        *,
        quota: Callable[[], Quota],
        now: Callable[[], float],
    ) -> None:
        self._account = account
        self._provider = provider
        self._store = store
        self._quota = quota
        self._now = now

    async def get_usage(self, context: Context) -> pb.GetUsageResponse:
        """Answers GetUsage."""
        async with answered(self._store, context, yields=True) as answering:
            # Read before ElevenLabs is asked, because that request would be counted too.
            queue, quota = self._provider.queue, own_quota.get() or self._quota()
            resets_at = await self._store.read(deployment.month_resets_at)
            known = await self._account.known(deadline=answering.deadline)
            account = None if known is None else known.subscription
            exhausted = resets_at > self._now()
            reset = resets_at if exhausted else (None if account is None else account.resets_at)
            answer = pb.GetUsageResponse(
                provider_queue=pb.ProviderQueue(
                    running=queue.running,
                    running_limit=queue.running_limit,
                    waiting=queue.waiting,
                    waiting_limit=queue.waiting_limit,
                ),
                quota=pb.Quota(in_use=quota.in_use, limit=quota.limit),
            )
            if account is not None and account.slots_used is not None:
                answer.voice_slots.CopyFrom(pb.VoiceSlots(used=account.slots_used, limit=account.slots_limit))
            if exhausted or account is not None:
                answer.monthly_additions.CopyFrom(
                    pb.MonthlyAdditions(
                        used=None if account is None else account.month_used,
                        limit=None if account is None else account.month_limit,
                        reset_time=None if reset is None else moment(reset),
                        exhausted=exhausted,
                    )
                )
            if known is not None:
                answer.account_time.CopyFrom(moment(known.at))
            return answer
        return pb.GetUsageResponse()
