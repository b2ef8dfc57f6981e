from pathlib import Path

import pytest

from cloner.voices.key import KeyUnavailable, kept_beside


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
