"""`precall-registry migrate`: migrations as a job of their own, on both databases."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from precall.v1 import cloning_pb2 as pb

from cloner.database_url import postgres_url
from cloner.registry import NewCall, calls, opened, opening, postgres
from cloner.registry.statement import Statement
from tests.kit.processes.cloner import process, until_ready
from tests.kit.releases import LATEST, NEXT, of_next_release
from tests.kit.rows import values

KEY = "key-of-the-hashes"
MADE = f"the registry was made, at revision {LATEST}"
UP_TO_DATE = f"the registry is up to date, at revision {LATEST}"


@pytest.fixture
def migrate(completed) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Exit status, output but for lines of the log, and errors."""

    async def run(database: str, **environ: str) -> tuple[int, str, str]:
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": database, "LOG_LEVEL": "ERROR"} | environ
        status, out, err = await completed("cloner.backup", "migrate", environ=environ)
        return status, out.strip(), err

    return run


async def test_empty_database(migrate, empty_database: str) -> None:
    """Makes the tables and says so; the second time there is nothing to do, and it says that."""
    told = [await migrate(empty_database) for _ in range(2)]

    assert [(0, MADE, ""), (0, UP_TO_DATE, "")] == told
    assert [] == await values(empty_database, "SELECT * FROM voices")


async def test_database_of_an_older_release(migrate, empty_database: str, tmp_path: Path) -> None:
    """The next release brings up to date what this one made, says from where, and keeps what is there."""
    call = NewCall(id="call_1", agent_id="a", conversation_id="c", caller="c", stated="c", begun_at=1.0)
    async with opened(empty_database, name="theirs", now=1.0) as store:
        await store.write(calls.begin, call)

    told = [await of_next_release(tmp_path, "migrate", DATABASE_URL=empty_database) for _ in range(2)]

    brought = f"the registry was brought from revision {LATEST} to {NEXT}\n"
    assert [(0, brought, ""), (0, f"the registry is up to date, at revision {NEXT}\n", "")] == told
    assert [("theirs", 1.0, "call_1", "call call_1")] == await values(
        empty_database, "SELECT name, created_at, calls.id, told_as FROM deployment, calls"
    )
    status, out, err = await migrate(empty_database)
    assert (2, "") == (status, out)
    assert f"made by another release (revision {NEXT}, and this one knows {LATEST})" in err


async def test_cloner_finds_nothing_to_migrate(migrate, empty_database: str) -> None:
    """A cloner that starts afterwards migrates nothing, and begins the deployment."""
    await migrate(empty_database)
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=empty_database, CALLER_HASH_KEY=KEY
    ) as started:
        lines = await until_ready(started)

    assert [] == [line for line in lines if "registry migrated" in line]
    assert [(1,)] == await values(empty_database, "SELECT count(*) FROM deployment")


async def test_beside_cloners_that_start(migrate, empty_database: str) -> None:
    """Jobs and cloners that start at once migrate once together, and all of them get on."""
    async with AsyncExitStack() as stack:
        cloners = [
            await stack.enter_async_context(
                process(
                    ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=empty_database, CALLER_HASH_KEY=KEY
                )
            )
            for _ in range(2)
        ]
        jobs = await asyncio.gather(*(migrate(empty_database) for _ in range(3)))
        lines = [line for cloner in cloners for line in await until_ready(cloner)]

    assert [(0, "")] * 3 == [(status, errors) for status, _, errors in jobs]
    assert {MADE, UP_TO_DATE} >= {out for _, out, _ in jobs}
    by_jobs = sum(out == MADE for _, out, _ in jobs)
    assert 1 == by_jobs + sum("registry migrated" in line for line in lines)
    assert [(1,)] == await values(empty_database, "SELECT count(*) FROM alembic_version")


@pytest.mark.parametrize("empty_database", ["postgres"], indirect=True)
async def test_jobs_that_wait_for_one_another(migrate, empty_database: str) -> None:
    """Of those that all saw an empty database and waited for their turn, one makes the tables and says so."""
    waiting = """
        SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
    """
    with postgres.connected(postgres_url(empty_database)) as first:
        first.execute(f"SELECT pg_advisory_lock({opening.MIGRATION_LOCK})")
        jobs = [asyncio.create_task(migrate(empty_database)) for _ in range(3)]
        async with asyncio.timeout(60):
            while [(3,)] != await values(empty_database, waiting):
                await asyncio.sleep(0.05)

    told = [out for _, out, _ in await asyncio.gather(*jobs)]
    assert sorted([MADE, UP_TO_DATE, UP_TO_DATE]) == sorted(told)


async def test_beside_a_cloner_at_work(migrate, cloning, database: str) -> None:
    """A cloner that serves meanwhile answers every call."""
    served = 0

    async def one_after_the_other() -> set[tuple[int, str, str]]:
        ended = [await migrate(database)]
        # As many as there are calls that may meet them, however fast either is.
        while len(ended) < 5 or served < 10:
            ended.append(await migrate(database))
        return set(ended)

    async with cloning() as cloner:
        job = asyncio.create_task(one_after_the_other())
        while not job.done():
            served += 1
            await cloner.OpenCall(
                pb.OpenCallRequest(agent_id="agent_demo", conversation_id=f"conv_{served}"), timeout=10
            )

    assert {(0, UP_TO_DATE, "")} == await job
    assert [(served,)] == await values(database, "SELECT count(*) FROM calls")


@pytest.mark.parametrize("revision", ["0004", "9999"])
async def test_database_of_another_release(migrate, database: str, revision: str) -> None:
    """A revision that this release does not know is refused in one line, and left as it is."""
    async with opened(database, name="theirs", now=1.0) as store:
        change = Statement(f"UPDATE alembic_version SET version_num = '{revision}'")
        await store.write(lambda tx: tx.run(change))

    status, out, err = await migrate(database)

    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert f"made by another release (revision {revision}, and this one knows {LATEST})" in err
    assert [(revision,)] == await values(database, "SELECT version_num FROM alembic_version")


@pytest.mark.parametrize(
    ("database", "status", "says"),
    [
        ("mysql://db", 2, "DATABASE_URL: expected sqlite:///file or postgresql://"),
        ("sqlite:////nowhere/precall.sqlite3", 1, "/nowhere does not exist"),
        ("postgresql://precall:s3cret@127.0.0.1:1/x", 1, "nothing listens at the host and port"),
    ],
)
async def test_what_cannot_be(migrate, database: str, status: int, says: str) -> None:
    """One line says why, without the password: 2 for what cannot be right, 1 for what may be later."""
    found, out, err = await migrate(database)

    assert (status, "", 1) == (found, out, len(err.splitlines()))
    assert says in err
    assert "s3cret" not in err


async def test_file_that_is_no_database(migrate, tmp_path: Path) -> None:
    """Another program's file is left alone."""
    file = tmp_path / "precall.sqlite3"
    file.write_text("what somebody wrote\n" * 100)

    status, out, err = await migrate(f"sqlite:///{file}")

    assert (1, "") == (status, out)
    assert err.endswith("is not a SQLite database, or a broken one\n")
    assert "what somebody wrote\n" * 100 == file.read_text()
