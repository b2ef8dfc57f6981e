"""Rows of voices: who may create one, what became of it, and who removes it."""

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloner.registry.database import Registry, unbroken
from cloner.registry.schema import ACTIVE, calls, voices

__all__ = ["NewVoiceRow", "VoiceRow", "Voices", "active", "of_number", "row_of"]

FIELDS = (
    voices.c.marker, voices.c.state, voices.c.caller, voices.c.person, voices.c.greeting_name,
    voices.c.voice_id,
    voices.c.name, voices.c.created_at, voices.c.checked_at, voices.c.owner, voices.c.alive_at,
    voices.c.tries, voices.c.reason, voices.c.traceparent, voices.c.consent, voices.c.consent_at,
)  # fmt: skip


class VoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One voice, or the intent to make one."""

    marker: str
    state: str
    caller: str
    person: str
    greeting_name: str
    voice_id: str | None
    name: str
    created_at: float
    checked_at: float
    owner: str
    alive_at: float
    tries: int
    reason: str | None
    traceparent: str
    consent: str
    consent_at: float | None


class NewVoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A voice that is about to be made. `consent` is empty where none was told."""

    marker: str
    caller: str
    number: str | None
    person: str
    greeting_name: str
    name: str
    owner: str
    traceparent: str
    consent: str
    kept_until: float


@unbroken
class Voices:
    """The voices of one deployment."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def intend(self, new: NewVoiceRow, *, call_id: str | None, now: float) -> VoiceRow:
        """Writes down that a voice is about to be created, unless the caller or the call has one.

        Returns the row that counts: the new one, or the one that was there. Exactly one of those
        who ask at the same time gets the new one.
        """
        async with self._registry.transaction() as connection:
            if call_id is not None:
                held = await _of_call(connection, call_id)
                if held is not None:
                    return held
            values = {
                **msgspec.structs.asdict(new), "state": "intended", "created_at": now, "used_at": now,
                "checked_at": now, "alive_at": now, "consent_at": now if new.consent else None,
            }  # fmt: skip
            insert = (insert_postgres if self._registry.postgres else insert_sqlite)(voices).values(values)
            await connection.execute(
                insert.on_conflict_do_nothing(index_elements=[voices.c.caller], index_where=ACTIVE)
            )
            row = await active(connection, new.caller)
            assert row is not None  # noqa: S101 - the insert saw to it
            if call_id is not None:
                await connection.execute(
                    update(calls).where(calls.c.id == call_id).values(marker=row.marker, caller=row.caller)
                )
            return row

    async def get(self, marker: str) -> VoiceRow | None:
        """The row of a marker."""
        async with self._registry.transaction() as connection:
            return _row(await connection.execute(select(*FIELDS).where(voices.c.marker == marker)))

    async def by_voice_id(self, voice_id: str) -> VoiceRow | None:
        """The row of a voice, if it is there to be used."""
        async with self._registry.transaction() as connection:
            wanted = select(*FIELDS).where(voices.c.voice_id == voice_id, voices.c.state == "ready")
            return _row(await connection.execute(wanted))

    async def of_caller(self, caller: str) -> VoiceRow | None:
        """The caller's voice, ready or on its way."""
        async with self._registry.transaction() as connection:
            return await active(connection, caller)

    async def page(
        self,
        *,
        before: tuple[float, str] | None,
        size: int,
        person: str | None = None,
        number: str | None = None,
    ) -> list[VoiceRow]:
        """Ready voices, newest first, from below the given creation time and marker.

        All of them, those of a person, or those of whoever calls from a number.
        """
        wanted = select(*FIELDS).where(voices.c.state == "ready")
        if person is not None:
            wanted = wanted.where(voices.c.person == person)
        elif number is not None:
            wanted = wanted.where(voices.c.number == number)
        if before is not None:
            at, marker = before
            wanted = wanted.where(
                or_(voices.c.created_at < at, and_(voices.c.created_at == at, voices.c.marker < marker))
            )
        wanted = wanted.order_by(voices.c.created_at.desc(), voices.c.marker.desc()).limit(size)
        async with self._registry.transaction() as connection:
            return _rows(await connection.execute(wanted))

    async def record(self, marker: str, voice_id: str, *, now: float) -> bool:
        """Makes an intended or failed voice ready; one that somebody else has recorded stays so.

        False if it no longer can be: then nobody will use the voice, and whoever made it removes it.
        """
        recorded = and_(voices.c.state == "ready", voices.c.voice_id == voice_id)
        change = (
            update(voices)
            .where(voices.c.marker == marker, or_(voices.c.state.in_(("intended", "failed")), recorded))
            .values(
                state="ready", voice_id=voice_id, checked_at=now, used_at=now, reason=None, closed_at=None
            )
        )
        async with self._registry.transaction() as connection:
            try:
                async with connection.begin_nested():
                    return (await connection.execute(change)).rowcount == 1
            except IntegrityError:
                # The caller has another voice by now.
                return False

    async def fail(self, marker: str, reason: str, *, now: float) -> None:
        """Closes an intent of which nothing came, so that the caller may be tried again at once."""
        async with self._registry.transaction() as connection:
            await connection.execute(update(calls).where(calls.c.marker == marker).values(marker=None))
            await connection.execute(
                update(voices)
                .where(voices.c.marker == marker, voices.c.state == "intended")
                .values(state="failed", reason=reason, closed_at=now)
            )

    async def keep_alive(self, markers: list[str], *, owner: str, now: float) -> None:
        """Says that the owner is still at these intents."""
        async with self._registry.transaction() as connection:
            await connection.execute(
                update(voices)
                .where(voices.c.marker.in_(markers), voices.c.owner == owner, voices.c.state == "intended")
                .values(alive_at=now)
            )

    async def take_over(self, marker: str, *, owner: str, stale: float, now: float) -> bool:
        """Takes an intent whose owner gave no sign of life since `stale`. True for one taker only."""
        change = (
            update(voices)
            .where(voices.c.marker == marker, voices.c.state == "intended", voices.c.alive_at < stale)
            .values(owner=owner, alive_at=now)
        )
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount == 1

    async def abandoned(self, *, stale: float) -> list[VoiceRow]:
        """Intents whose owner gave no sign of life since `stale`."""
        async with self._registry.transaction() as connection:
            wanted = select(*FIELDS).where(voices.c.state == "intended", voices.c.alive_at < stale)
            return _rows(await connection.execute(wanted))

    async def consented(self, marker: str, consent: str, *, now: float) -> None:
        """Keeps the consent with a voice that has none yet."""
        async with self._registry.transaction() as connection:
            await connection.execute(
                update(voices)
                .where(voices.c.marker == marker, voices.c.consent == "")
                .values(consent=consent, consent_at=now)
            )

    async def keep(self, marker: str, *, until: float) -> bool:
        """Keeps a voice until then, calls or no calls. False if it was given up meanwhile."""
        change = update(voices).where(voices.c.marker == marker, ACTIVE).values(kept_until=until)
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount == 1

    async def checked(self, marker: str, *, now: float) -> None:
        """Notes that the provider has the voice."""
        async with self._registry.transaction() as connection:
            await connection.execute(update(voices).where(voices.c.marker == marker).values(checked_at=now))

    async def lost(self, marker: str, *, now: float, reason: str = "lost") -> None:
        """Closes a voice that the provider no longer has."""
        async with self._registry.transaction() as connection:
            await connection.execute(
                update(voices)
                .where(voices.c.marker == marker, voices.c.state.in_(("ready", "deleting")))
                .values(state="gone", closed_at=now, reason=reason, due_at=0)
            )

    async def release(self, marker: str, reason: str, *, busy_since: float | None, now: float) -> bool:
        """Gives a ready voice up for deletion, so that nobody begins to use it.

        With `busy_since`, only if no call that began since then and has not ended uses it.
        """
        change = update(voices).where(voices.c.marker == marker, voices.c.state == "ready")
        if busy_since is not None:
            change = change.where(~_in_call(busy_since))
        change = change.values(state="deleting", reason=reason, due_at=now, tries=0)
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount == 1

    async def forget(self, marker: str, reason: str, *, now: float) -> None:
        """Gives a voice up for deletion, whatever uses it and why ever it was given up before."""
        change = (
            update(voices)
            .where(voices.c.marker == marker, voices.c.state.in_(("ready", "deleting")))
            .values(
                state="deleting",
                reason=reason,
                due_at=now,
                tries=0,
                greeting_name="",
                number=None,
                consent="",
                consent_at=None,
            )
        )
        async with self._registry.transaction() as connection:
            await connection.execute(change)

    async def expire(self, *, unused_since: float, busy_since: float, now: float) -> int:
        """Gives up every voice whose last call ended before `unused_since`; says how many.

        Those that are kept for longer stay.
        """
        last_end = (
            select(func.max(func.coalesce(calls.c.ended_at, calls.c.begun_at)))
            .where(calls.c.marker == voices.c.marker)
            .scalar_subquery()
        )
        change = (
            update(voices)
            .where(
                voices.c.state == "ready",
                ~_in_call(busy_since),
                func.coalesce(last_end, voices.c.used_at) <= unused_since,
                voices.c.used_at <= unused_since,
                voices.c.kept_until <= now,
            )
            .values(state="deleting", reason="expired", due_at=now, tries=0)
        )
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount

    async def least_recently_used(self, *, busy_since: float, now: float, kept: bool) -> VoiceRow | None:
        """The ready voice that no call uses and that was used the longest ago.

        Those that are kept come last, and only with `kept`.
        """
        is_kept = voices.c.kept_until > now
        wanted = select(*FIELDS).where(voices.c.state == "ready", ~_in_call(busy_since))
        if not kept:
            wanted = wanted.where(~is_kept)
        wanted = wanted.order_by(is_kept, voices.c.used_at).limit(1)
        async with self._registry.transaction() as connection:
            return _row(await connection.execute(wanted))

    async def claim_deletion(self, *, now: float, until: float) -> VoiceRow | None:
        """One voice whose deletion is due, which until then is nobody else's to delete."""
        chosen = (
            select(voices.c.marker)
            .where(voices.c.state == "deleting", voices.c.due_at <= now)
            .order_by(voices.c.due_at)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        change = (
            update(voices)
            .where(voices.c.marker == chosen)
            .values(due_at=until, tries=voices.c.tries + 1)
            .returning(*FIELDS)
        )
        async with self._registry.transaction() as connection:
            return _row(await connection.execute(change))

    async def postpone_deletion(self, marker: str, *, due_at: float) -> None:
        """Says when a deletion that failed may be tried again."""
        async with self._registry.transaction() as connection:
            await connection.execute(
                update(voices)
                .where(voices.c.marker == marker, voices.c.state == "deleting")
                .values(due_at=due_at)
            )

    async def of_person_or_number(self, person: str | None, number: str | None) -> list[VoiceRow]:
        """Every row of a person, or of whoever calls from a number."""
        which = voices.c.person == person if person is not None else voices.c.number == number
        async with self._registry.transaction() as connection:
            return _rows(await connection.execute(select(*FIELDS).where(which)))

    async def erase(self, marker: str) -> None:
        """Removes every row about a voice that is gone or never was."""
        async with self._registry.transaction() as connection:
            await connection.execute(calls.delete().where(calls.c.marker == marker))
            await connection.execute(
                voices.delete().where(voices.c.marker == marker, voices.c.state.in_(("gone", "failed")))
            )

    async def drop_closed(self, *, before: float) -> int:
        """Removes rows of voices that were closed before then; says how many."""
        gone = voices.c.state.in_(("gone", "failed"))
        async with self._registry.transaction() as connection:
            return (
                await connection.execute(voices.delete().where(gone, voices.c.closed_at < before))
            ).rowcount

    async def known(self, markers: list[str]) -> dict[str, VoiceRow]:
        """The rows that there are of these markers."""
        async with self._registry.transaction() as connection:
            rows = _rows(await connection.execute(select(*FIELDS).where(voices.c.marker.in_(markers))))
        return {row.marker: row for row in rows}

    async def ready(self) -> list[VoiceRow]:
        """Every voice that should be at the provider."""
        async with self._registry.transaction() as connection:
            return _rows(await connection.execute(select(*FIELDS).where(voices.c.state == "ready")))


async def active(connection: AsyncConnection, caller: str) -> VoiceRow | None:
    """The caller's voice, ready or on its way."""
    return _row(await connection.execute(select(*FIELDS).where(voices.c.caller == caller, ACTIVE)))


async def of_number(connection: AsyncConnection, number: str) -> VoiceRow | None:
    """The newest voice of the one person who is known by this number; None where there are more.

    Whoever is still known counts, also without a voice.
    """
    of_number = voices.c.number == number
    persons = select(voices.c.person).where(of_number).distinct().limit(2).subquery()
    only_one = select(func.count()).select_from(persons).scalar_subquery() == 1
    wanted = select(*FIELDS).where(of_number, voices.c.state == "ready", only_one)
    return _row(await connection.execute(wanted.order_by(voices.c.created_at.desc()).limit(1)))


async def _of_call(connection: AsyncConnection, call_id: str) -> VoiceRow | None:
    """The voice that a call already has. Locks the call, so that it gets no second one meanwhile."""
    marker = (
        await connection.execute(select(calls.c.marker).where(calls.c.id == call_id).with_for_update())
    ).scalar_one_or_none()
    if marker is None:
        return None
    return await row_of(connection, marker)


async def row_of(connection: AsyncConnection, marker: str) -> VoiceRow | None:
    """The voice of a marker, if it is ready or on its way."""
    return _row(await connection.execute(select(*FIELDS).where(voices.c.marker == marker, ACTIVE)))


def _in_call(busy_since: float) -> ColumnElement[bool]:
    return (
        select(calls.c.id)
        .where(calls.c.marker == voices.c.marker, calls.c.ended_at.is_(None), calls.c.begun_at > busy_since)
        .exists()
    )


def _row(result: object) -> VoiceRow | None:
    found = result.one_or_none()  # type: ignore[attr-defined]
    return None if found is None else VoiceRow(**found._mapping)


def _rows(result: object) -> list[VoiceRow]:
    return [VoiceRow(**found._mapping) for found in result]  # type: ignore[attr-defined]
