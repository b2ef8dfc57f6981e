"""A voice, as the calls that use it and the clients that look at it see it."""

import msgspec

from cloner.registry import VoiceRow, VoiceView, reasons

__all__ = ["MADE_OUT_SECONDS", "Voice", "voice_of", "voice_seen"]

# After so many seconds it is known whether a create without an answer has made a voice.
MADE_OUT_SECONDS = 10.0


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's voice at the provider. Times are Unix seconds."""

    marker: str
    voice_id: str
    name: str
    created: float
    consent: str
    """The reference of the consent to the clone; empty if none was given."""

    consented: float | None
    reference: str
    """What a sender calls it; empty where none does."""

    state: str
    """As in the registry: intended, ready, failed, deleting or gone."""

    reason: str | None = None
    """Why it failed, was given up or is gone."""

    used: float | None = None
    """When a call last used it; None where that was not read."""

    expires: float | None = None
    """When it is deleted if no call uses it before; None if it does not expire, or that was not read."""


def voice_of(row: VoiceRow) -> Voice:
    """The voice of a row, as it is or was while ready."""
    return _voice(row, state="ready")


def voice_seen(view: VoiceView, *, keep_seconds: float | None, now: float) -> Voice:
    """The voice as it stands, kept for `keep_seconds` after its last call, or for good if that is None."""
    state = view.state
    if (
        state == "failed"
        and view.reason == reasons.UNANSWERED
        and (view.closed_at or 0) > now - MADE_OUT_SECONDS
    ):
        state = "intended"
    expires = None
    if state == "ready" and keep_seconds is not None and not view.in_call:
        last = max(view.used_at, view.called_at or 0.0)
        expires = max(last + keep_seconds, view.kept_until)
    return _voice(
        view,
        state=state,
        reason=None if state in ("intended", "ready") else view.reason,
        used=None if state in ("intended", "failed") else view.used_at,
        expires=expires,
    )


def _voice(
    known: VoiceRow | VoiceView,
    *,
    state: str,
    reason: str | None = None,
    used: float | None = None,
    expires: float | None = None,
) -> Voice:
    return Voice(
        marker=known.marker,
        voice_id=known.voice_id or "",
        name=known.name,
        created=known.created_at,
        consent=known.consent,
        consented=known.consent_at,
        reference=known.client_reference,
        state=state,
        reason=reason,
        used=used,
        expires=expires,
    )
