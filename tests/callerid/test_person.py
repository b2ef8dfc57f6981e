import pytest

from callerid import identify_person

ADA = identify_person("+31612345601", "Ada Lovelace", "1815-12-10")


@pytest.mark.parametrize(
    ("number", "name", "date_of_birth", "same"),
    [
        ("+31612345601", "  ADA\u00a0lovelace ", " 1815-12-10", True),
        ("+31612345602", "Ada Lovelace", "1815-12-10", False),
        (None, "Ada Lovelace", "1815-12-10", False),
        ("+31612345601", "Ada", "1815-12-10", False),
        ("+31612345601", "Ada Lovelace", "", False),
    ],
)
def test_same_person(number: str | None, name: str, date_of_birth: str, *, same: bool) -> None:
    """Number, name and date of birth together make a person, however the name is written."""
    assert same == (ADA == identify_person(number, name, date_of_birth))
