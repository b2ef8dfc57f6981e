"""Who is calling, and how they are named and greeted."""

import re
import unicodedata

import msgspec
import phonenumbers

__all__ = ["Caller", "greeting", "identity", "voice_label"]

LABEL_LENGTH = 40


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of the caller. A part that is not known is empty."""

    name: str = ""
    date_of_birth: str = ""
    phone_number: str = ""


def identity(caller: Caller, sample_digest: str) -> tuple[str, str, str, str]:
    """Equal for two requests exactly when they come from one caller.

    The number counts in E.164 form where it parses as such, the name without regard to case. Without
    a number the sample joins in, because many share a name.
    """
    number = caller.phone_number.strip()
    try:
        parsed = phonenumbers.parse(number, None)
        number = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    except phonenumbers.NumberParseException:
        pass
    return (
        number,
        caller.name.strip().casefold(),
        caller.date_of_birth.strip(),
        "" if number else sample_digest,
    )


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
