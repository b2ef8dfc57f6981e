"""Rows of agents: what each had before it was given a caller's voice.

A row stays when the agent has back what it had; then it says nothing but how often it was changed.
"""

import msgspec
from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from cloner.registry.database import Registry, unbroken
from cloner.registry.schema import agents, calls, voices

__all__ = ["AgentRow", "Agents", "alone_at", "given"]

# How long an agent may keep a voice that was lost: a delivery that finds it lost makes another meanwhile.
LOST_SECONDS = 60.0


class AgentRow(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was given a caller's voice, or was about to be.

    Until it is known to have it, `former_*` are what it was given before that and may still have.
    """

    agent_id: str
    marker: str
    call_id: str
    voice_id: str
    first_message: str
    before_voice_id: str | None
    before_first_message: str | None
    former_marker: str | None
    former_voice_id: str | None
    former_first_message: str | None

    def gave_voice(self, voice_id: str | None) -> bool:
        """Whether a voice that the agent has is one that we gave it."""
        return voice_id is not None and voice_id in (self.voice_id, self.former_voice_id)

    def gave_message(self, first_message: str | None) -> bool:
        """Whether a greeting that the agent has is one that we gave it."""
        return first_message is not None and first_message in (self.first_message, self.former_first_message)


FIELDS = (
    agents.c.agent_id, agents.c.marker, agents.c.call_id, agents.c.voice_id, agents.c.first_message,
    agents.c.before_voice_id, agents.c.before_first_message, agents.c.former_marker, agents.c.former_voice_id,
    agents.c.former_first_message,
)  # fmt: skip
NOTHING_FORMER = {"former_marker": None, "former_voice_id": None, "former_first_message": None}
NOTHING = {
    "marker": None, "call_id": None, "voice_id": None, "first_message": None, "before_voice_id": None,
    "before_first_message": None, "restoring": False, "held_until": 0, "holder": "", **NOTHING_FORMER,
}  # fmt: skip


@unbroken
class Agents:
    """The agents that this deployment has changed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def intend(
        self,
        row: AgentRow,
        *,
        turn: int,
        caller: str,
        others_since: float | None,
        holder: str,
        now: float,
        until: float,
    ) -> bool:
        """Writes down what an agent had before and is about to be given; False if it may not be.

        It may be while the agent was changed `turn` times and nobody else holds it, the call has not
        ended, its voice is not given up, and, with `others_since`, no other caller's call at the
        agent began since then and is not over. The holder has the agent for itself until then.
        """
        async with self._registry.transaction() as connection:
            if self._registry.postgres:
                await alone_at(connection, row.agent_id)
            ended = (
                await connection.execute(
                    select(calls.c.ended_at).where(calls.c.id == row.call_id).with_for_update()
                )
            ).one_or_none()
            state = (
                await connection.execute(
                    select(voices.c.state).where(voices.c.marker == row.marker).with_for_update()
                )
            ).scalar_one_or_none()
            if ended is None or ended[0] is not None or state != "ready":
                return False
            # Every call is noted before this is asked, and looks at the agent after that.
            if others_since is not None:
                other = await connection.execute(
                    select(calls.c.id)
                    .where(
                        calls.c.agent_id == row.agent_id,
                        calls.c.caller != caller,
                        calls.c.ended_at.is_(None),
                        calls.c.begun_at > others_since,
                    )
                    .limit(1)
                )
                if other.first() is not None:
                    return False
            values = {
                **msgspec.structs.asdict(row), "restoring": False, "holder": holder, "held_until": until,
                "turn": turn + 1,
            }  # fmt: skip
            insert = (insert_postgres if self._registry.postgres else insert_sqlite)(agents).values(values)
            changed = await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=[agents.c.agent_id],
                    set_=values,
                    where=(agents.c.held_until <= now) & (agents.c.turn == turn),
                ).returning(agents.c.agent_id)
            )
            return changed.one_or_none() is not None

    async def let_go(self, agent_id: str, *, holder: str, until: float = 0, given: bool = False) -> bool:
        """Ends the holder's hold of an agent, at once or later; False if it had run out and others took it.

        `given` says that it has what was intended, and so nothing any more that it was given before.
        """
        async with self._registry.transaction() as connection:
            change = (
                update(agents)
                .where(agents.c.agent_id == agent_id, agents.c.holder == holder)
                .values(held_until=until, holder="", **(NOTHING_FORMER if given else {}))
            )
            return (await connection.execute(change)).rowcount == 1

    async def strayed(self, row: AgentRow) -> None:
        """Says that an agent was given something after the hold of it had run out, which is to be put back.

        What others took for its own meanwhile is corrected, and nobody who is at it now is the last.
        """
        async with self._registry.transaction() as connection:
            this = agents.c.agent_id == row.agent_id
            found = await connection.execute(select(*FIELDS).where(this).with_for_update())
            current = AgentRow(**found.one()._mapping)
            values = {**msgspec.structs.asdict(row), "restoring": True}
            if current.marker:
                values = {
                    "former_marker": row.marker, "former_voice_id": row.voice_id,
                    "former_first_message": row.first_message,
                }  # fmt: skip
                if current.before_voice_id == row.voice_id:
                    values["before_voice_id"] = row.before_voice_id
                if current.before_first_message == row.first_message:
                    values["before_first_message"] = row.before_first_message
            await connection.execute(
                update(agents).where(this).values(**values, holder="", turn=agents.c.turn + 1)
            )

    async def withdraw(self, *, call_id: str | None = None, marker: str | None = None) -> None:
        """Says that the agent that was changed for the call, or those with the voice, are to be put back."""
        which = agents.c.call_id == call_id if marker is None else agents.c.marker == marker
        await self._withdraw(which)

    async def withdraw_over(self, *, busy_since: float, now: float) -> None:
        """Says that agents whose call is over, or was presumed to be by then, are to be put back.

        So are those that may still have the voice of the call before, once nobody holds them, and
        those whose voice is lost, unless whoever found that may still be giving them another.
        """
        in_progress = (
            select(calls.c.id)
            .where(calls.c.id == agents.c.call_id, calls.c.ended_at.is_(None), calls.c.begun_at > busy_since)
            .exists()
        )
        in_doubt = agents.c.former_marker.is_not(None) & (agents.c.held_until <= now)
        has_voice = (
            select(voices.c.marker)
            .where(
                voices.c.marker == agents.c.marker,
                voices.c.closed_at.is_(None) | (voices.c.closed_at > now - LOST_SECONDS),
            )
            .exists()
        )
        await self._withdraw(
            agents.c.marker.is_not(None)
            & agents.c.restoring.is_(False)
            & (~in_progress | in_doubt | ~has_voice)
        )

    async def claim(
        self, *, holder: str, now: float, until: float, marker: str | None = None
    ) -> AgentRow | None:
        """One agent that is to be put back, which until then is nobody else's to change."""
        chosen = select(agents.c.agent_id).where(agents.c.restoring, agents.c.held_until <= now)
        if marker is not None:
            chosen = chosen.where(_may_have(marker))
        chosen = chosen.order_by(agents.c.held_until).limit(1).with_for_update(skip_locked=True)
        change = (
            update(agents)
            .where(agents.c.agent_id == chosen.scalar_subquery())
            .values(held_until=until, holder=holder, turn=agents.c.turn + 1)
            .returning(*FIELDS)
        )
        async with self._registry.transaction() as connection:
            row = (await connection.execute(change)).one_or_none()
        return None if row is None else AgentRow(**row._mapping)

    async def restored(self, agent_id: str, *, holder: str) -> None:
        """Forgets what an agent was given, because it has back what it had."""
        async with self._registry.transaction() as connection:
            await connection.execute(
                update(agents)
                .where(agents.c.agent_id == agent_id, agents.c.holder == holder)
                .values(**NOTHING, turn=agents.c.turn + 1)
            )

    async def speaking(self, marker: str) -> bool:
        """Whether an agent still speaks with this voice, as far as is known."""
        wanted = select(agents.c.agent_id).where(_may_have(marker)).limit(1)
        async with self._registry.transaction() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def _withdraw(self, which: ColumnElement[bool]) -> None:
        async with self._registry.transaction() as connection:
            await connection.execute(update(agents).where(which).values(restoring=True))


async def alone_at(connection: AsyncConnection, agent_id: str) -> None:
    """Waits until nobody else is between a look at an agent's calls and what follows from it.

    For Postgres; until the end of the transaction.
    """
    await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(agent_id, 0))))


async def given(connection: AsyncConnection, agent_id: str) -> tuple[AgentRow | None, int]:
    """What the agent was given, if it still has it, and how often it was changed so far."""
    wanted = select(*FIELDS, agents.c.turn).where(agents.c.agent_id == agent_id)
    row = (await connection.execute(wanted)).one_or_none()
    if row is None:
        return None, 0
    values = dict(row._mapping)
    turn: int = values.pop("turn")
    return (AgentRow(**values) if row.marker else None), turn


def _may_have(marker: str) -> ColumnElement[bool]:
    return or_(agents.c.marker == marker, agents.c.former_marker == marker)
