"""Deletes voices, and forgets callers: at ElevenLabs, with what agents were given, and every row."""

from collections.abc import Callable

from cloner.provider.failures import VoiceNotFound
from cloner.registry import Store, VoiceRow, calls, consents, departures, voices
from cloner.voices.callers import Caller, Identities
from cloner.voices.removal import DELETED, FORGOTTEN, Removal

__all__ = ["Erasure"]


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
        """Whether ElevenLabs has the voice no more; else it is used no more, and deleted later.

        Raises VoiceNotFound where it was never one of ours.
        """
        row = await self._store.read(voices.once_by_voice_id, voice_id)
        if row is None:
            raise VoiceNotFound
        await self._store.write(departures.give_up, row.marker, DELETED, now=self._now())
        current = await self._store.read(voices.get, row.marker)
        if current is None or current.state != "deleting":
            return True
        return await self._removal.at_once(current, deadline=deadline)

    async def forget(self, caller: Caller, voice_id: str, *, deadline: float) -> tuple[int, int]:
        """How many voices were deleted, and how many ElevenLabs will delete later.

        A number alone means everybody who calls from it.
        """
        deleted = pending = 0
        for row in await self._rows(caller, voice_id):
            match row.state:
                case "ready" | "deleting":
                    if await self._removed(row, deadline):
                        deleted += 1
                    else:
                        pending += 1
                case "intended":
                    # Whoever creates it will find that nobody wants it, and delete it.
                    await self._store.write(voices.fail, row.marker, FORGOTTEN, now=self._now())
                    await self._store.write(departures.erase, row.marker)
                case _:
                    await self._store.write(departures.erase, row.marker)
            await self._store.write(calls.erase_caller, row.caller)
            await self._store.write(calls.erase_caller, row.person)
            await self._store.write(consents.erase, person=row.person)
        person, number = (None, None) if voice_id else self._identities.named(caller)
        await self._store.write(consents.erase, person=person, number=number)
        if number is not None:
            # Calls of which nothing but the number was known.
            await self._store.write(calls.erase_caller, number)
        return deleted, pending

    async def _rows(self, caller: Caller, voice_id: str) -> list[VoiceRow]:
        if voice_id:
            row = await self._store.read(voices.by_voice_id, voice_id)
            return (
                await self._store.read(voices.of_person_or_number, row.person, None)
                if row is not None
                else []
            )
        return await self._store.read(voices.of_person_or_number, *self._identities.named(caller))

    async def _removed(self, row: VoiceRow, deadline: float) -> bool:
        await self._store.write(departures.forget, row.marker, FORGOTTEN, now=self._now())
        current = await self._store.read(voices.get, row.marker)
        if current is None:
            return True
        return await self._removal.at_once(current, deadline=deadline)
