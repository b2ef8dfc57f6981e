import re

import pytest

from cloner.voices.callers import Caller, Identities, greeting, voice_label


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("Hallo {name}, fijn dat je belt!", "Ivan", "Hallo Ivan, fijn dat je belt!"),
        ("Hallo {name}, fijn dat je belt!", "", "Hallo, fijn dat je belt!"),
        ("Hallo {name}, fijn dat je belt!", "   ", "Hallo, fijn dat je belt!"),
        ("Goedemorgen, {name}!", "", "Goedemorgen!"),
        ("{name}, welkom!", "", "Welkom!"),
        ("{name}, welkom!", "Zoë", "Zoë, welkom!"),
        ("Hi {name} how are you?", "", "Hi how are you?"),
        ("Welcome back, {name}", "", "Welcome back"),
        ("Good day {name|friend}.", "", "Good day friend."),
        ("Good day {name|friend}.", "Ivan", "Good day Ivan."),
        ("Welkom!", "Ivan", "Welkom!"),
        ("Hi {name}!", "{{secret_variable}}", "Hi secret_variable!"),
        ("Hi {name}!", "Jan\n  Piet", "Hi Jan Piet!"),
        ("Hi {name}!", r"\1 {name}", r"Hi \1 name!"),
        ("Hi {name}!", "Zoe\u0308", "Hi Zo\u00eb!"),
        ("Hi {name}!", "\u5c71\u7530\u3000\u592a\u90ce", "Hi \u5c71\u7530 \u592a\u90ce!"),
        ("Hi {name}!", "\U0001f468\u200d\U0001f469", "Hi \U0001f468\u200d\U0001f469!"),
        ("Hallo {name}, fijn!", "\u200b\u00a0", "Hallo, fijn!"),
    ],
)
def test_greeting(template: str, name: str, expected: str) -> None:
    """Greets by name, and without one leaves no hole in the sentence."""
    assert expected == greeting(template, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Ivan", "Ivan"),
        ("Jean-Luc  Picard", "Jean-Luc_Picard"),
        ("Zoë", "Zoë"),
        ("", "Caller"),
        ("../../etc", "etc"),
        ('"; DROP', "DROP"),
        ("x" * 100, "x" * 40),
        ("🙂", "Caller"),
        ("Anna 🙂 \U0001f468\u200d\U0001f469 de\u00a0Wit", "Anna_de_Wit"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("हिन्दी", "हिन्दी"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"),
        ("\u0301\u20dd", "Caller"),
        ("\u202eanna\u202c", "anna"),
        ("x" * 39 + " y", "x" * 39),
    ],
)
def test_voice_label(name: str, expected: str) -> None:
    """Keeps what can stand in the name of a voice."""
    assert expected == voice_label(name)


KEY = b"key-of-the-hashes"


def told(reuse: str = "caller", sample: str = "sample 1", call_id: str = "call 1", **caller: str) -> str:
    """The identity of a caller."""
    return Identities(KEY, reuse).identify(Caller(**caller), sample_digest=sample, call_id=call_id).caller


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"phone_number": "+31 6 1234 5678"}, {"phone_number": "+31612345678"}, True),
        (
            {"phone_number": "+31612345678", "name": "IVAN "},
            {"phone_number": "+31612345678", "name": "Ivan"},
            True,
        ),
        (
            {"phone_number": "+31612345678", "name": "Ivan"},
            {"phone_number": "+31612345678", "name": "Jan"},
            False,
        ),
        ({"phone_number": "+31612345678"}, {"phone_number": "+31612345679"}, False),
        (
            {"phone_number": "+31612345678"},
            {"phone_number": "+31612345678", "date_of_birth": "1.1.2000"},
            False,
        ),
        ({"phone_number": "ext 12"}, {"phone_number": "ext 12"}, False),
        ({"phone_number": "sip:anonymous@203.0.113.7"}, {"phone_number": "sip:anonymous@203.0.113.7"}, False),
        ({"phone_number": "+10000000000"}, {"phone_number": "+10000000000"}, False),
        (
            {"phone_number": "+31612345678", "name": "Zo\u00eb"},
            {"phone_number": "+31612345678", "name": "ZOE\u0308"},
            True,
        ),
        (
            {"phone_number": "+31612345678", "name": "straße"},
            {"phone_number": "+31612345678", "name": "STRASSE"},
            True,
        ),
        (
            {"phone_number": "+31612345678", "name": "Anna\u00a0\u3000Maria"},
            {"phone_number": "0031612345678", "name": " anna maria\u2003"},
            True,
        ),
        (
            {"phone_number": "+31612345678", "date_of_birth": "1\u00a0Jan  2000 "},
            {"phone_number": '"A" <sip:+31612345678@host>', "date_of_birth": "1 Jan 2000"},
            True,
        ),
        ({"phone_number": "1", "name": "2"}, {"phone_number": "1", "name": "", "date_of_birth": "2"}, False),
    ],
)
def test_identity_with_a_number(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    """Number, name and date of birth together tell callers apart; sample and call do not matter."""
    assert same == (told(**one) == told(sample="sample 2", call_id="call 2", **other))


@pytest.mark.parametrize(("other_sample", "same"), [("sample 1", True), ("sample 2", False)])
def test_identity_without_a_number(other_sample: str, same: bool) -> None:
    """Without a number, callers of one name are told apart by their sample."""
    assert same == (told(name="Ivan") == told(name="Ivan", sample=other_sample))


@pytest.mark.parametrize(
    ("reuse", "sample", "call_id", "same"),
    [
        ("caller", "sample 2", "call 2", True),
        ("sample", "sample 1", "call 2", True),
        ("sample", "sample 2", "call 1", False),
        ("never", "sample 1", "call 1", True),
        ("never", "sample 1", "call 2", False),
    ],
)
def test_reuse(reuse: str, sample: str, call_id: str, same: bool) -> None:
    """What a voice belongs to is the operator's choice."""
    one = told(reuse, phone_number="+31612345678")
    other = told(reuse, sample, call_id, phone_number="+31612345678")

    assert same == (one == other)


def test_identity_tells_nobody_else() -> None:
    """A hash needs its key: with another one it is another."""
    caller = Caller(phone_number="+31612345678")
    hashes = {
        Identities(key, "caller").identify(caller, sample_digest="", call_id="").caller
        for key in (b"key 1", b"key 2")
    }

    assert 2 == len(hashes)
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)


def test_region() -> None:
    """A national form is a number where its country is known, and else nobody's."""
    dutch, anywhere = (Identities(KEY, "caller", region=region) for region in ("NL", None))

    assert (
        dutch.number_hash("06 12345678")
        == dutch.number_hash("+31612345678")
        == anywhere.number_hash("+31612345678")
    )
    assert anywhere.number_hash("06 12345678") is None


def test_number() -> None:
    """A number is one number however it is written, and no number has no hash."""
    identities = Identities(KEY, "caller")

    assert identities.number_hash("+31 6 12345678") == identities.number_hash("+31612345678")
    assert identities.number_hash("  ") is None
