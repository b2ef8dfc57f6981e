from pathlib import Path

import pytest
from msgspec import Struct

from environment import ApiKey, EnvironmentInvalid, Key, Secret, Token, read


class Settings(Struct, frozen=True, kw_only=True):
    """A secret of each kind."""

    theirs: ApiKey | None = None
    shown: Token | None = None
    shown_list: tuple[Token, ...] = ()
    computed_with: Key | None = None
    computed_with_list: tuple[Key, ...] = ()


GOOD = "a-secret-of-enough-characters"
DAMAGED = {
    "zero-width space": f"{GOOD}\u200b",
    "byte order mark": f"\ufeff{GOOD}",
    "no-break space": f"a\u00a0{GOOD}",
    "line end": f"{GOOD}\n",
    "two lines": f"{GOOD}\n{GOOD}",
    "carriage return": f"{GOOD}\r",
    "line separator": f"{GOOD}\u2028{GOOD}",
    "control": f"{GOOD}\x07",
    "zero": f"{GOOD}\0",
    "bidi mark": f"\u200e{GOOD}",
    "blank letter": f"{GOOD}\u3164",
    "blank symbol": f"{GOOD}\u2800",
    "variation selector": f"{GOOD}\ufe0f",
    "quotes": f'"{GOOD}"',
    "single quotes": f"'{GOOD}'",
    "English quotes": f"\u201c{GOOD}\u201d",
    "single English quotes": f"\u2018{GOOD}\u2019",
    "German quotes": f"\u201e{GOOD}\u201c",
    "single German quotes": f"\u201a{GOOD}\u2018",
    "Polish quotes": f"\u201e{GOOD}\u201d",
    "Swedish quotes": f"\u201d{GOOD}\u201d",
    "French quotes": f"\u00ab{GOOD}\u00bb",
    "Danish quotes": f"\u00bb{GOOD}\u00ab",
    "single French quotes": f"\u2039{GOOD}\u203a",
    "not UTF-8": f"{GOOD}\udcff",
}


@pytest.mark.parametrize("name", ["THEIRS", "SHOWN", "SHOWN_LIST", "COMPUTED_WITH", "COMPUTED_WITH_LIST"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged(name: str, damage: str) -> None:
    """What an editor, a shell or a web page added is refused, named, and not shown."""
    with pytest.raises(EnvironmentInvalid, match=f"^{name} must ") as caught:
        read(Settings, {name: DAMAGED[damage]})

    assert GOOD not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["THEIRS", "SHOWN", "SHOWN_LIST"])
def test_what_no_header_carries(name: str) -> None:
    """A secret that goes into a header is printable ASCII."""
    with pytest.raises(EnvironmentInvalid, match=f"^{name} must be printable ASCII"):
        read(Settings, {name: "пароль-на-шестнадцать"})


@pytest.mark.parametrize("name", ["SHOWN", "SHOWN_LIST"])
@pytest.mark.parametrize("word", ["Bearer ", "bearer ", "BEARER  "])
def test_header_instead_of_a_token(name: str, word: str) -> None:
    """The word that a header has before a token is no part of the token."""
    with pytest.raises(
        EnvironmentInvalid, match=f"^{name} must be the token alone, without Bearer before it$"
    ):
        read(Settings, {name: word + GOOD})


def test_letters_of_any_language() -> None:
    """A secret that stays here may be of any letters."""
    settings = read(Settings, {"COMPUTED_WITH": "пароль-на-шестнадцать"})

    assert "пароль-на-шестнадцать" == settings.computed_with.reveal()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SHOWN", "fifteen-letters"),
        ("SHOWN_LIST", f"{GOOD},fifteen-letters"),
        ("COMPUTED_WITH", "fifteen-letters"),
        ("COMPUTED_WITH_LIST", f"fifteen-letters, {GOOD}"),
        ("COMPUTED_WITH", "a b c d e f g h"),
        ("COMPUTED_WITH", "e\u0301" * 15),
    ],
)
def test_too_short(name: str, text: str) -> None:
    """A secret of ours has sixteen characters that can be seen."""
    with pytest.raises(EnvironmentInvalid, match=f"^{name} must be at least 16 characters$"):
        read(Settings, {name: text})


def test_sixteen_will_do() -> None:
    """The sixteenth character is enough, and somebody else's key may be as short as it is."""
    settings = read(Settings, {"SHOWN": "sixteen-letters!", "THEIRS": "k"})

    assert ("sixteen-letters!", "k") == (settings.shown.reveal(), settings.theirs.reveal())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (GOOD.encode(), GOOD),
        (f"{GOOD}\n".encode(), GOOD),
        (f"{GOOD}\r\n".encode(), GOOD),
        (b"\xef\xbb\xbf" + f"{GOOD}\n".encode(), GOOD),
    ],
)
@pytest.mark.parametrize("name", ["THEIRS", "SHOWN", "COMPUTED_WITH"])
def test_file(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    """A byte order mark and one line end are no part of what a file says."""
    (tmp_path / "secret").write_bytes(content)

    settings = read(Settings, {f"{name}_FILE": str(tmp_path / "secret")})

    assert Secret(text) == getattr(settings, name.lower())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\xef\xbb\xbf\n",
        f"{GOOD}\n\n".encode(),
        f"{GOOD}\n{GOOD}\n".encode(),
        f'"{GOOD}"\n'.encode(),
        GOOD.encode("utf-16"),
        GOOD.encode("utf-16-le"),
        GOOD.encode("utf-16-be"),
        f"{GOOD}é".encode("latin-1"),
        b"x" * 65_537,
    ],
    ids=range(11),
)
@pytest.mark.parametrize("name", ["THEIRS", "SHOWN", "COMPUTED_WITH", "COMPUTED_WITH_LIST"])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    """A file that cannot be right is refused, also where the secret is optional."""
    (tmp_path / "secret").write_bytes(content)

    with pytest.raises(EnvironmentInvalid, match=f"^{name}_FILE ") as caught:
        read(Settings, {f"{name}_FILE": str(tmp_path / "secret")})

    assert GOOD not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["SHOWN={}", "export SHOWN = {}", "export OTHER={}", 'SHOWN="{}"\nOTHER=1\n']
)
def test_line_of_an_environment(tmp_path: Path, line: str) -> None:
    """A line of an .env file in place of the value is no secret: nobody else would write the name."""
    written = line.format(GOOD)
    (tmp_path / "secret").write_text(written)

    for name, value in (("SHOWN", written), ("SHOWN_FILE", str(tmp_path / "secret"))):
        with pytest.raises(EnvironmentInvalid, match=f"^{name} must be the value alone, without its name$"):
            read(Settings, {name: value})


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, and a folder, are told as such."""
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(EnvironmentInvalid, match=r"^SHOWN_FILE cannot be read"):
            read(Settings, {"SHOWN_FILE": str(path)})


def test_both(tmp_path: Path) -> None:
    """Nobody can tell which of two is meant; what is set to nothing is not set."""
    (tmp_path / "secret").write_text(GOOD)
    environ = {"SHOWN_FILE": str(tmp_path / "secret"), "SHOWN": GOOD}

    with pytest.raises(EnvironmentInvalid, match=r"^SHOWN and SHOWN_FILE are both set"):
        read(Settings, environ)
    assert GOOD == read(Settings, environ | {"SHOWN": ""}).shown.reveal()


def test_every_fault_is_named(tmp_path: Path) -> None:
    """Secrets at fault are named together."""
    with pytest.raises(EnvironmentInvalid) as caught:
        read(Settings, {"THEIRS": f"{GOOD}\u200b", "SHOWN": "short", "COMPUTED_WITH_FILE": str(tmp_path)})

    assert ["THEIRS", "SHOWN", "COMPUTED_WITH_FILE"] == [
        told.split()[0] for told in str(caught.value).split("; ")
    ]
