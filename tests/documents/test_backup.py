"""The upgrade, the back-up and the restore that docs/DEPLOYMENT.md prints, as it prints them."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cloner.registry import NewCall, calls, opened
from tests.kit.rows import values
from tests.kit.stand_in import programs

pytestmark = pytest.mark.long

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "DEPLOYMENT.md"
# In the place of containers: what would run in the cloner's runs here.
DOCKER = """#!/bin/sh
echo "$*" >>docker.log
case "$*" in
    "compose exec -T cloner "*) shift 4 ;;
    "compose run --rm --no-deps -T cloner "*) shift 6 ;;
    "compose up --build "*) exec precall-registry migrate ;;
    *) exit ;;
esac
exec "$@"
"""


def blocks(heading: str) -> list[str]:
    """The commands of a section, a text for each block."""
    section = re.split(r"\n##+ ", DEPLOYMENT.read_text().partition(f"### {heading}\n")[2])[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def containers(folder: Path) -> None:
    """Puts there what commands take for Docker."""
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)


def run(block: str, folder: Path, *, forked: bool = True) -> str:
    """What commands say that are run there, and complain about nothing."""
    path = f"{folder}:{f'{programs()}:' if forked else ''}{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env={"PATH": path}, check=False, capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, re.sub(r"- holds .*\n", "", done.stderr))
    return done.stdout


async def test_upgrade(tmp_path: Path) -> None:
    """A registry is kept before it is migrated, and the same commands do no harm to one that is up to date.

    With Compose it is the cloner that migrates, when it starts.
    """
    containers(tmp_path)
    database = f"sqlite:///{tmp_path}/precall.sqlite3"
    async with opened(database, name="tested", now=1.0):
        pass
    upgrade, compose = blocks("Upgrading")
    kept = tmp_path / "before-the-upgrade.backup"

    assert ["before-the-upgrade.backup holds", "the registry is up to date"] == [
        re.split(r" [0-9]|,", line)[0] for line in run(upgrade, tmp_path).splitlines()
    ]
    kept.unlink()
    assert "the registry is up to date" == run(compose, tmp_path).partition(",")[0]
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
    assert (
        f"{kept.name} is whole"
        == run(f"precall-registry check {kept.name}", tmp_path, forked=False).partition(":")[0]
    )


async def test_commands(tmp_path: Path) -> None:
    """Each block, in order: a registry is kept, lost, restored, set back, and so once more with Compose."""
    containers(tmp_path)
    registry, key = tmp_path / "precall.sqlite3", tmp_path / "precall.sqlite3.key"
    database = f"sqlite:///{registry}"
    key.write_text("the-key-beside-the-file")
    call = NewCall(id="call_1", agent_id="a", conversation_id="c", caller="c", stated="c", begun_at=1.0)
    async with opened(database, name="tested", now=1.0) as store:
        await store.write(calls.begin, call)
    keep, restore, replace, compose = blocks("Back-up and restore")

    holds = "0 voices, 1 calls and 0 agents of deployment tested"
    assert [
        f"registry.backup holds {holds}, with its key", f"registry.backup is whole: {holds}, with its key"
    ] == run(keep, tmp_path).splitlines()  # fmt: skip
    for lost in (registry, key):
        lost.unlink()
    assert f"restored {holds}" == run(restore, tmp_path).splitlines()[-1]
    assert ([("call_1",)], "the-key-beside-the-file") == (
        await values(database, "SELECT id FROM calls"), key.read_text(),
    )  # fmt: skip
    assert f"restored {holds}" == run(replace, tmp_path).splitlines()[0]
    (tmp_path / "registry.backup").unlink()
    assert f"restored {holds}" == run(compose, tmp_path).splitlines()[0]
    assert 0o600 == stat.S_IMODE((tmp_path / "registry.backup").stat().st_mode)
    assert ["exec", "stop", "run", "up"] == [
        line.split()[1] for line in (tmp_path / "docker.log").read_text().splitlines()
    ]
