"""The recipes of the justfile, in a folder whose path holds a space."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

JUSTFILE = Path(__file__).parent.parent / "justfile"
UV = """#!/bin/sh
for argument in "$@"; do echo "$argument"; done
"""


@pytest.mark.parametrize(
    ("recipe", "asked"),
    [
        (["demo"], ["run", "python", "-m", "demo"]),
        (["generate", "new code"], ["--python_out=new code", "--mypy_out=quiet:new code"]),
        (["soak"], ["tests/property"]),
    ],
)
def test_folder_with_a_space(tmp_path: Path, recipe: list[str], asked: list[str]) -> None:
    """A recipe finds its uv and its files."""
    folder = tmp_path / "my work"
    (folder / "new code" / "precall" / "v1").mkdir(parents=True)
    shutil.copy(JUSTFILE, folder)
    uv = folder / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)

    done = subprocess.run(
        ["just", *recipe], cwd=folder, env={**os.environ, "UV": str(uv)},
        capture_output=True, check=False, text=True,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert [] == [argument for argument in asked if argument not in done.stdout.splitlines()]
