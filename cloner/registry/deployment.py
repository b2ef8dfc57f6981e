"""The one row of the deployment: what all of its processes share."""

from sqlalchemy import select, update

from cloner.registry.database import Registry, unbroken
from cloner.registry.schema import deployment

__all__ = ["Deployment"]


@unbroken
class Deployment:
    """What holds for the whole deployment."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def month_resets_at(self) -> float:
        """When the provider's monthly counter starts again; 0 where it is not known to be used up."""
        async with self._registry.transaction() as connection:
            return (await connection.execute(select(deployment.c.month_resets_at))).scalar_one() or 0.0

    async def month_used_up(self, until: float) -> None:
        """Notes that the provider's monthly counter is used up."""
        async with self._registry.transaction() as connection:
            await connection.execute(update(deployment).values(month_resets_at=until))

    async def claim_reconciliation(self, *, now: float, until: float) -> bool:
        """Whether it is this process's turn to reconcile; until then it is nobody else's."""
        change = update(deployment).where(deployment.c.reconciled_until <= now).values(reconciled_until=until)
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount == 1
