from pathlib import Path

import pytest

from cloner.registry import NewCall, calls, opened
from cloner.voices.hash_key import KeyDiffers, KeyUnavailable, kept_beside, settled
from environment import Key


def url(folder: Path) -> str:
    """Where the database would be."""
    return f"sqlite:///{folder}/precall.sqlite3"


def test_made_once(tmp_path: Path) -> None:
    """The key is made for its owner alone, and is the same from then on."""
    key = kept_beside(url(tmp_path))
    path = tmp_path / "precall.sqlite3.key"

    assert (key, key) == (path.read_bytes(), kept_beside(url(tmp_path)))
    assert (64, 0o600) == (len(key), path.stat().st_mode & 0o777)


def test_line_end_of_an_editor(tmp_path: Path) -> None:
    """A key that was put back with an editor is the same key."""
    key = kept_beside(url(tmp_path))
    (tmp_path / "precall.sqlite3.key").write_bytes(b"\xef\xbb\xbf" + key + b"\n")

    assert key == kept_beside(url(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff\xfe" + b"k\0" * 32, b"one-line-of-two-lines\nthe-other"]
)
def test_no_key(tmp_path: Path, content: bytes) -> None:
    """A file that holds no key is told, and no hash is computed with it."""
    (tmp_path / "precall.sqlite3.key").write_bytes(content)

    with pytest.raises(KeyUnavailable, match=r"precall\.sqlite3\.key holds no key: it must "):
        kept_beside(url(tmp_path))


async def test_one_key_for_a_registry(database: str) -> None:
    """The key of the first start is that of every later one; another is refused by its name."""
    first, another = (Key.read(f"key-of-the-hashes-{number}") for number in (1, 2))
    keys = []
    for _ in range(2):
        async with opened(database, name="tested", now=1.0) as store:
            keys.append(await settled(store, database, first))
            with pytest.raises(KeyDiffers, match=r"^CALLER_HASH_KEY is not the key .* empty database$"):
                await settled(store, database, another)

    assert [b"key-of-the-hashes-1"] * 2 == keys


async def test_file_that_was_lost(tmp_path: Path) -> None:
    """A registry without the file of its key, or with another one, is not begun anew beside its callers."""
    path = tmp_path / "precall.sqlite3.key"
    async with opened(url(tmp_path), name="tested", now=1.0) as store:
        key = await settled(store, url(tmp_path), None)
        path.unlink()
        with pytest.raises(
            KeyUnavailable, match=r"sqlite3\.key is missing, .* CALLER_HASH_KEY to what it held$"
        ):
            await settled(store, url(tmp_path), None)
        assert not path.exists()
        path.write_text("key-of-somebody-else")
        with pytest.raises(KeyDiffers, match=r"sqlite3\.key is not the key "):
            await settled(store, url(tmp_path), None)

        assert key == await settled(store, url(tmp_path), Key.read(key.decode()))


async def test_registry_from_before_keys_were_known(tmp_path: Path) -> None:
    """One that has noted a call without knowing its key takes the next one that is told, and makes none."""
    call = NewCall(id="call_1", agent_id="a", conversation_id="c", caller="c", stated="c", begun_at=1.0)
    async with opened(url(tmp_path), name="tested", now=1.0) as store:
        await store.write(calls.begin, call)
        with pytest.raises(KeyUnavailable):
            await settled(store, url(tmp_path), None)

        assert b"key-of-the-hashes" == await settled(store, url(tmp_path), Key.read("key-of-the-hashes"))
        with pytest.raises(KeyDiffers):
            await settled(store, url(tmp_path), Key.read("key-of-somebody-else"))
