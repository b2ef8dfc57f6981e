"""Who is calling, and how they are named and greeted."""

import hmac
import re
import unicodedata
from typing import Literal

import msgspec

from callerid import e164, holds_lost, identify_person, spaced, spoken

__all__ = ["CallName", "Caller", "ConversationMismatch", "Identities", "Identity", "greeting", "voice_label"]

CallName = Literal["conversation_id", "call_sid", "sip_call_id"]

LABEL_LENGTH = 40


class ConversationMismatch(Exception):
    """This agent and conversation were asked about before, for another caller. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("This conversation was asked about for another caller; send one of its own.")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of the caller. A part that is not known is empty."""

    name: str = ""
    date_of_birth: str = ""
    phone_number: str = ""
    consent: str = ""
    """The reference of the consent to a clone. It tells no caller from another."""

    reference: str = ""
    """What the sender calls the voice. It tells no caller from another, either."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a caller is, as hashes that tell nobody else."""

    caller: str
    number: str | None
    person: str
    """The same for every sample and every call of one caller, whatever `reuse` says."""

    stated: str
    """Whom the request states: number, name and date of birth, whatever the sample."""


class Identities:
    """Tells one caller from another by keyed hashes.

    `reuse` says when a voice is used again: for the same `caller`, for the same caller with the same
    `sample`, or `never` in a second call. National forms of numbers are read as numbers of `region`.
    """

    def __init__(
        self, key: bytes, reuse: Literal["caller", "sample", "never"], *, region: str | None = None
    ) -> None:
        self._key = key
        self._reuse = reuse
        self.region = region

    def needs_sample(self, caller: Caller) -> bool:
        """Whether the caller cannot be identified without the digest of the sample."""
        return self._reuse == "sample" or not _is_told(caller, e164(caller.phone_number, self.region))

    def identify(self, caller: Caller, *, sample_digest: str, call_id: str) -> Identity:
        """Equal for two requests exactly when they come from one caller.

        Numbers are compared in E.164 form, names without regard to case, spaces and how their letters are
        encoded. Where what is said tells nobody from everybody else, the sample is part of the identity.
        """
        number = e164(caller.phone_number, self.region)
        told = _is_told(caller, number)
        parts = [*identify_person(number, caller.name, caller.date_of_birth)]
        if self._reuse == "sample" or not told:
            parts.append(sample_digest)
        if self._reuse == "never":
            parts.append(call_id)
        stated = self._hash("caller", *parts[:3])
        person = stated if told else self._hash("caller", *parts[:3], sample_digest)
        return Identity(
            caller=self._hash("caller", *parts),
            number=self._hash_of_number(number),
            person=person,
            stated=stated,
        )

    def row_hashes(self, caller: Caller) -> tuple[str | None, str | None]:
        """The hashes to find a caller's rows by: the person's or, with a number alone, the number's."""
        if caller.name or caller.date_of_birth:
            return self.person_hash(caller), None
        return None, self.number_hash(caller.phone_number)

    def person_hash(self, caller: Caller) -> str:
        """The hash of the person with this number, name and date of birth."""
        return self.identify(caller, sample_digest="", call_id="").person

    def page_seal(self, *parts: str) -> str:
        """A hash that proves that we issued a page of a list, and for which list."""
        return self._hash("page", *parts)[:32]

    @property
    def numbers_find_voices(self) -> bool:
        """Whether a call may have the voice of the only caller known by its number."""
        return self._reuse != "never"

    def number_hash(self, phone_number: str) -> str | None:
        """The hash of a phone number, None for no number."""
        return self._hash_of_number(e164(phone_number, self.region))

    def _hash_of_number(self, number: str | None) -> str | None:
        return None if number is None else self._hash("number", number)

    def call_id(self, agent_id: str, kind: CallName, name: str, *, number: str = "") -> str:
        """Our own id of a call, the same in every process and after a restart.

        A conversation, a `call_sid` and a `sip_call_id` of the same text are three calls. Nobody without the
        key can compute the id.
        """
        return f"call_{self._hash('call', agent_id, kind, name, number)[:24]}"

    def request_key(self, client: str, request_id: str) -> str:
        """The hash of a client's own id for a request. Two clients may use the same id."""
        return self._hash("request", client, request_id)

    def content_hash(self, method: str, caller: Caller, *, sample_digest: str) -> str:
        """The hash of what a request asks for: equal for two requests exactly when they say the same."""
        told = (caller.name, caller.date_of_birth, caller.phone_number, caller.consent, caller.reference)
        return self._hash("content", method, *told, sample_digest)

    def _hash(self, *parts: str) -> str:
        # Lengths in front, so that two lists of parts never give the same text.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._key, text.encode(), "sha256").hex()


def _is_told(caller: Caller, number: str | None) -> bool:
    """Whether what is said of a caller tells them from everybody else.

    Many people share a name. Several may share a number, and their names may be equal once the characters are
    lost in which they differ.
    """
    return number is not None and not holds_lost(caller.name) and not holds_lost(caller.date_of_birth)


def greeting(template: str, name: str) -> str:
    """The greeting for a caller.

    `{name}` is the caller's name; without a name it is dropped, with its punctuation. `{name|friend}` is the
    name or "friend". Braces in a name are dropped, since an agent reads `{{...}}` as a variable of its own.
    """
    name = spoken(name.replace("{", "").replace("}", ""))
    if name:
        return re.sub(r"\{name(?:\|[^{}]*)?\}", lambda _: name, template)
    sentence = re.sub(r"\{name\|([^{}]*)\}", r"\1", template)
    opened = re.sub(r"^\s*\{name\}[\s,;:.!?]*", "", sentence)
    sentence = opened if opened == sentence else opened[:1].upper() + opened[1:]
    # "Goedemorgen, {name}!" loses the comma too; "Hallo {name}, fijn" keeps the one that follows.
    sentence = re.sub(r"\s*,?\s*\{name\}(?=\s*(?:[,;:.!?]|$))", "", sentence)
    return re.sub(r"\s*\{name\}", "", sentence).strip()


def voice_label(name: str) -> str:
    """The name as the first part of a voice's name: letters with their marks, digits, "-" and "_"."""
    words: list[str] = []
    for word in spaced(name).split():
        kept = ""
        for character in word:
            # A mark belongs to the letter before it; a mark without a letter is no part of a name.
            marks = kept != "" and unicodedata.category(character).startswith("M")
            if character.isalnum() or character == "-" or marks:
                kept += character
        words.append(kept)
    return "_".join(word for word in words if word)[:LABEL_LENGTH].strip("_-") or "Caller"
