"""Who is calling, and how they are named and greeted."""

import hashlib
import hmac
import re
import unicodedata
from typing import Literal

import msgspec
import phonenumbers

__all__ = ["CallName", "Caller", "ConversationMismatch", "Identities", "Identity", "greeting", "voice_label"]

CallName = Literal["conversation_id", "call_sid", "sip_call_id"]

LABEL_LENGTH = 40
# How telephone networks and Twilio write "anonymous", "restricted", "blocked", "unknown" and "unavailable".
WITHHELD = frozenset({"266696687", "7378742833", "2562533", "8656696", "86282452253"})


class ConversationMismatch(Exception):
    """The conversation was asked about for another caller. Nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation was asked about for another caller: send each call's own conversation_id."
        )


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of the caller. A part that is not known is empty."""

    name: str = ""
    date_of_birth: str = ""
    phone_number: str = ""
    consent: str = ""
    """The reference of the consent to a clone. It tells no caller from another."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a caller is, in a form that tells nobody else."""

    caller: str
    number: str | None
    person: str
    """The same for every sample and every call of one caller, whatever a voice belongs to."""

    stated: str
    """Whom the request states: number, name and date of birth, whatever the sample."""


class Identities:
    """Tells one caller from another by keyed hashes.

    `reuse` says what a voice belongs to: the `caller`, the caller and the `sample`, or `never` more
    than one call.
    """

    def __init__(self, key: bytes, reuse: Literal["caller", "sample", "never"]) -> None:
        self._key = key
        self._reuse = reuse

    def needs_sample(self, caller: Caller) -> bool:
        """Whether the caller cannot be told without the digest of the sample."""
        return self._reuse == "sample" or not _e164(caller.phone_number)

    def of(self, caller: Caller, *, sample_digest: str, call_id: str) -> Identity:
        """Equal for two requests exactly when they come from one caller.

        The number counts in E.164 form where it parses as such, the name without regard to case.
        Without a number, or with one that was withheld, the sample joins in: many share a name.
        """
        number = _e164(caller.phone_number)
        parts = [number, caller.name.strip().casefold(), caller.date_of_birth.strip()]
        if not number or self._reuse == "sample":
            parts.append(sample_digest)
        if self._reuse == "never":
            parts.append(call_id)
        stated = self._hash("caller", *parts[:3])
        person = stated if number else self._hash("caller", *parts[:3], sample_digest)
        return Identity(
            caller=self._hash("caller", *parts), number=self.number(number), person=person, stated=stated
        )

    def by_number(self, phone_number: str) -> str | None:
        """The hash by which voices are found for a number; None where none may be."""
        return None if self._reuse == "never" else self.number(phone_number)

    def number(self, phone_number: str) -> str | None:
        """The hash of a phone number, None for no number."""
        number = _e164(phone_number)
        return self._hash("number", number) if number else None

    def call_id(self, agent_id: str, kind: CallName, name: str, *, number: str = "") -> str:
        """Our own name for a call, the same in every process and after a restart.

        What a conversation, a `call_sid` and a `sip_call_id` of one text name are three calls. Nobody
        without the key can compute it.
        """
        return f"call_{self._hash('call', agent_id, kind, name, number)[:24]}"

    def _hash(self, *parts: str) -> str:
        # Lengths in front, so that no two lists of parts read alike.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _e164(phone_number: str) -> str:
    """The number in one spelling; nothing for one that was withheld, which many callers share."""
    number = phone_number.strip()
    digits = re.sub("[^0-9]", "", number)
    if not digits or digits in WITHHELD:
        return ""
    try:
        parsed = phonenumbers.parse(number, None)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def greeting(template: str, name: str) -> str:
    """The sentence for this caller.

    `{name}` is the caller's name; without one the sentence closes over it, punctuation included.
    `{name|friend}` is the name or "friend". Braces in a name are dropped, since an agent reads
    `{{...}}` as a variable of its own.
    """
    name = " ".join(name.replace("{", "").replace("}", "").split())
    if name:
        return re.sub(r"\{name(?:\|[^{}]*)?\}", lambda _: name, template)
    sentence = re.sub(r"\{name\|([^{}]*)\}", r"\1", template)
    opened = re.sub(r"^\s*\{name\}[\s,;:.!?]*", "", sentence)
    sentence = opened if opened == sentence else opened[:1].upper() + opened[1:]
    # "Goedemorgen, {name}!" loses the comma too; "Hallo {name}, fijn" keeps the one that follows.
    sentence = re.sub(r"\s*,?\s*\{name\}(?=\s*(?:[,;:.!?]|$))", "", sentence)
    return re.sub(r"\s*\{name\}", "", sentence).strip()


def voice_label(name: str) -> str:
    """The caller's name as the first part of a voice's name: letters, digits, "-" and "_"."""
    words = unicodedata.normalize("NFC", name).split()
    text = "_".join("".join(c for c in word if c.isalnum() or c == "-") for word in words)
    return text.strip("_-")[:LABEL_LENGTH] or "Caller"
