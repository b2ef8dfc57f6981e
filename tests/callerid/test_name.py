import unicodedata

import pytest

from callerid import folded, holds_control, spaced, spoken

REAL = {
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Sinhala": "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
    "Hindi": "हिन्दी",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "no-break space": "Anna\u00a0Maria",
    "ideographic space": "山田\u3000太郎",
    "thin space": "M.\u2009de\u202fWit",
    "line separator": "Anna\u2028Maria\u2029",
    "soft hyphen": "Anna\u00adMaria",
    "right to left": "\u200fאברהם\u200e",
    "override": "\u202eanna\u202c",
    "private use": "\ue000",
    "not assigned": "\u0378",
    "apostrophe": "Zoë van 't Hof-O\u2019Neill",
    "blanks around it": "\tAnna \r\n",
}


@pytest.mark.parametrize("name", REAL.values(), ids=REAL)
def test_real_names(name: str) -> None:
    """Joiners, marks of direction and every kind of space are parts of names."""
    assert not holds_control(name)


@pytest.mark.parametrize(
    "name",
    ["a\x00b", "a\nb", "a\tb", "a\rb", "a\x1bb", "a\x1fb", "a\x7fb", "a\x80b", "a\x85b", "a\x9fb", "a\ud800b", "\udfff"],
    ids=ascii,
)  # fmt: skip
def test_control_characters(name: str) -> None:
    """Control characters, and what is no character at all, are part of no name."""
    assert holds_control(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ivan", "IVAN"),
        ("Zo\u00eb", "Zoe\u0308"),
        ("ZO\u00cb", "zoe\u0308"),
        ("straße", "STRASSE"),
        ("straße", "STRA\u1e9eE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
        ("\u1fb3", "\u0391\u0399"),
        ("\u03b1\u0345\u0301", "\u03ac\u03b9"),
        ("\u1ec7", "e\u0302\u0323"),
        ("e\u0323\u0302", "e\u0302\u0323"),
        ("\u212bngström", "ångström"),
        ("\ud55c", "\u1112\u1161\u11ab"),
        ("ﬁona", "FIONA"),
        ("Anna Maria", "  anna \u00a0\u3000\u2003 maria\u2028"),
        ("Anna Maria", "Anna\tMaria"),
        ("", "\u00a0\u200b\u3000"),
        ("", "\u3164"),
    ],
)
def test_one_name(one: str, other: str) -> None:
    """Code points, case and spaces make no other person of somebody, and folding again changes nothing."""
    assert folded(one) == folded(other)
    assert folded(one) == folded(folded(one))
    assert unicodedata.is_normalized("NFC", folded(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [("Zoe", "Zoë"), ("Anna Maria", "AnnaMaria"), ("İpek", "ipek"), ("Ivan", "Ivan 2"), ("山田", "太郎"), ("می‌خواهم", "میخواهم")],
)  # fmt: skip
def test_two_names(one: str, other: str) -> None:
    """Other letters are another name."""
    assert folded(one) != folded(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Zoe\u0308", "Zo\u00eb"),
        ("  山田\u3000 太郎 ", "山田 太郎"),
        ("Anna\u2028Maria", "Anna Maria"),
        (REAL["Persian"], REAL["Persian"]),
        (REAL["family"], REAL["family"]),
        ("\u200b\u2060", ""),
        ("\u3164", ""),
        ("\u2800 \u115f\u1160\uffa0", ""),
        ("\u034f\ufe0f", ""),
        ("\u0301 \u093f", ""),
        ("\ufffd\ufffd", ""),
        ("", ""),
        ("\u3164Ivan\ufffd", "\u3164Ivan\ufffd"),
        ("\U0001f170\ufe0f", "\U0001f170\ufe0f"),
        ("\u0645\u064f", "\u0645\u064f"),
    ],
)
def test_spoken(name: str, expected: str) -> None:
    """A name is spoken composed and with single spaces; what cannot be seen is no name."""
    assert expected == spoken(name)


def test_spaced() -> None:
    """A date of birth keeps its case."""
    assert "11 Dec 2007" == spaced("\u00a011  Dec\u30002007 ")
