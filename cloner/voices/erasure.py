"""Forgets callers: their voices at ElevenLabs, what agents were given of them, and every row."""

import asyncio
from collections.abc import Callable

from cloner.provider.failures import ProviderFailure
from cloner.registry import Store, VoiceRow, calls, voices
from cloner.voices.callers import Caller, Identities
from cloner.voices.removal import FORGOTTEN, Removal

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
                    await self._store.write(voices.erase, row.marker)
                case _:
                    await self._store.write(voices.erase, row.marker)
            await self._store.write(calls.erase_caller, row.caller)
            await self._store.write(calls.erase_caller, row.person)
        _, number = self.named(caller)
        if number is not None:
            # Calls of which nothing but the number was known.
            await self._store.write(calls.erase_caller, number)
        return deleted, pending

    def named(self, caller: Caller) -> tuple[str | None, str | None]:
        """What the rows of a caller carry: the person's hash, or for a number alone that of the number."""
        if caller.name or caller.date_of_birth:
            return self._identities.of(caller, sample_digest="", call_id="").person, None
        return None, self._identities.number(caller.phone_number)

    async def _rows(self, caller: Caller, voice_id: str) -> list[VoiceRow]:
        if voice_id:
            row = await self._store.read(voices.by_voice_id, voice_id)
            return (
                await self._store.read(voices.of_person_or_number, row.person, None)
                if row is not None
                else []
            )
        return await self._store.read(voices.of_person_or_number, *self.named(caller))

    async def _removed(self, row: VoiceRow, deadline: float) -> bool:
        await self._store.write(voices.forget, row.marker, FORGOTTEN, now=self._now())
        current = await self._store.read(voices.get, row.marker)
        if current is None:
            return True
        try:
            async with asyncio.timeout_at(deadline):
                return await self._removal.remove(current, deadline=deadline)
        except (ProviderFailure, TimeoutError):
            return False
