"""Finds voices at ElevenLabs by their markers, and deletes a voice that nobody will use.

A marker is written in the labels and the description of a voice. It holds the name of the deployment, by
which our voices are told from others.
"""

import asyncio
import re

import structlog

from cloner.provider import failures
from cloner.provider.elevenlabs import ElevenLabs, ListedVoice
from cloner.provider.failures import ProviderFailure
from cloner.registry import RegistryUnavailable, Store, VoiceRow, reasons, voices
from telemetry.parts import part

__all__ = ["Marked", "NotLookedFor", "VoiceNeedsVerification", "marker_in"]

log = structlog.get_logger()

MARKER_LABEL = "precall"
DEPLOYMENT_LABEL = "precall_deployment"
MARKER = re.compile(r"[a-z0-9-]{1,128}")
# When the marker of a create without an answer is looked for, in seconds after the failure.
LOOKS = (0.0, 0.5, 1.5)
SEARCH_SECONDS = 20.0
DELETE_SECONDS = 60.0


class VoiceNeedsVerification(Exception):
    """The provider wants the voice to be verified before it may speak. It is removed again."""

    reason = reasons.NEEDS_VERIFICATION

    def __init__(self) -> None:
        super().__init__("ElevenLabs wants this voice verified before it may speak; it was removed again.")


class NotLookedFor(Exception):
    """Nobody can say whether a voice carries the marker. A create of that marker may not be sent again."""


class Marked:
    """Voices of the deployment of the store."""

    def __init__(self, provider: ElevenLabs, store: Store) -> None:
        self._provider = provider
        self._store = store

    def labels(self, marker: str) -> dict[str, str]:
        """What the labels of a new voice with the marker say."""
        return {MARKER_LABEL: marker, DEPLOYMENT_LABEL: self._store.name}

    async def look_for(self, marker: str) -> ListedVoice | None:
        """The voice that carries the marker. A list may lag behind, so it is searched for two seconds.

        Raises NotLookedFor if ElevenLabs has answered no search, or asks for a long pause before the next.
        """
        answered, asked = False, 0.0
        for pause in LOOKS:
            if wait := max(pause, asked):
                with part("pause"):
                    await asyncio.sleep(wait)
            try:
                deadline = asyncio.get_running_loop().time() + SEARCH_SECONDS
                found = await self.find(marker, deadline=deadline)
            except ProviderFailure as failure:
                log.warning("marker not looked for", reason=failure.reason)
                asked = failure.retry_after or 0.0
                if asked > SEARCH_SECONDS:
                    raise NotLookedFor from None
                continue
            answered, asked = True, 0.0
            if found is not None:
                return found
        if not answered:
            raise NotLookedFor
        return None

    async def find(self, marker: str, *, deadline: float) -> ListedVoice | None:
        """The voice that a list has under the marker, whatever deployment it names.

        Raises a ProviderFailure if there is no answer.
        """
        page = await self._provider.search_voices(marker, deadline=deadline)
        for voice in page.voices:
            if marker_in(voice) == marker or marker in (voice.description or ""):
                return voice
        return None

    async def is_there(self, row: VoiceRow, *, deadline: float) -> bool:
        """Whether ElevenLabs has the voice of a ready row. Raises a ProviderFailure if there is no answer."""
        try:
            await self._provider.get_voice(row.voice_id or "", deadline=deadline)
        except failures.VoiceNotFound:
            return False
        return True

    async def belongs_elsewhere(self, voice_id: str, marker: str) -> bool:
        """Whether a voice that ElevenLabs returned for this marker belongs to somebody else."""
        if not await self._store.read(voices.belongs_elsewhere, voice_id, marker=marker):
            return False
        log.error("ElevenLabs names a voice of somebody else; it is left alone", voice_id=voice_id)
        return True

    async def discard(self, voice_id: str, marker: str, reason: str) -> None:
        """Deletes a voice that nobody will use. If that fails, reconciliation finds it.

        If another process has recorded it meanwhile, it is left: an agent may have it.
        """
        try:
            row = await self._store.read(voices.get, marker)
            recorded = row is not None and row.voice_id == voice_id
            if recorded or await self.belongs_elsewhere(voice_id, marker):
                return
            deadline = asyncio.get_running_loop().time() + DELETE_SECONDS
            await self._provider.delete_voice(voice_id, deadline=deadline)
            log.info("voice deleted", voice_id=voice_id, reason=reason)
        except (ProviderFailure, RegistryUnavailable) as failure:
            log.warning("voice not deleted yet", voice_id=voice_id, reason=failure.reason)


def marker_in(voice: ListedVoice, deployment: str | None = None) -> str | None:
    """The marker that a voice carries, if it has the right form and, if given, is of the `deployment`."""
    labels = voice.labels or {}
    if deployment is not None and labels.get(DEPLOYMENT_LABEL) != deployment:
        return None
    marker = labels.get(MARKER_LABEL)
    return marker if marker and MARKER.fullmatch(marker) else None
