"""Rows of calls: which conversations were asked about, and which are over."""

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from cloner.registry.agents import AgentRow, given
from cloner.registry.database import Registry, unbroken
from cloner.registry.schema import ACTIVE, calls, voices
from cloner.registry.voices import VoiceRow, active, of_number, row_of

__all__ = ["CallRow", "Calls", "Noted"]


class CallRow(msgspec.Struct, frozen=True, kw_only=True):
    """One call."""

    id: str
    agent_id: str
    conversation_id: str
    caller: str
    marker: str | None
    by_number: bool
    begun_at: float
    ended_at: float | None


FIELDS = (
    calls.c.id, calls.c.agent_id, calls.c.conversation_id, calls.c.caller, calls.c.marker, calls.c.by_number,
    calls.c.begun_at,
    calls.c.ended_at,
)  # fmt: skip


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """A call in progress: its voice, ready or on its way, and what its agent was given by then.

    Of two calls that are noted at once, at least one sees the other.
    """

    call: CallRow
    voice: VoiceRow | None
    given: AgentRow | None
    turn: int


@unbroken
class Calls:
    """The calls of one deployment."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def begin(
        self, *, call_id: str, agent_id: str, conversation_id: str, caller: str, now: float
    ) -> Noted:
        """Notes that a call is in progress, with its voice where it or its caller has one.

        A call that was noted before keeps its time, its caller and its voice.
        """
        async with self._registry.transaction() as connection:
            call = await self._note(
                connection,
                call_id,
                agent_id=agent_id,
                conversation_id=conversation_id,
                caller=caller,
                now=now,
            )
            voice = await row_of(connection, call.marker) if call.marker else None
            if call.by_number and (voice is None or voice.caller != caller):
                # Somebody else than the number let assume: the voice that it found is not theirs.
                await connection.execute(
                    update(calls)
                    .where(calls.c.id == call_id)
                    .values(marker=None, caller=caller, by_number=False)
                )
                call, voice = msgspec.structs.replace(call, marker=None, caller=caller, by_number=False), None
            if voice is None:
                voice = await active(connection, caller)
            voice = await _used(connection, call, voice, by_number=False, now=now)
        return await self._noted(call, voice)

    async def open(
        self,
        *,
        call_id: str,
        agent_id: str,
        conversation_id: str,
        number: str | None,
        caller: str,
        consented: bool,
        now: float,
    ) -> Noted:
        """Notes that a call is in progress, with its voice where it has one or its number names one.

        `caller` stands for whoever calls while nobody knows who it is; with `consented`, a voice without
        a consent is not used.
        """
        async with self._registry.transaction() as connection:
            call = await self._note(
                connection,
                call_id,
                agent_id=agent_id,
                conversation_id=conversation_id,
                caller=caller,
                now=now,
            )
            voice = await row_of(connection, call.marker) if call.marker else None
            by_number = call.by_number
            if voice is None and number is not None and call.ended_at is None:
                voice, by_number = await of_number(connection, number), True
            if voice is not None and consented and not voice.consent:
                voice = None
            voice = await _used(connection, call, voice, by_number=by_number, now=now)
        return await self._noted(call, voice)

    async def attach(self, call_id: str, marker: str, *, now: float) -> bool:
        """Says which voice a call has. False if that voice was given up meanwhile."""
        async with self._registry.transaction() as connection:
            # A call is always locked before its voice, so that no two wait for each other.
            await connection.execute(select(calls.c.id).where(calls.c.id == call_id).with_for_update())
            state = await connection.execute(
                select(voices.c.caller).where(voices.c.marker == marker, ACTIVE).with_for_update()
            )
            caller = state.scalar_one_or_none()
            if caller is None:
                return False
            await connection.execute(
                update(calls).where(calls.c.id == call_id).values(marker=marker, caller=caller)
            )
            await connection.execute(update(voices).where(voices.c.marker == marker).values(used_at=now))
            return True

    async def end(
        self,
        *,
        now: float,
        call_id: str | None = None,
        conversation_id: str | None = None,
        agent_id: str | None = None,
        voice_id: str | None = None,
    ) -> CallRow | None:
        """Ends the call that is found by its conversation, else by its id, else by agent and voice.

        Returns it; None if there is none. One that was ended before keeps its time.
        """
        ways = []
        if conversation_id:
            ways.append(calls.c.conversation_id == conversation_id)
        if call_id:
            ways.append(calls.c.id == call_id)
        if agent_id and voice_id:
            of_voice = select(voices.c.marker).where(voices.c.voice_id == voice_id).scalar_subquery()
            ways.append(
                (calls.c.agent_id == agent_id) & (calls.c.marker == of_voice) & calls.c.ended_at.is_(None)
            )
        async with self._registry.transaction() as connection:
            for way in ways:
                wanted = select(*FIELDS).where(way).order_by(calls.c.begun_at.desc()).limit(1)
                if agent_id:
                    wanted = wanted.where(calls.c.agent_id == agent_id)
                row = (await connection.execute(wanted)).one_or_none()
                if row is not None:
                    # A call that was opened without its conversation has a row of its own beside that.
                    await connection.execute(
                        update(calls)
                        .where(calls.c.id.in_({row.id, call_id or row.id}))
                        .values(ended_at=func.coalesce(calls.c.ended_at, now))
                    )
                    return CallRow(**row._mapping)
        return None

    async def note_ended(
        self, *, call_id: str, agent_id: str, conversation_id: str, begun_at: float, now: float
    ) -> None:
        """Notes that a call has ended which nobody asked about, so that a delivery for it comes too late."""
        async with self._registry.transaction() as connection:
            await self._note(
                connection,
                call_id,
                agent_id=agent_id,
                conversation_id=conversation_id,
                caller=call_id,
                now=begun_at,
            )
            await connection.execute(
                update(calls).where(calls.c.id == call_id, calls.c.ended_at.is_(None)).values(ended_at=now)
            )

    async def close_old(self, *, before: float, now: float) -> int:
        """Ends every call that began before then and was never reported as ended; says how many."""
        change = (
            update(calls).where(calls.c.ended_at.is_(None), calls.c.begun_at <= before).values(ended_at=now)
        )
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount

    async def drop_ended(self, *, before: float) -> int:
        """Removes rows of calls that ended before then; says how many."""
        async with self._registry.transaction() as connection:
            return (await connection.execute(calls.delete().where(calls.c.ended_at < before))).rowcount

    async def erase_caller(self, caller: str) -> None:
        """Removes every row of a caller's calls."""
        async with self._registry.transaction() as connection:
            await connection.execute(calls.delete().where(calls.c.caller == caller))

    async def _note(
        self,
        connection: AsyncConnection,
        call_id: str,
        *,
        agent_id: str,
        conversation_id: str,
        caller: str,
        now: float,
    ) -> CallRow:
        """The row of a call, which is locked."""
        values = {
            "id": call_id, "agent_id": agent_id, "conversation_id": conversation_id, "caller": caller,
            "begun_at": now,
        }  # fmt: skip
        insert = (insert_postgres if self._registry.postgres else insert_sqlite)(calls).values(values)
        await connection.execute(insert.on_conflict_do_nothing(index_elements=[calls.c.id]))
        found = await connection.execute(select(*FIELDS).where(calls.c.id == call_id).with_for_update())
        return CallRow(**found.one()._mapping)

    async def _noted(self, call: CallRow, voice: VoiceRow | None) -> Noted:
        # In a transaction of its own: whoever gives the agent another voice after the call was
        # committed sees the call, and whoever did before that is seen here.
        async with self._registry.transaction() as connection:
            row, turn = await given(connection, call.agent_id)
        return Noted(call=call, voice=voice, given=row, turn=turn)


async def _used(
    connection: AsyncConnection, call: CallRow, voice: VoiceRow | None, *, by_number: bool, now: float
) -> VoiceRow | None:
    """Says that the call has the voice; None if that was given up meanwhile."""
    if voice is None:
        return None
    this = voices.c.marker == voice.marker
    # A call is always locked before its voice, so that no two wait for each other.
    locked = await connection.execute(select(voices.c.marker).where(this, ACTIVE).with_for_update())
    if locked.one_or_none() is None:
        return None
    await connection.execute(
        update(calls)
        .where(calls.c.id == call.id)
        .values(marker=voice.marker, caller=voice.caller, by_number=by_number)
    )
    await connection.execute(update(voices).where(this).values(used_at=now))
    return voice
