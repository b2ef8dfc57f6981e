"""Rows of calls: which conversations were asked about, and which are over."""

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from cloner.registry.agents import AgentRow, alone_at, given
from cloner.registry.database import Registry, unbroken
from cloner.registry.lookup import VoiceRow, active, of_number, row_of
from cloner.registry.schema import ACTIVE, calls, voices

__all__ = ["CallRow", "Calls", "NewCall", "Noted"]


class CallRow(msgspec.Struct, frozen=True, kw_only=True):
    """One call."""

    id: str
    agent_id: str
    conversation_id: str
    caller: str
    marker: str | None
    named: bool
    begun_at: float
    ended_at: float | None


class NewCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is about to be noted."""

    id: str
    agent_id: str
    conversation_id: str
    caller: str
    named: bool
    """Whether that caller is calling, and does not only stand for whoever it is."""

    begun_at: float


FIELDS = (
    calls.c.id, calls.c.agent_id, calls.c.conversation_id, calls.c.caller, calls.c.marker, calls.c.named,
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

    async def begin(self, new: NewCall) -> Noted:
        """Notes that a call is in progress, with its voice where it or its caller has one.

        A call that was noted before keeps its time, its caller and its voice.
        """
        async with self._registry.transaction() as connection:
            call = await self._note(connection, new)
            voice = await row_of(connection, call.marker) if call.marker else None
            if not call.named:
                # The voice that the number found may be somebody else's.
                if voice is not None and voice.caller != new.caller:
                    voice = None
                theirs = {"marker": voice and voice.marker, "caller": new.caller, "named": True}
                await connection.execute(update(calls).where(calls.c.id == call.id).values(theirs))
                call = msgspec.structs.replace(call, **theirs)
            if voice is None:
                voice = await active(connection, new.caller)
            voice = await _used(connection, call, voice, now=new.begun_at)
            noted = await self._noted(connection, call, voice)
        return await self._seen(noted)

    async def open(self, new: NewCall, *, number: str | None, require_consent: bool) -> Noted:
        """Notes that a call is in progress, with its voice where it has one or its number finds one.

        Of a call whose caller a delivery has named, the number finds nothing.
        """
        async with self._registry.transaction() as connection:
            call = await self._note(connection, new)
            voice = await row_of(connection, call.marker) if call.marker else None
            if voice is None and number is not None and not call.named and call.ended_at is None:
                voice = await of_number(connection, number)
            if voice is not None and require_consent and not voice.consent:
                voice = None
            voice = await _used(connection, call, voice, now=new.begun_at)
            noted = await self._noted(connection, call, voice)
        return await self._seen(noted)

    async def latest(self, *, call_id: str | None = None, marker: str | None = None) -> CallRow | None:
        """The call of that id, or the last one that had the voice."""
        which = calls.c.id == call_id if marker is None else calls.c.marker == marker
        wanted = select(*FIELDS).where(which).order_by(calls.c.begun_at.desc()).limit(1)
        async with self._registry.transaction() as connection:
            row = (await connection.execute(wanted)).one_or_none()
        return None if row is None else CallRow(**row._mapping)

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

    async def note_ended(self, new: NewCall, *, now: float) -> None:
        """Notes that a call has ended which nobody asked about, so that a delivery for it comes too late."""
        async with self._registry.transaction() as connection:
            await self._note(connection, new)
            await connection.execute(
                update(calls).where(calls.c.id == new.id, calls.c.ended_at.is_(None)).values(ended_at=now)
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

    async def _note(self, connection: AsyncConnection, new: NewCall) -> CallRow:
        """The row of a call, which is locked."""
        kind = insert_postgres if self._registry.postgres else insert_sqlite
        insert = kind(calls).values(msgspec.structs.asdict(new))
        insert = insert.on_conflict_do_nothing(index_elements=[calls.c.id])
        found = (await connection.execute(insert.returning(*FIELDS))).one_or_none()
        if found is None:
            known = select(*FIELDS).where(calls.c.id == new.id).with_for_update()
            found = (await connection.execute(known)).one()
        return CallRow(**found._mapping)

    async def _noted(self, connection: AsyncConnection, call: CallRow, voice: VoiceRow | None) -> Noted:
        row, turn = await given(connection, call.agent_id)
        return Noted(call=call, voice=voice, given=row, turn=turn)

    async def _seen(self, noted: Noted) -> Noted:
        """The same, with what the agent was given before the call was committed.

        Whoever gives the agent another voice after that sees the call. SQLite lets one at a time write,
        so there was nobody meanwhile.
        """
        if not self._registry.postgres:
            return noted
        async with self._registry.transaction() as connection:
            await alone_at(connection, noted.call.agent_id)
            return await self._noted(connection, noted.call, noted.voice)


async def _used(
    connection: AsyncConnection, call: CallRow, voice: VoiceRow | None, *, now: float
) -> VoiceRow | None:
    """Says that the call has the voice; None if that was given up meanwhile."""
    if voice is None:
        return None
    # A call is always locked before its voice, so that no two wait for each other.
    use = update(voices).where(voices.c.marker == voice.marker, ACTIVE).values(used_at=now)
    if (await connection.execute(use)).rowcount != 1:
        return None
    await connection.execute(
        update(calls).where(calls.c.id == call.id).values(marker=voice.marker, caller=voice.caller)
    )
    return voice
