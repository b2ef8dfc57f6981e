"""Who may call, as it is written down."""

import pytest

from cloner.clients import clients_of
from cloner.settings import Settings
from environment import EnvironmentInvalid, Secret, read

# From sha256sum.
FIRST, FIRST_DIGEST = (
    b"token-of-the-crm-1",
    "6012cb2bac7c6ddbf3886bc2c1655b38683c4d3c552f693861e8904a9d04f955",
)
SECOND, SECOND_DIGEST = (
    b"token-of-the-crm-2",
    "6c10525bb331475b1212f5cf7088472e8ba5c4f4ad7ab97d3f7dd7bfae83bd32",
)
EMPTY_DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_tokens() -> None:
    """A client is known by each of its tokens, and by nothing else; a hash may be written in capitals."""
    clients = clients_of(
        f'[clients.crm]\r\ntoken_sha256 = ["{FIRST_DIGEST}", "{SECOND_DIGEST.upper()}"]\r\n'
        'may = ["calls", "read"]\r\nmax_requests = 8\r\n',
        (Secret("token-of-everything"),),
    )

    for token in (FIRST, SECOND):
        client = clients.known_by(token)
        assert ("crm", {"calls", "read"}, 8) == (client.name, client.may, client.max_requests)
    everything = clients.known_by(b"token-of-everything")
    assert ("default", {"calls", "voices", "read", "erase"}, None) == (
        everything.name,
        everything.may,
        everything.max_requests,
    )
    for stranger in (b"", b"token-of-the-crm", FIRST_DIGEST.encode(), FIRST + b"\n", FIRST.upper()):
        assert clients.known_by(stranger) is None


def test_nobody() -> None:
    """A client may have no token left and no right, as when one has to go at once."""
    clients = clients_of(
        f'[clients.crm]\ntoken_sha256 = []\nmay = []\n[clients.b]\ntoken_sha256 = ["{FIRST_DIGEST}"]\nmay = []'
    )

    assert clients.known_by(SECOND) is None
    assert frozenset() == clients.known_by(FIRST).may


ENTRY = f'token_sha256 = ["{FIRST_DIGEST}"]\n'


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("clients = [", ["CLONER_CLIENTS is not TOML (at end of document)"]),
        ("[clients.crm]\nx = 0x\0", ["CLONER_CLIENTS is not TOML (at line 2, column 6)"]),
        ("[clients.crm]\n[clients.crm]", ["CLONER_CLIENTS is not TOML (at line 2, column 13)"]),
        ("x = " + "[" * 100_000, ["CLONER_CLIENTS is nested too deeply"]),
        ("", ["CLONER_CLIENTS must hold tables [clients.NAME], and nothing else"]),
        ("clients = 1", ["CLONER_CLIENTS must hold tables [clients.NAME], and nothing else"]),
        ("[client.crm]", ["CLONER_CLIENTS must hold tables [clients.NAME], and nothing else"]),
        ("[clients]\n[other]", ["CLONER_CLIENTS must hold tables [clients.NAME], and nothing else"]),
        ("[clients.'a b']", ['CLONER_CLIENTS: the name of client 1 must be letters, digits, "_" and "-", at most 64']),
        (f"[clients.default]\n{ENTRY}may = []", ["CLONER_CLIENTS: the name default is that of CLONER_TOKEN"]),
        ("[clients]\ncrm = 1", ["CLONER_CLIENTS: crm: Expected object, got int"]),
        ("[clients.crm]\nmay = []", ["CLONER_CLIENTS: crm: Object missing required field token_sha256"]),
        (f"[clients.crm]\n{ENTRY}", ["CLONER_CLIENTS: crm: Object missing required field may"]),
        (f"[clients.crm]\n{ENTRY}may = ['delete-2']", ["CLONER_CLIENTS: crm: may: a right must be one of: calls, voices, read, erase"]),
        (f"[clients.crm]\n{ENTRY}may = 'read'", ["CLONER_CLIENTS: crm: may: Expected array, got str"]),
        (f"[clients.crm]\n{ENTRY}may = []\nmax_requests = 0", ["CLONER_CLIENTS: crm: max_requests: Expected int >= 1"]),
        (f"[clients.crm]\n{ENTRY}may = []\nmax_request = 2", ["CLONER_CLIENTS: crm: Object contains unknown field max_request"]),
        ("[clients.crm]\ntoken_sha256 = ['token-in-clear']\nmay = []", ["CLONER_CLIENTS: crm: token_sha256 must hold SHA-256 hashes, 64 hex digits each"]),
        (f"[clients.crm]\ntoken_sha256 = ['{EMPTY_DIGEST}']\nmay = []", ["CLONER_CLIENTS: crm: token_sha256 holds the hash of an empty token"]),
        (f"[clients.a]\n{ENTRY}may = []\n[clients.b]\n{ENTRY}may = []", ["CLONER_CLIENTS: a and b have the same token"]),
        ("[clients.a]\nmay = []\n[clients.b]\nmay = []", [f"CLONER_CLIENTS: {name}: Object missing required field token_sha256" for name in "ab"]),
    ],
)  # fmt: skip
def test_faults(text: str, faults: list[str]) -> None:
    """Everything that is wrong is named at once, without a word of what is written there."""
    with pytest.raises(ValueError, match="CLONER_CLIENTS") as caught:
        clients_of(text)

    assert faults == list(caught.value.args)


def test_token_of_two() -> None:
    """A token of CLONER_TOKEN cannot be a client's, too: nobody could tell whose call it is."""
    with pytest.raises(ValueError, match="default and crm have the same token"):
        clients_of(f"[clients.crm]\n{ENTRY}may = []", (Secret(FIRST.decode()),))


def test_settings(tmp_path) -> None:
    """The table comes as text or from a file, and a fault in it stops the process by its name."""
    text = f"[clients.crm]\n{ENTRY}may = ['read']\n"
    (tmp_path / "clients.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for environ in ({"CLONER_CLIENTS": text}, {"CLONER_CLIENTS_FILE": str(tmp_path / "clients.toml")}):
        settings = read(Settings, {"ELEVENLABS_API_KEY": "k", **environ})
        assert "crm" == clients_of(settings.cloner_clients.reveal()).known_by(FIRST).name
        assert FIRST_DIGEST not in repr(settings)

    for environ, told in (
        ({"CLONER_CLIENTS": "[clients.crm]"}, "CLONER_CLIENTS: crm: Object missing"),
        ({"CLONER_CLIENTS": f"'{text}'"}, "CLONER_CLIENTS must not stand in quotes"),
        ({"CLONER_CLIENTS_FILE": str(tmp_path)}, "CLONER_CLIENTS_FILE cannot be read"),
        ({"CLONER_CLIENTS_FILE": "/nowhere"}, "CLONER_CLIENTS_FILE cannot be read"),
        ({"CLONER_CLIENTS": text, "CLONER_CLIENTS_FILE": "/nowhere"}, "CLONER_CLIENTS and CLONER_CLIENTS_FILE are both set"),
        ({"CLONER_CLIENTS": text.replace(FIRST_DIGEST, EMPTY_DIGEST)}, "hash of an empty token"),
    ):  # fmt: skip
        with pytest.raises(EnvironmentInvalid) as caught:
            read(Settings, {"ELEVENLABS_API_KEY": "k", **environ})
        assert str(caught.value).startswith("CLONER_CLIENTS")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
