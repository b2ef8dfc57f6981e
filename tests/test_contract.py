"""The check that the contract only grows, in the clones that people and CI have."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTHING = "nothing that landed before is here to compare with"
GONE = 'field "4" with name "sample" on message "PrepareCallRequest" was deleted'


class Clone:
    """A work tree with the contract in it."""

    def __init__(self, folder: Path, uv: str) -> None:
        self.folder = folder
        nobody = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self._environ = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "UV": uv, "UV_NO_SYNC": "1", "UV_PROJECT": str(ROOT),
            "UV_PROJECT_ENVIRONMENT": os.environ.get("VIRTUAL_ENV", str(ROOT / ".venv")),
            "GIT_CEILING_DIRECTORIES": str(folder.parent), **nobody,
        }  # fmt: skip

    def git(self, *arguments: str) -> None:
        """One command of git."""
        subprocess.run(
            ["git", *arguments], cwd=self.folder, env=self._environ, check=True, capture_output=True
        )

    def commit(self) -> None:
        """Commits all there is."""
        self.git("add", "--all")
        self.git("commit", "--message", "change")

    def change(self, pattern: str, text: str) -> None:
        """Puts a text where a pattern stands in the contract."""
        path = self.folder / "proto/precall/v1/cloning.proto"
        changed, count = re.subn(pattern, text, path.read_text(), count=1)
        assert 1 == count
        path.write_text(changed)

    def shrink(self) -> None:
        """Takes a field away."""
        self.change(r"  bytes sample = 4;\n", "")

    def grow(self) -> None:
        """Adds a field."""
        self.change(r"message PrepareCallRequest \{\n", r"\g<0>  // Optional.\n  string more = 9999;\n\n")

    def check(self) -> tuple[int, str]:
        """What the check ends with, and says."""
        done = subprocess.run(
            ["just", "check-contract"], check=False, cwd=self.folder, env=self._environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def cloned(self, folder: Path, *options: str) -> "Clone":
        """A clone of this one."""
        self.git("clone", *options, f"file://{self.folder}", str(folder))
        return Clone(folder, self._environ["UV"])


@pytest.fixture
def folder(uv: str, tmp_path: Path) -> Clone:
    """The contract in a folder of which git knows nothing."""
    made = tmp_path / "work"
    shutil.copytree(ROOT / "proto", made / "proto")
    for name in ("buf.yaml", "justfile"):
        shutil.copy(ROOT / name, made)
    return Clone(made, uv)


@pytest.fixture
def main(folder: Clone) -> Clone:
    """A repository with one commit, on the main branch."""
    folder.git("init", "--initial-branch", "main")
    folder.commit()
    return folder


def test_without_git(folder: Clone) -> None:
    """A folder without git has nothing to compare with, and passes."""
    status, said = folder.check()

    assert 0 == status, said
    assert NOTHING in said


def test_first_commit(main: Clone) -> None:
    """So does a first commit."""
    status, said = main.check()

    assert 0 == status, said
    assert NOTHING in said


def test_uncommitted(main: Clone) -> None:
    """What is not committed yet may add to the first commit, and take nothing from it."""
    main.grow()
    assert (0, "") == main.check()

    main.shrink()
    status, said = main.check()

    assert 0 != status
    assert GONE in said


def test_committed_on_main(main: Clone) -> None:
    """A commit on the main branch is compared with the one before it."""
    main.shrink()
    main.commit()
    status, said = main.check()

    assert 0 != status
    assert GONE in said


def test_branch(main: Clone) -> None:
    """A branch is compared with the place where it left, so what never landed may change."""
    main.git("switch", "--create", "branch")
    main.grow()
    main.commit()
    main.change("string more = 9999;", "bytes more = 9998;")
    main.commit()
    assert (0, "") == main.check()

    main.shrink()
    main.commit()
    (main.folder / "other").touch()
    main.commit()
    status, said = main.check()

    assert 0 != status
    assert GONE in said


def test_branch_that_is_behind(main: Clone) -> None:
    """What landed since a branch was made is nothing that the branch takes away."""
    main.git("branch", "branch")
    main.grow()
    main.commit()
    main.git("switch", "branch")
    (main.folder / "other").touch()
    main.commit()

    assert (0, "") == main.check()


def test_shallow_clone(main: Clone, tmp_path: Path) -> None:
    """A clone of one commit passes; with one more, as CI should have it, it tells what the commit takes."""
    main.shrink()
    main.commit()
    status, said = main.cloned(tmp_path / "one", "--depth", "1").check()
    assert 0 == status, said
    assert NOTHING in said

    status, said = main.cloned(tmp_path / "two", "--depth", "2").check()

    assert 0 != status
    assert GONE in said


def test_clone(main: Clone, tmp_path: Path) -> None:
    """In a clone, what was committed there is compared with what the origin has."""
    clone = main.cloned(tmp_path / "clone")
    clone.shrink()
    clone.commit()
    (clone.folder / "other").touch()
    clone.commit()
    status, said = clone.check()

    assert 0 != status
    assert GONE in said


def test_detached(main: Clone, tmp_path: Path) -> None:
    """Where no branch has a name, as in CI, a commit is compared with the one before it."""
    main.shrink()
    main.commit()
    clone = main.cloned(tmp_path / "clone")
    clone.git("checkout", "--detach")
    clone.git("remote", "remove", "origin")
    clone.git("branch", "--delete", "--force", "main")
    status, said = clone.check()

    assert 0 != status
    assert GONE in said
