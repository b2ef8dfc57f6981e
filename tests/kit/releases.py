"""This release, and the one after it, which has one migration more."""

import os
import shutil
from pathlib import Path

from cloner.registry.opening import MIGRATIONS
from tests.kit.python import python

__all__ = ["LATEST", "NEXT", "of_next_release"]

CLONER = Path(__file__).parents[2] / "cloner"
LATEST = max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
NEXT = "9000"
MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{LATEST}"


def upgrade() -> None:
    op.add_column("calls", sa.Column("told_as", sa.Text, nullable=False, server_default=""))
    op.execute("UPDATE calls SET told_as = 'call ' || id")
"""


async def of_next_release(folder: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, output but for lines of the log, and errors of the next release's `precall-registry`.

    Its code is a copy of ours, in the folder.
    """
    if not (folder / "cloner").exists():
        shutil.copytree(CLONER, folder / "cloner", ignore=shutil.ignore_patterns("__pycache__"))
        versions = folder / MIGRATIONS.relative_to(CLONER.parent) / "versions"
        (versions / f"{NEXT}_told.py").write_text(MIGRATION)
    environ = {"PATH": os.environ["PATH"], "LOG_LEVEL": "ERROR"} | environ
    async with python("-m", "cloner.backup", *arguments, env=environ, cwd=folder) as started:
        out, err = await started.communicate()
        return started.returncode, out.decode(), err.decode()
