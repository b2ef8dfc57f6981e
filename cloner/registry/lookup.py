"""How a voice is found, within somebody's transaction."""

import msgspec
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloner.registry.schema import ACTIVE, calls, voices

__all__ = [
    "FIELDS",
    "VoiceRow",
    "active",
    "in_call",
    "of_call",
    "of_number",
    "persons_of",
    "row_of",
    "voice_row",
    "voice_rows",
]

FIELDS = (
    voices.c.marker, voices.c.state, voices.c.caller, voices.c.person, voices.c.replaces,
    voices.c.greeting_name, voices.c.voice_id, voices.c.name, voices.c.created_at, voices.c.checked_at,
    voices.c.owner, voices.c.alive_at, voices.c.tries, voices.c.reason, voices.c.traceparent,
    voices.c.consent, voices.c.consent_at,
)  # fmt: skip


class VoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One voice, or the intent to make one."""

    marker: str
    state: str
    caller: str
    person: str
    replaces: str | None
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


async def active(connection: AsyncConnection, caller: str) -> VoiceRow | None:
    """The caller's voice, ready or on its way."""
    return voice_row(await connection.execute(select(*FIELDS).where(voices.c.caller == caller, ACTIVE)))


async def of_number(connection: AsyncConnection, number: str) -> VoiceRow | None:
    """The newest voice of the one person who is known by this number; None where there are more.

    Whoever is still known counts, also without a voice.
    """
    of_number = voices.c.number == number
    persons = select(voices.c.person).where(of_number).distinct().limit(2).subquery()
    only_one = select(func.count()).select_from(persons).scalar_subquery() == 1
    wanted = select(*FIELDS).where(of_number, voices.c.state == "ready", only_one)
    return voice_row(await connection.execute(wanted.order_by(voices.c.created_at.desc()).limit(1)))


async def persons_of(connection: AsyncConnection, number: str) -> int:
    """How many persons are known by this number: 0, 1, or 2 for more."""
    persons = select(voices.c.person).where(voices.c.number == number).distinct().limit(2).subquery()
    return (await connection.execute(select(func.count()).select_from(persons))).scalar_one()


async def of_call(connection: AsyncConnection, call_id: str) -> VoiceRow | None:
    """The voice that a call already has. Locks the call, so that it gets no second one meanwhile."""
    marker = (
        await connection.execute(select(calls.c.marker).where(calls.c.id == call_id).with_for_update())
    ).scalar_one_or_none()
    if marker is None:
        return None
    return await row_of(connection, marker)


async def row_of(connection: AsyncConnection, marker: str) -> VoiceRow | None:
    """The voice of a marker, if it is ready or on its way."""
    return voice_row(await connection.execute(select(*FIELDS).where(voices.c.marker == marker, ACTIVE)))


def in_call(busy_since: float) -> ColumnElement[bool]:
    """Whether a call that began since then, and has not ended, has the voice."""
    return (
        select(calls.c.id)
        .where(calls.c.marker == voices.c.marker, calls.c.ended_at.is_(None), calls.c.begun_at > busy_since)
        .exists()
    )


def voice_row(result: object) -> VoiceRow | None:
    """The one row of a result, if there is one."""
    found = result.one_or_none()  # type: ignore[attr-defined]
    return None if found is None else VoiceRow(**found._mapping)


def voice_rows(result: object) -> list[VoiceRow]:
    """The rows of a result."""
    return [VoiceRow(**found._mapping) for found in result]  # type: ignore[attr-defined]
