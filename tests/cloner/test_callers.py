import pytest

from cloner.callers import Caller, greeting, identity, voice_label


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
    ],
)
def test_voice_label(name: str, expected: str) -> None:
    """Keeps what can stand in the name of a voice."""
    assert expected == voice_label(name)


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
        ({"phone_number": " ext 12 "}, {"phone_number": "ext 12"}, True),
    ],
)
def test_identity_with_a_number(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    """Number, name and date of birth together tell callers apart; the sample does not matter."""
    assert same == (identity(Caller(**one), "sample 1") == identity(Caller(**other), "sample 2"))


@pytest.mark.parametrize(("other_sample", "same"), [("sample 1", True), ("sample 2", False)])
def test_identity_without_a_number(other_sample: str, same: bool) -> None:
    """Without a number, callers of one name are told apart by their sample."""
    assert same == (identity(Caller(name="Ivan"), "sample 1") == identity(Caller(name="Ivan"), other_sample))
