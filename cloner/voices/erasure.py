"""Deletes voices, and forgets callers: at ElevenLabs, with what agents were given, and every row."""

from collections.abc import Callable

import structlog

from cloner.provider.failures import VoiceNotFound
from cloner.registry import Store, departures, erasing, reasons, voices
from cloner.voices.callers import Caller, Identities
from cloner.voices.removal import Removal, log_given_up
from telemetry.tracing import traceparent

__all__ = ["Erasure"]

log = structlog.get_logger()


class Erasure:
    """Erases what is known of callers. `now` tells the time, in Unix seconds."""

    def __init__(
        self,
        identities: Identities,
        store: Store,
        removal: Removal,
        *,
        now: Callable[[], float],
    ) -> None:
        self._identities = identities
        self._store = store
        self._removal = removal
        self._now = now

    async def delete(self, voice_id: str, *, deadline: float) -> bool:
        """Deletes a voice. False if ElevenLabs still has it: nobody uses it any more; it is deleted later.

        Raises VoiceNotFound if it was never one of ours.
        """
        row = await self._store.read(voices.find_by_voice_id, voice_id)
        if row is None:
            raise VoiceNotFound
        if await self._store.write(departures.delete, row.marker, now=self._now(), traceparent=traceparent()):
            log_given_up(row.voice_id, reasons.DELETED)
        current = await self._store.read(voices.get, row.marker)
        if current is None or current.state != "deleting":
            return True
        return await self._removal.remove_now(current, deadline=deadline)

    async def forget(self, caller: Caller, voice_id: str, *, deadline: float) -> tuple[int, int]:
        """Forgets a caller. Returns how many voices were deleted, and how many ElevenLabs will delete later.

        A number alone means everybody who calls from it.
        """
        if voice_id:
            left = await self._store.write(
                erasing.forget_person_of_voice, voice_id, now=self._now(), traceparent=traceparent()
            )
        else:
            person, number = self._identities.row_hashes(caller)
            left = await self._store.write(
                erasing.forget,
                person,
                number,
                persons_number=None if person is None else self._identities.number_hash(caller.phone_number),
                now=self._now(),
                traceparent=traceparent(),
            )
        deleted, pending = await self._removal.remove_all(left, reasons.FORGOTTEN, deadline=deadline)
        log.info("caller erased", voices_deleted=deleted, voices_pending=pending)
        return deleted, pending
