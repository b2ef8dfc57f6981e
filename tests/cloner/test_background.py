"""Work that goes on when nobody waits for it."""

import asyncio

from structlog.testing import capture_logs

from cloner.background import Background
from cloner.registry import RegistryUnavailable


async def test_bug_that_nobody_hears_of() -> None:
    """It is told where it happened, without its text; a registry that is out of reach has been told already."""

    async def gives() -> None:
        await asyncio.sleep(0)

    async def breaks() -> None:
        raise TypeError("Anna")

    async def finds_no_registry() -> None:
        raise RegistryUnavailable

    background = Background()
    with capture_logs() as logs:
        for work in (gives(), breaks(), finds_no_registry()):
            background.begin_alone(work)
        await background.wait(10)
        background.begin_alone(asyncio.sleep(60))
        await background.finish(0.0)

    (line,) = logs
    assert ("bug", "error") == (line["event"], line["log_level"])
    assert line["exception"].startswith("TypeError at ")
    assert "Anna" not in str(line)
