"""What never may be, whatever happens in whatever order: lost voices, borrowed voices, second voices.

`just soak MINUTES` goes on with new examples for as long.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.postgres import drop_database, new_database
from tests.property.soak import SOAK_SECONDS, as_long_as_asked
from tests.property.steps import steps
from tests.property.world import Violated, world

COMMON = settings(deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
# A soak looks at the time after each so many.
PROFILE = (
    settings(COMMON, max_examples=12) if SOAK_SECONDS else settings(COMMON, derandomize=True, max_examples=9)
)


# Shrinking takes hypothesis up to five minutes, and nobody minds waiting for a shorter story.
@pytest.mark.long(first=True)
@pytest.mark.timeout(900 + SOAK_SECONDS)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_invariants(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Two replicas, killed and started at will, keep to the design at every moment and at quiet points."""
    server = request.getfixturevalue("postgres") if kind == "postgres" else ""

    @PROFILE
    @given(
        story=steps,
        keep_hours=st.sampled_from((0.0, 1.0)),
        keep_days=st.sampled_from((0.0, 0.05)),
        agent_update=st.sampled_from(("auto", "auto", "auto", "always")),
    )
    def lives(story: list[Any], keep_hours: float, keep_days: float, agent_update: str) -> None:
        # Whoever stops the tests while one of these is removed leaves a rest, which pytest removes the next time.
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            url = new_database(server) if server else f"sqlite:///{folder}/precall.sqlite3"
            try:
                chosen = {
                    "voice_clone_keep_hours": keep_hours,
                    "enrolment_keep_days": keep_days,
                    "agent_update": agent_update,
                }
                asyncio.run(_live(url, Path(folder), story, chosen))
            finally:
                if server:
                    asyncio.run(_drop(url))

    as_long_as_asked(lives)


async def _live(url: str, folder: Path, story: list[Any], chosen: dict[str, Any]) -> None:
    async with world(url, folder, **chosen) as lived:
        for step in story:
            await lived.do(step)
        await lived.settle()
        await lived.settle(over=True)
        if bugs := lived.bugs():
            raise Violated("\n".join([*bugs, "", *lived.story]))


async def _drop(url: str) -> None:
    """Removes a database, because a long run makes hundreds."""
    await asyncio.to_thread(drop_database, url)
