"""What the documents tell to write into a checkout, and nobody should publish."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The document, and how it names files that hold secrets, voices or callers.
WRITTEN = [
    ("docs/DEPLOYMENT.md", r"cat >(\S+) <<"),
    ("docs/DEPLOYMENT.md", r"localhost:3005 (\S+\.mp3)"),
    ("docs/DEPLOYMENT.md", r"\{file: \./(\S+)\}"),
    ("docs/DEPLOYMENT.md", r"write this `(\S+)`"),
    ("docs/DEPLOYMENT.md", r"--env-file (\S+)"),
    ("docs/DEPLOYMENT.md", r"--from-file=(\S+)"),
    ("docs/DEPLOYMENT.md", r"precall-registry backup (\w\S+)"),
    ("docs/GRPC.md", r"openssl rand -hex 32 > (\S+)"),
    ("docs/GRPC.md", r"_FILE=([\w-]+\.(?:key|pem))"),
    ("docs/GRPC.md", r"-keyout ([\w-]+\.key)"),
    ("docs/GRPC.md", r"--key (\S+)"),
    ("docs/VOICE_CLONING.md", r"replace (\S+\.mp3)"),
    ("docs/VOICE_CLONING.md", r"uv run precall enrol (\S+) \S+"),
    ("docs/VOICE_CLONING.md", r"uv run precall enrol \S+ (\S+)"),
    ("docs/VOICE_CLONING.md", r"appended to `(\S+)`"),
    ("docs/DEPLOYMENT.md", r"\(`(precall\.sqlite3\S*)`\)"),
]


@pytest.mark.parametrize(("document", "naming"), WRITTEN)
def test_ignored(tmp_path: Path, document: str, naming: str) -> None:
    """Git ignores each file that a document names, so that no `git add .` takes it along."""
    names = set(re.findall(naming, (ROOT / document).read_text()))
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert names
    assert [".gitignore"] == found.split()
