"""Rows of voices: who may create one, what became of it, and who removes it."""

import msgspec
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import IntegrityError

from cloner.registry.database import Registry, unbroken
from cloner.registry.lookup import FIELDS, VoiceRow, active, in_call, of_call, voice_row, voice_rows
from cloner.registry.schema import ACTIVE, calls, voices

__all__ = ["NewVoiceRow", "Voices"]


class NewVoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A voice that is about to be made. `consent` is empty where none was told."""

    marker: str
    caller: str
    replaces: str | None
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
                held = await of_call(connection, call_id)
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
            return voice_row(await connection.execute(select(*FIELDS).where(voices.c.marker == marker)))

    async def by_voice_id(self, voice_id: str) -> VoiceRow | None:
        """The row of a voice, if it is there to be used."""
        async with self._registry.transaction() as connection:
            wanted = select(*FIELDS).where(voices.c.voice_id == voice_id, voices.c.state == "ready")
            return voice_row(await connection.execute(wanted))

    async def marker_of(self, voice_id: str) -> str | None:
        """The marker under which a voice is known, whatever became of it; None if it is none of ours."""
        async with self._registry.transaction() as connection:
            wanted = select(voices.c.marker).where(voices.c.voice_id == voice_id)
            return (await connection.execute(wanted)).scalar_one_or_none()

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
            return voice_rows(await connection.execute(wanted))

    async def record(self, marker: str, voice_id: str, *, now: float) -> bool:
        """Makes an intended or failed voice ready; one that somebody else has recorded stays so.

        False if it no longer can be: then nobody will use the voice, and whoever made it removes it.
        """
        this = voices.c.marker == marker
        recorded = and_(voices.c.state == "ready", voices.c.voice_id == voice_id)
        # What failed to replace another voice does not do so later.
        late = and_(voices.c.state == "failed", voices.c.replaces.is_(None))
        change = (
            update(voices)
            .where(this, or_(voices.c.state == "intended", late, recorded))
            .values(
                state="ready", voice_id=voice_id, checked_at=now, used_at=now, reason=None, closed_at=None,
                caller=func.coalesce(voices.c.replaces, voices.c.caller), replaces=None,
            )
        )  # fmt: skip
        replaced = select(voices.c.replaces).where(this, voices.c.state == "intended").scalar_subquery()
        give_up = (
            update(voices)
            .where(voices.c.caller == replaced, voices.c.state == "ready")
            .values(state="deleting", reason="replaced", due_at=now, tries=0)
        )
        async with self._registry.transaction() as connection:
            try:
                async with connection.begin_nested():
                    await connection.execute(give_up)
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
            return voice_rows(await connection.execute(wanted))

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
            change = change.where(~in_call(busy_since))
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
                ~in_call(busy_since),
                func.coalesce(last_end, voices.c.used_at) <= unused_since,
                voices.c.used_at <= unused_since,
                voices.c.kept_until <= now,
            )
            .values(state="deleting", reason="expired", due_at=now, tries=0)
        )
        async with self._registry.transaction() as connection:
            return (await connection.execute(change)).rowcount

    async def least_recently_used(
        self, *, busy_since: float, now: float, kept: bool, replaces: str | None
    ) -> VoiceRow | None:
        """The ready voice that no call uses and that was used the longest ago.

        Those that are kept come last, and only with `kept`, or where it is to be replaced anyway.
        """
        is_kept = voices.c.kept_until > now
        wanted = select(*FIELDS).where(voices.c.state == "ready", ~in_call(busy_since))
        if not kept:
            wanted = wanted.where(~is_kept | (voices.c.caller == replaces))
        wanted = wanted.order_by(is_kept, voices.c.used_at).limit(1)
        async with self._registry.transaction() as connection:
            return voice_row(await connection.execute(wanted))

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
            return voice_row(await connection.execute(change))

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
            return voice_rows(await connection.execute(select(*FIELDS).where(which)))

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
            rows = voice_rows(await connection.execute(select(*FIELDS).where(voices.c.marker.in_(markers))))
        return {row.marker: row for row in rows}

    async def ready(self) -> list[VoiceRow]:
        """Every voice that should be at the provider."""
        async with self._registry.transaction() as connection:
            return voice_rows(await connection.execute(select(*FIELDS).where(voices.c.state == "ready")))
