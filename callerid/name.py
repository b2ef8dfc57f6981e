"""Names: which are refused, how they are spoken, and when two are the same.

A name is refused only for control characters. Real names hold characters that join letters (the zero-width
joiners of Persian, Sinhala and emoji), characters that set a direction, and every kind of space.
"""

import unicodedata

__all__ = ["folded", "holds_control", "holds_lost", "spaced", "spoken"]

# Control characters and lone surrogates, which are no characters and cannot be sent on.
REFUSED = frozenset({"Cc", "Cs"})
# Format characters, such as joiners, spaces, and marks without a letter that they belong to: a name with
# nothing else cannot be seen or spoken.
UNSEEN = frozenset({"Cf", "Zs", "Zl", "Zp", "Mn", "Mc", "Me"})
LOST = "\ufffd"
# Neither can these: blanks that Unicode counts as letters or signs, and signs for a lost character.
BLANKS = frozenset(f"\u115f\u1160\u2800\u3164\uffa0\ufffc{LOST}")


def holds_control(text: str) -> bool:
    """Whether the text holds a control character, apart from blanks around it."""
    return any(unicodedata.category(character) in REFUSED for character in text.strip())


def holds_lost(text: str) -> bool:
    """Whether a character of the text was lost on its way: U+FFFD stands for one that could not be read.

    Two texts that differed may be equal now.
    """
    return LOST in text


def spaced(text: str) -> str:
    """The text in NFC, with each run of spaces of any kind as one space, and none around it."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def spoken(name: str) -> str:
    """The name as a greeting uses it; empty for a name that has nothing visible."""
    name = spaced(name)
    return name if any(map(_is_seen, name)) else ""


def folded(name: str) -> str:
    """Equal for two names exactly when they are the same but for case, spaces and code points.

    It is Unicode's canonical caseless matching: decomposed before and after the case is folded, because
    folding may leave marks in another order.
    """
    decomposed = unicodedata.normalize("NFD", spoken(name))
    return spaced(unicodedata.normalize("NFD", decomposed.casefold()))


def _is_seen(character: str) -> bool:
    return character not in BLANKS and unicodedata.category(character) not in UNSEEN
