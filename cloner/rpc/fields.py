"""Reads the fields of a request, and reports everything that is wrong with them at once."""

from precall.v1 import cloning_pb2 as pb

from callerid import (
    MAX_BIRTH,
    MAX_CONSENT,
    MAX_CONVERSATION_ID,
    MAX_ID,
    MAX_NAME,
    conversation,
    fault_of,
    identifier,
    longest,
)
from cloner.rpc.status import FieldInvalid
from cloner.voices.callers import Caller, Identities

__all__ = ["Fields"]

MAX_REFERENCE = 128
NO_NUMBER = (
    "is not a phone number: send it with its country, as +31612345678 (a national one needs DEFAULT_REGION)"
)


class Fields:
    """The fields of one request. A faulty field is read as empty; `check` reports all faults."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._faults: list[tuple[str, str]] = []

    def check(self) -> None:
        """Raises FieldInvalid where anything was wrong."""
        if self._faults:
            raise FieldInvalid(*self._faults)

    def wrong(self, field: str, problem: str) -> None:
        """Reports what is wrong with a field."""
        self._faults.append((field, problem))

    def id(self, field: str, text: str, *, required: bool = True) -> str:
        """An id of ElevenLabs' or of the sender's own."""
        if not text and not required:
            return ""
        if not text:
            self.wrong(field, "is required")
        elif identifier(text) is None:
            self.wrong(field, f'may hold letters, digits, "_" and "-", and at most {MAX_ID} of them')
        return text

    def conversation(self, field: str, text: str, *, required: bool = False) -> str:
        """The id of a conversation, or of a telephone call."""
        found, text = conversation(text), text.strip()
        if required and not text:
            self.wrong(field, "is required")
        elif text and found is None:
            self.wrong(field, f"may hold at most {MAX_CONVERSATION_ID} printable characters")
        return found or text

    def text(self, field: str, text: str, *, most: int) -> str:
        """Printable text without the spaces around it."""
        text = text.strip()
        if len(text) > most:
            self.wrong(field, f"may hold at most {most} characters")
        elif not text.isprintable():
            self.wrong(field, "may hold printable characters only")
        return text

    def sample(self, sample: bytes) -> bytes:
        """The recording."""
        if not sample:
            self.wrong("sample", "is required")
        return sample

    def consent(self, consent: str, *, required: bool = False) -> str:
        """Where a consent is on record."""
        said = self._said("consent", consent, most=MAX_CONSENT)
        if required and not said:
            self.wrong("consent", "is required")
        return said

    def reference(self, reference: str) -> str:
        """What the sender calls a voice."""
        return self.text("client_reference", reference, most=MAX_REFERENCE)

    def caller(
        self, caller: pb.Caller, consent: str = "", reference: str = "", *, numbered: bool = False
    ) -> Caller:
        """Who is calling; with `numbered` a phone number is required."""
        whom = Caller(
            consent=self.consent(consent),
            reference=self.reference(reference),
            name=self._said("caller.name", caller.name, most=MAX_NAME),
            date_of_birth=self._said("caller.date_of_birth", caller.date_of_birth, most=MAX_BIRTH),
            phone_number=self.number("caller.phone_number", caller.phone_number),
        )
        if numbered:
            self.numbered(whom)
        return whom

    def numbered(self, caller: Caller) -> None:
        """Reports a caller without a valid number, which could mean everybody who has no number."""
        if not caller.phone_number:
            self.wrong("caller.phone_number", "is required")
        elif self._identities.number_hash(caller.phone_number) is None:
            self.wrong("caller.phone_number", NO_NUMBER)

    def number(self, field: str, text: str) -> str:
        """A phone number as somebody wrote it; it may turn out to be no number."""
        return self._said(field, text, most=longest(text.strip()))

    def _said(self, field: str, text: str, *, most: int) -> str:
        """A text about a person."""
        text = text.strip()
        if (fault := fault_of(text, most=most)) is not None:
            self.wrong(field, fault)
        return text
