"""What a voice is to those who use it."""

from datetime import UTC, datetime

import msgspec

from cloner.registry import VoiceRow

__all__ = ["Voice", "voice_of"]


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's voice at the provider."""

    marker: str
    voice_id: str
    name: str
    created: datetime
    consent: str
    """The reference of the consent that it was cloned under; empty where none was told."""

    consented: datetime | None


def voice_of(row: VoiceRow) -> Voice:
    """The voice of a row that is ready."""
    return Voice(
        marker=row.marker,
        voice_id=row.voice_id or "",
        name=row.name,
        created=datetime.fromtimestamp(row.created_at, UTC),
        consent=row.consent,
        consented=datetime.fromtimestamp(row.consent_at, UTC) if row.consent_at is not None else None,
    )
