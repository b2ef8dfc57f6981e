"""Stores callers' consents and their withdrawals; a withdrawal removes the caller's voices."""

import contextlib
from collections.abc import Callable, Iterator

import structlog

from cloner.provider.failures import VoiceNotFound
from cloner.registry import (
    CallerForgotten,
    Consent,
    Store,
    VoiceRow,
    VoiceView,
    consents,
    reasons,
    voice_consents,
)
from cloner.voices.callers import Caller, Identities
from cloner.voices.looking import Looking
from cloner.voices.removal import Removal
from telemetry.tracing import traceparent

__all__ = ["MOST_HISTORY", "Consenting"]

log = structlog.get_logger()

MOST_HISTORY = 100
# How many persons a number alone can mean: nobody shares a telephone with more.
MOST_PERSONS = 1_000


class Consenting:
    """Keeps consents. `now` tells the time, in Unix seconds."""

    def __init__(
        self,
        identities: Identities,
        store: Store,
        looking: Looking,
        removal: Removal,
        *,
        now: Callable[[], float],
    ) -> None:
        self._identities = identities
        self._store = store
        self._looking = looking
        self._removal = removal
        self._now = now

    async def history(self, person: str) -> list[Consent]:
        """The consents and withdrawals of a person, newest first."""
        return await self._store.read(consents.history, person, most=MOST_HISTORY)

    async def give(self, caller: Caller | None, voice_id: str, consent: str) -> list[Consent]:
        """Stores a consent; returns the consents and withdrawals of the person, newest first.

        Raises VoiceNotFound, or CallersSeveral.
        """
        marker = None
        if caller is None:
            view = await self._view(voice_id)
            person, number, marker = view.person, view.number, view.marker
        else:
            person = await self._looking.person(caller, consents=True)
            number = self._identities.number_hash(caller.phone_number)
        with _voice_of_nobody():
            await self._store.write(
                voice_consents.give, person, consent, number=number, marker=marker, now=self._now()
            )
        log.info("consent given")
        return await self.history(person)

    async def withdraw(
        self, caller: Caller | None, voice_id: str, consent: str, *, deadline: float
    ) -> tuple[list[Consent], int, int]:
        """Gives up the voices of a caller, or of everybody who calls from a number that is given alone.

        Returns the consents and withdrawals so far, how many voices were deleted, and how many ElevenLabs
        will delete later. Raises VoiceNotFound.
        """
        persons, left = await self._withdrawn(caller, voice_id, consent)
        for _ in persons:
            log.info("consent withdrawn")
        every = [told for person in persons for told in await self.history(person)]
        every.sort(key=lambda consent: consent.at, reverse=True)
        deleted, pending = await self._removal.remove_all(left, reasons.CONSENT_WITHDRAWN, deadline=deadline)
        return every[:MOST_HISTORY], deleted, pending

    async def _withdrawn(
        self, caller: Caller | None, voice_id: str, consent: str
    ) -> tuple[list[str], list[VoiceRow]]:
        """Stores the withdrawal. Returns whose it is, and the voices that are to be deleted."""
        now = self._now()
        if caller is None:
            view = await self._view(voice_id)
            person, number, marker = view.person, view.number, view.marker
        else:
            person, marker = self._identities.person_hash(caller), None
            number = self._identities.number_hash(caller.phone_number)
            if self._identities.row_hashes(caller)[0] is None and number is not None:
                return await self._store.write(
                    voice_consents.withdraw_all,
                    number,
                    consent,
                    nameless=person,
                    most=MOST_PERSONS,
                    now=now,
                    traceparent=traceparent(),
                )
        with _voice_of_nobody():
            return [person], await self._store.write(
                voice_consents.withdraw,
                person,
                consent,
                number=number,
                marker=marker,
                now=now,
                traceparent=traceparent(),
            )

    async def _view(self, voice_id: str) -> VoiceView:
        view = await self._looking.voice(voice_id)
        if view is None:
            raise VoiceNotFound
        return view


@contextlib.contextmanager
def _voice_of_nobody() -> Iterator[None]:
    """A voice whose person was forgotten is not found."""
    try:
        yield
    except CallerForgotten:
        raise VoiceNotFound from None
