import asyncio
import contextlib
import os
import re
import shutil
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest

from cloner.registry import (
    NamedRequest,
    NewCall,
    RegistryBusy,
    RegistryNotOpened,
    RegistryUnavailable,
    RequestForgotten,
    Store,
    TextNotStorable,
    Transaction,
    agents,
    calls,
    census,
    departures,
    deployment,
    due,
    holding,
    late_updates,
    opened,
    processes,
    requests,
    views,
    voice_consents,
    voices,
)
from cloner.registry.opening import bring_up_to_date, telling_problems
from cloner.registry.postgres import PostgresStore
from cloner.registry.postgres import connected as connected_to_postgres
from cloner.registry.sqlite import connected
from cloner.registry.statement import PARAMETER, Statement
from tests.kit.intents import intent
from tests.kit.postgres import drop_database, entered, new_database, on_server
from tests.kit.relay import Relay
from tests.kit.releases import LATEST
from tests.kit.rows import values

NOW = 1_765_000_000.0
ENDED = Statement("SELECT ended_at FROM calls WHERE id = :id")
FOR_UPDATE = Statement("SELECT id FROM calls WHERE id = :id FOR UPDATE")
END = Statement("UPDATE calls SET ended_at = coalesce(ended_at, 0) + 1 WHERE id = :id")
WITHOUT_TLS = "Postgres lets nobody in from here without TLS: add ?sslmode=require, or see its pg_hba.conf"
WITHOUT_RIGHTS = "the user lacks rights in this database: to make its tables, or to read and write them"
FOUND = "SELECT id FROM calls ORDER BY id"
REQUEST = NamedRequest(key="request_1", content="clone")
LONG = "a" * 300
AGENT_LOCKED = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
WAIT_FOR_A_LOCK = """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
"""


class Broken(Exception):
    """A transaction of a test that goes wrong by itself."""


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """An open registry, on both databases."""
    async with opened(database, name="tested", now=NOW) as made:
        yield made


def new(name: str, conversation: str = "conv") -> NewCall:
    """A call that is noted by its name."""
    return NewCall(
        id=name, agent_id=f"agent_{name}", conversation_id=conversation, caller="c", stated="c", begun_at=NOW
    )


def hot_call(number: int) -> NewCall:
    """One of many calls at one agent."""
    return msgspec.structs.replace(new(f"hot_{number}"), agent_id="agent_hot")


def begin_and_break(tx: Transaction, name: str) -> None:
    """Changes something, and goes wrong after that."""
    calls.begin(tx, new(name))
    raise Broken


def ended(tx: Transaction, name: str) -> float | None:
    """When a call ended."""
    row = tx.one(ENDED, id=name)
    return row[0] if row else None


async def test_statement_is_translated_once() -> None:
    """One text serves both: parameters by name, locks for Postgres alone, percent signs as they are."""
    statement = Statement(
        "SELECT '50%' FROM t WHERE a = :a AND b = :b_c ORDER BY a LIMIT 1 FOR UPDATE SKIP LOCKED"
    )

    assert "SELECT '50%' FROM t WHERE a = :a AND b = :b_c ORDER BY a LIMIT 1" == statement.sqlite
    assert (
        b"SELECT '50%%' FROM t WHERE a = %(a)s AND b = %(b_c)s ORDER BY a LIMIT 1 FOR UPDATE SKIP LOCKED"
        == statement.postgres
    )


async def test_one_failure_is_one_failure(store: Store, database: str) -> None:
    """Of many that are written at once, those that go wrong leave nothing, and the others all stay."""
    waiting = [
        store.write(begin_and_break, f"bad_{number}") if number % 3 == 0 else store.write(calls.begin, new(f"good_{number}"))
        for number in range(30)
    ]  # fmt: skip
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert [number % 3 == 0 for number in range(30)] == [isinstance(outcome, Broken) for outcome in outcomes]
    assert sorted((f"good_{number}",) for number in range(30) if number % 3) == await values(database, FOUND)


@pytest.mark.parametrize(
    "wrong",
    ["SELECT no_such_column FROM calls", "SELECT FROM WHERE", "SELECT id FROM calls WHERE id = :forgotten",
     "INSERT INTO calls (id) VALUES (NULL)"],
    ids=["column", "syntax", "parameter", "constraint"],
)  # fmt: skip
async def test_wrong_statement_is_a_bug(store: Store, wrong: str) -> None:
    """A statement that can never work is not taken for a database that is out of reach, which waiting helps."""
    statement = Statement(wrong)
    with pytest.raises((sqlite3.Error, psycopg.Error)):
        await store.write(lambda tx: tx.one(statement))
    await store.write(calls.begin, new("call_1"))


async def test_tables_that_are_taken_away(store: Store) -> None:
    """Somebody else's doing is no bug: the registry is out of reach until the tables are back."""
    statement = Statement("SELECT 1 FROM no_such_table")
    with pytest.raises(RegistryUnavailable):
        await store.read(lambda tx: tx.one(statement))


async def test_answered_after_the_commit(store: Store, database: str) -> None:
    """Whoever is told that a transaction is done finds it on another connection."""
    for number in range(20):
        await store.write(calls.begin, new(f"call_{number:02}"))

        assert number + 1 == len(await values(database, FOUND))


async def test_reads_what_was_written(store: Store) -> None:
    """A read sees every transaction that was answered before, however many are written meanwhile."""

    async def write_and_read(number: int) -> float | None:
        await store.write(calls.begin, new(f"call_{number}"))
        await store.write(
            calls.complete, now=NOW + number, call_id=f"call_{number}", conversation_id="", agent_id="", voice_id="",
            conversation_call_id="",
        )  # fmt: skip
        return await store.read(ended, f"call_{number}")

    assert [NOW + number for number in range(40)] == await asyncio.gather(
        *(write_and_read(number) for number in range(40))
    )


async def test_read_does_not_wait_for_a_write(store: Store) -> None:
    """A read is answered while a transaction is under way, from what was there before that."""
    await store.write(calls.begin, new("call"))
    begun, released = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        tx.run(END, id="call")
        begun.set()
        released.wait(30)

    writing = asyncio.create_task(store.write(slow))
    assert await asyncio.to_thread(begun.wait, 30)
    before = await asyncio.wait_for(store.read(ended, "call"), 30)
    released.set()
    await writing

    assert (None, 1.0) == (before, await store.read(ended, "call"))


async def test_cancelled_waiter(store: Store, database: str) -> None:
    """A waiter that goes away breaks nothing off: what had begun is done, what had not is never begun."""
    begun, released = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        begun.set()
        released.wait(30)
        calls.begin(tx, new("begun"))

    # On Postgres, several are carried out at once: as many as there are threads, and the last waits.
    running = [asyncio.create_task(store.write(slow)) for _ in range(10 if store.postgres else 1)]
    assert await asyncio.to_thread(begun.wait, 30)
    await asyncio.sleep(0.2)
    waiting = asyncio.create_task(store.write(calls.begin, new("never begun")))
    await asyncio.sleep(0.05)
    for task in (*running, waiting):
        task.cancel()
    await asyncio.gather(*running, waiting, return_exceptions=True)
    released.set()
    await store.write(calls.begin, new("later"))
    while [("begun",), ("later",)] != (found := await values(database, FOUND)):
        assert ("never begun",) not in found
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("left", [False, True], ids=["waited for", "left"])
async def test_calls_at_one_agent_leave_room(store: Store, database: str, left: bool) -> None:
    """However many calls wait for one agent, also where nobody waits for them any more, others are stored."""
    with psycopg.connect(database) as other:
        other.execute(AGENT_LOCKED, ["agent_hot"])
        hot = [
            asyncio.create_task(store.write_at("agent_hot", calls.begin, hot_call(number)))
            for number in range(20)
        ]
        while len(await values(database, WAIT_FOR_A_LOCK)) < 2:
            await asyncio.sleep(0.01)
        if left:
            for task in hot[:12]:
                task.cancel()
            await asyncio.gather(*hot[:12], return_exceptions=True)
        async with asyncio.timeout(5):
            await store.write_at("agent_call", calls.begin, new("call"))
    stored = await asyncio.gather(*hot, return_exceptions=True)

    assert 20 - 12 * left == len([each for each in stored if not isinstance(each, BaseException)])
    # Two of those who left were at work, and are carried out.
    assert 21 - 10 * left == len(await values(database, FOUND))


async def test_lists_leave_room(store: Store) -> None:
    """However many look through everything, whoever reads or writes for a call is served."""
    released = threading.Event()
    looking = [asyncio.create_task(store.look_through(lambda _: released.wait(30))) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await store.write(calls.begin, new("call"))
        assert None is await store.read(ended, "call")
    released.set()

    assert [True] * 20 == await asyncio.gather(*looking)


async def test_lists_that_nobody_waits_for(store: Store) -> None:
    """They are never begun, and those that were keep nobody from looking once they are over."""
    begun: list[int] = []
    released = threading.Event()

    def look(_: Transaction, number: int) -> bool:
        begun.append(number)
        return released.wait(30)

    looking = [asyncio.create_task(store.look_through(look, number)) for number in range(20)]
    async with asyncio.timeout(10):
        while not begun:
            await asyncio.sleep(0.01)
    for task in looking:
        task.cancel()
    await asyncio.gather(*looking, return_exceptions=True)
    released.set()
    async with asyncio.timeout(10):
        await store.look_through(look, 20)

    assert [*range(len(begun) - 1), 20] == sorted(begun)
    assert len(begun) <= 3


async def test_close_waits_for_what_runs(database: str) -> None:
    """What was begun before the store is closed is committed, and afterwards nothing is taken."""
    async with opened(database, name="tested", now=NOW) as store:
        writing = [
            asyncio.ensure_future(store.write(calls.begin, new(f"call_{number}"))) for number in range(5)
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*writing)

    assert 5 == len(await values(database, FOUND))
    with pytest.raises(RegistryUnavailable):
        await store.write(calls.begin, new("late"))


@pytest.mark.parametrize("text", ["Iv\0an", "Ivan \ud800"], ids=["NUL", "half a character"])
async def test_text_that_no_database_stores(store: Store, database: str, text: str) -> None:
    """It is refused in words of ours, without the text, and those who wrote at the same time are served."""
    refused, kept = await asyncio.gather(
        store.write(calls.begin, new("bad", text)),
        store.write(calls.begin, new("good")),
        return_exceptions=True,
    )

    assert isinstance(refused, TextNotStorable)
    assert "conversation_id holds a character that cannot be stored." == str(refused)
    assert not isinstance(kept, BaseException)
    assert [("good",)] == await values(database, FOUND)


async def test_many_wait_in_order(store: Store) -> None:
    """Plain load is served: a thousand who ask at once are all answered."""
    await store.write(calls.begin, new("call"))
    await asyncio.gather(*(store.write(lambda tx: tx.run(END, id="call")) for _ in range(1_000)))

    assert 1_000.0 == await store.read(ended, "call")


async def test_busy_is_not_out_of_reach(store: Store) -> None:
    """Who was not answered while others were is told that too much is going on, not that there is no registry."""
    loop = asyncio.get_running_loop()
    await store.write(calls.begin, new("before"))
    # The loop's clock may stand still between two rounds of the loop.
    await asyncio.sleep(0.05)
    since = loop.time()
    await asyncio.sleep(0.05)

    assert RegistryUnavailable is type(store.late_failure(since))
    await store.write(calls.begin, new("after", "conv_2"))
    assert RegistryBusy is type(store.late_failure(since))


async def test_busy_with_reads(store: Store) -> None:
    """So is told where others were read to, unless it is a write that gets no answer."""
    loop = asyncio.get_running_loop()
    begun, released = threading.Event(), threading.Event()

    def slow(_: Transaction) -> None:
        begun.set()
        released.wait(30)

    await asyncio.sleep(0.05)
    since = loop.time()
    await asyncio.sleep(0.05)
    await store.read(ended, "call")
    busy = store.late_failure(since)
    writing = asyncio.create_task(store.write(slow))
    assert await asyncio.to_thread(begun.wait, 30)
    unreachable = store.late_failure(since)
    released.set()
    await writing

    assert [RegistryBusy, RegistryUnavailable] == [type(busy), type(unreachable)]


async def test_one_commit_for_all_who_wait(tmp_path: Path) -> None:
    """On SQLite, those who wait while one commits share the next commit."""
    path = tmp_path / "registry.sqlite3"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
        with closing(sqlite3.connect(path)) as other:
            before = other.execute("PRAGMA data_version").fetchone()[0]
            begun, released = threading.Event(), threading.Event()

            def slow(_: Transaction) -> None:
                begun.set()
                released.wait(30)

            first = asyncio.create_task(store.write(slow))
            assert await asyncio.to_thread(begun.wait, 30)
            others = [
                asyncio.create_task(store.write(calls.begin, new(f"call_{number}"))) for number in range(50)
            ]
            await asyncio.sleep(0)
            seen = set()
            released.set()
            while not all(task.done() for task in others):
                seen.add(other.execute("SELECT count(*) FROM calls").fetchone()[0])
                await asyncio.sleep(0)
            await asyncio.gather(first, *others)
            after = other.execute("PRAGMA data_version").fetchone()[0]

    assert after > before
    # Never was a part of them to be seen.
    assert seen <= {0, 50}


@pytest.mark.parametrize("made", [None, 0o644], ids=["new", "readable by all"])
async def test_file_is_its_owners_alone(tmp_path: Path, made: int | None) -> None:
    """The file and those beside it can be read by nobody else, also where the file was readable before."""
    path = tmp_path / "registry.sqlite3"
    if made is not None:
        path.touch(made)
        path.chmod(made)
    before = os.umask(0)
    try:
        async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
            await store.write(calls.begin, new("call"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)

    assert dict.fromkeys(("registry.sqlite3", "registry.sqlite3-wal", "registry.sqlite3-shm"), 0o600) == modes


@pytest.mark.parametrize("suffix", ["", "-wal"], ids=["database", "log"])
@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_file_that_goes_away(
    tmp_path: Path, suffix: str, replaced: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that nobody will find again is written to no more; that is told once."""
    path, aside = tmp_path / "registry.sqlite3", tmp_path / "aside"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
        await store.write(calls.begin, new("call"))
        Path(f"{path}{suffix}").rename(aside)
        if replaced:
            shutil.copy(aside, f"{path}{suffix}")
        for _ in range(3):
            with pytest.raises(RegistryUnavailable):
                await store.write(calls.begin, new("lost"))
            with pytest.raises(RegistryUnavailable):
                await store.read(ended, "call")
        told = capsys.readouterr().out
        aside.rename(f"{path}{suffix}")
        await store.write(calls.begin, new("found again"))

    assert 1 == told.count("registry file deleted or replaced")
    assert [("call",), ("found again",)] == await values(f"sqlite:///{path}", FOUND)


async def test_file_that_is_emptied(tmp_path: Path) -> None:
    """A file without its content is as good as deleted, also for what could still be written to it."""
    path = tmp_path / "registry.sqlite3"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
        await store.write(calls.begin, new("call"))
        os.truncate(path, 0)

        with pytest.raises(RegistryUnavailable):
            await store.write(calls.begin, new("lost"))
        with pytest.raises(RegistryUnavailable):
            await store.read(ended, "call")
        assert store.gone


async def test_full_disk_is_found(tmp_path: Path) -> None:
    """A start, and whoever looks whether anything can be written, puts bytes on the disk; the name stays."""
    path = tmp_path / "registry.sqlite3"
    written = []
    for _ in range(2):
        async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
            written.append(Path(f"{path}-wal").stat().st_size > 0)
            with closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await store.write(deployment.touch)
            written.append(Path(f"{path}-wal").stat().st_size > 0)

    assert [True] * 4 == written
    assert [("tested",)] == await values(f"sqlite:///{path}", "SELECT name FROM deployment")


async def test_held_by_another_process_for_a_while(tmp_path: Path) -> None:
    """Who needs the file waits until another process lets it go."""
    path = tmp_path / "registry.sqlite3"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(store.write(calls.begin, new("call")))
            assert None is await asyncio.wait_for(store.read(ended, "call"), 10)
            await asyncio.sleep(0.3)
            assert not writing.done()
            other.execute("ROLLBACK")
            await asyncio.wait_for(writing, 10)


async def test_connections_that_died(postgres: str) -> None:
    """After Postgres was restarted, the first request is served as if nothing had been."""
    database = new_database(postgres)
    together = threading.Barrier(3)
    async with opened(database, name="tested", now=NOW) as store:
        await store.write(calls.begin, new("call"))
        # So that there are three.
        await asyncio.gather(*(store.read(lambda _: together.wait(30)) for _ in range(3)))
        name = database.rpartition("/")[2]
        on_server(
            postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        await store.write(calls.begin, new("another"))
        on_server(
            postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )

        assert None is await store.read(ended, "another")

    assert [("another",), ("call",)] == await values(database, FOUND)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_one_connection_while_one_is_enough(database: str) -> None:
    """A registry that is up to date is used with the connection that found it so."""
    address, _, name = database.partition("@")[2].partition("/")
    async with (
        Relay(address).listening() as relay,
        opened(f"postgresql://precall@{relay.address}/{name}", name="tested", now=NOW) as store,
    ):
        await store.write(calls.begin, new("call"))

        assert (None, 1) == (await store.read(ended, "call"), relay.taken)


def as_member(database: str) -> str:
    """The URL by which a user enters who has no right that was not given."""
    with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        on_server(database.rpartition("/")[0], "CREATE ROLE member LOGIN")
    return database.replace("precall@", "member@")


async def test_postgres_with_few_connections(postgres: str) -> None:
    """Those that it gives go round among all who ask, and those that nobody needs are given back."""
    database = new_database(postgres)
    name = database.rpartition("/")[2]
    on_server(postgres, f"ALTER DATABASE {name} CONNECTION LIMIT 2")
    url = as_member(database)
    # As a cloner has one when it begins to serve. Of many that are asked for at once Postgres may refuse all.
    store = PostgresStore(url, connected_to_postgres(url), idle_seconds=0.05)
    busy = Statement("SELECT pg_sleep(0.01)")
    connections = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"

    await asyncio.gather(*(store.read(lambda tx: tx.one(busy)) for _ in range(40)))

    async with asyncio.timeout(60):
        while entered(f"{postgres}/postgres").execute(connections).fetchone() != (1,):
            await asyncio.sleep(0.01)
    await store.close()


@pytest.mark.parametrize("ended", [False, True])
async def test_postgres_that_gives_more_connections_again(postgres: str, ended: bool) -> None:
    """While many wait for those that there are, it is asked again after a while, or once there are none left."""
    database = new_database(postgres)
    name = database.rpartition("/")[2]
    on_server(postgres, f"ALTER DATABASE {name} CONNECTION LIMIT 1")
    url = as_member(database)
    store = PostgresStore(url, connected_to_postgres(url), refused_seconds=60 if ended else 0.05)
    busy = Statement("""
        SELECT count(*), pg_sleep(0.01) FROM pg_stat_activity WHERE datname = current_database()
    """)
    seen = [1]

    async def keep_asking() -> None:
        while seen[-1] == 1:
            seen.append((await store.read(lambda tx: tx.one(busy)))[0])

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(keep_asking())
        while len(seen) < 12:
            await asyncio.sleep(0.01)
        on_server(postgres, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        if ended:
            end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            on_server(postgres, end)
    await store.close()

    assert seen[-1] > 1


async def test_connection_that_dies_within(postgres: str) -> None:
    """A transaction whose connection dies before its commit is run anew, and counts once."""
    database = new_database(postgres)
    runs = []

    def dying(tx: Transaction) -> None:
        runs.append(1)
        tx.run(END, id="call")
        if len(runs) == 1:
            with contextlib.suppress(psycopg.Error):
                tx.one(Statement("SELECT pg_terminate_backend(pg_backend_pid())"))
            tx.run(END, id="call")

    async with opened(database, name="tested", now=NOW) as store:
        await store.write(calls.begin, new("call"))
        await store.write(dying)

        assert (2, 1.0) == (len(runs), await store.read(ended, "call"))


async def test_deadlock_is_run_anew(postgres: str) -> None:
    """Two that wait for each other are both carried out."""
    database = new_database(postgres)
    met = threading.Barrier(2)
    tries = {"ab": 0, "ba": 0}

    def both(tx: Transaction, order: str) -> None:
        tries[order] += 1
        tx.one(FOR_UPDATE, id=order[0])
        if tries[order] == 1:
            met.wait(30)
        tx.run(END, id=order[1])

    async with opened(database, name="tested", now=NOW) as store:
        await store.write(calls.begin, new("a"))
        await store.write(calls.begin, new("b"))
        await asyncio.gather(store.write(both, "ab"), store.write(both, "ba"))

        assert (1.0, 1.0) == (await store.read(ended, "a"), await store.read(ended, "b"))
    # One more, unless that met the other again before it could go on.
    assert 3 <= sum(tries.values())


@asynccontextmanager
async def behind_relay(postgres: str) -> AsyncIterator[tuple[PostgresStore, Relay, str]]:
    """A store in a database of its own, the relay to it, and the database's URL past that relay."""
    database = new_database(postgres)
    async with opened(database, name="tested", now=NOW):
        pass
    address, _, name = database.partition("@")[2].partition("/")
    async with Relay(address).listening() as relay:
        store = PostgresStore(f"postgresql://precall@{relay.address}/{name}", longest_seconds=3.0)
        yield store, relay, database
        await store.close()


async def test_server_that_hangs(postgres: str) -> None:
    """A server that no longer answers is given up in a bounded time, and served by again when it is back.

    Nothing else stands still meanwhile.
    """
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    async with behind_relay(postgres) as (store, relay, database):
        await store.write(calls.begin, new("call"))
        await relay.hang()
        beating = asyncio.create_task(beat())
        with pytest.raises(RegistryUnavailable):
            await asyncio.wait_for(store.write(calls.begin, new("lost")), 30)
        await asyncio.sleep(1.0)
        beating.cancel()
        await relay.mend()
        await asyncio.wait_for(store.write(calls.begin, new("later")), 30)

    assert [("call",), ("later",)] == await values(database, FOUND)
    assert 4.0 > longest


async def test_cause_in_the_log(postgres: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The log tells the server's code where it gave one, else what is in the way, and never a value or an address."""
    async with behind_relay(postgres) as (store, relay, database):
        with pytest.raises(RegistryUnavailable):
            await store.write(lambda tx: tx.one(Statement("SELECT 7777 FROM taken_away")))
        await relay.down()
        with pytest.raises(RegistryUnavailable):
            await store.write(calls.begin, new("lost"))
        await relay.mend()
        await relay.hang()
        with pytest.raises(RegistryUnavailable):
            await store.write(calls.begin, new("lost"))
        await relay.mend()
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if "registry not available" in line]

    assert [
        "cause=42P01",
        "cause='nothing listens at the host and port of the database'",
    ] == [re.search(r"cause=('[^']*'|\S+)", line)[0] for line in lines[:2]]
    assert 3 == len([line for line in lines if "cause=" in line])
    assert not re.search(
        rf"7777|taken_away|{relay.port}|{database.rpartition('/')[2]}|127\.0", "".join(lines)
    )


async def test_statement_that_hangs(postgres: str, eventually) -> None:
    """A statement that takes too long is given up here and ends at the server, also one that only reads."""
    database = new_database(postgres)
    async with opened(database, name="tested", now=NOW):
        pass
    asleep = Statement("SELECT pg_sleep(60)")
    store = PostgresStore(database, longest_seconds=1.0)
    with pytest.raises(RegistryUnavailable):
        await store.read(lambda tx: tx.one(asleep))
    seen = entered(postgres + "/postgres")
    left = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(query, 'SELECT pg_sleep') AND state = 'active' AND datname = %s"

    await eventually(lambda: (0,) == seen.execute(left, [database.rpartition("/")[2]]).fetchone())
    assert [] == await store.read(lambda tx: tx.all(Statement(FOUND)))
    await store.close()


async def test_url_as_libpq_takes_it(postgres: str) -> None:
    """What managed databases put into their URLs is taken, and reaches the server."""
    database = new_database(postgres)
    parameters = (
        "sslmode=prefer&application_name=front%20desk&connect_timeout=7&channel_binding=prefer"
        "&target_session_attrs=read-write&options=-c%20statement_timeout%3D4321&pgbouncer=true&supa=base-pooler.x"
    )
    shown = Statement("SELECT current_setting('application_name'), current_setting('statement_timeout')")
    for scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
        url = f"{scheme}://{database.partition('://')[2]}?{parameters}"
        async with opened(url, name="tested", now=NOW) as store:
            assert ("front desk", "4321ms") == await store.read(lambda tx: tx.one(shown))


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
async def test_database_of_another_release(database: str) -> None:
    """A database of a revision that this release does not know is refused in one line, and left as it is."""
    async with opened(database, name="tested", now=NOW) as store:
        await store.write(lambda tx: tx.run(Statement("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(RegistryNotOpened) as caught:
        async with opened(database, name="tested", now=NOW):
            pass

    assert (
        f"DATABASE_URL: the database was made by another release (revision 9999, and this one knows {LATEST}):"
        " run that release, or restore a back-up"
    ) == str(caught.value)
    assert [("9999",)] == await values(database, "SELECT version_num FROM alembic_version")


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
async def test_database_of_another_program(database: str) -> None:
    """A database whose tables are not ours is refused in one line, and left as it is."""
    async with opened(database, name="tested", now=NOW) as store:
        await store.write(lambda tx: tx.run(Statement("DROP TABLE alembic_version")))

    what = database.removeprefix("sqlite:///") if "sqlite" in database else "the database"
    assert (
        f"DATABASE_URL: {what} holds tables of another program: name a database of Precall's own"
        == await refused(database)
    )
    assert [("tested",)] == await values(database, "SELECT name FROM deployment")


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("missing/registry.sqlite3", "the folder {0}/missing does not exist"),
        ("elsewhere", "the folder {0}/missing does not exist"),
        (f"{LONG}/file", f"{{0}}/{LONG}/file can be neither written nor made (File name too long)"),
        ("folder", "{0}/folder can be neither written nor made (Is a directory)"),
        ("pipe", "{0}/pipe is not a file"),
        ("text", "{0}/text is not a SQLite database, or a broken one"),
        ("loop", "{0}/loop can be neither written nor made (Too many levels of symbolic links)"),
    ],
)
async def test_file_that_cannot_be_opened(tmp_path: Path, place: str, problem: str) -> None:
    """Whatever is in the way of a file is told in one line, and it is not kept open as long as that is."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("This is a letter and no database. " * 100)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "elsewhere").symlink_to("missing/registry.sqlite3")
    with pytest.raises(RegistryNotOpened) as caught:
        async with opened(f"sqlite:///{tmp_path / place}", name=None, now=NOW):
            pass

    assert f"DATABASE_URL: {problem.format(tmp_path)}" == str(caught.value)
    assert str(tmp_path / place) not in [file.path for file in psutil.Process().open_files()]
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("user", "rest", "problem"),
    [
        ("guest:secret-of-mine", "postgres", "Postgres refuses the user or the password"),
        ("guest", "postgres", "Postgres refuses the user or the password"),
        ("tls", "postgres", WITHOUT_TLS),
        ("stranger", "postgres", WITHOUT_TLS),
        ("barred", "postgres", "the user may not log in: its role has NOLOGIN"),
        ("precall", "nowhere", "the database does not exist on the server"),
        ("precall", "postgres?sslmode=require", "the server does not speak TLS, which the URL asks for"),
        ("precall", "postgres?options=-c%20nothing%3D1", "a parameter of the URL is not one"),
    ],
)  # fmt: skip
async def test_server_that_lets_nobody_in(postgres: str, user: str, rest: str, problem: str) -> None:
    """Whatever is in the way of a server is told in one line, without a secret."""
    with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        on_server(postgres, "CREATE ROLE barred NOLOGIN")
    assert f"DATABASE_URL: {problem}" == await refused(f"{postgres.replace('precall', user)}/{rest}")


async def test_working_directory_that_was_deleted(tmp_path: Path, monkeypatch) -> None:
    """A file that would be in it is told in one line to have no place."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    (tmp_path / "folder").rmdir()

    problem = await refused("sqlite:///registry.sqlite3")

    assert "DATABASE_URL: the working directory was deleted" == problem


async def test_user_who_may_not_make_tables(postgres: str) -> None:
    """A server that lets a user in, but make no tables, is told in one line."""
    problem = await refused(as_member(new_database(postgres)))

    assert f"DATABASE_URL: {WITHOUT_RIGHTS}" == problem


async def test_user_who_may_not_read_the_tables(postgres: str) -> None:
    """A server whose tables are another user's is told in one line as well."""
    database = new_database(postgres)
    async with opened(database, name=None, now=NOW):
        pass

    assert f"DATABASE_URL: {WITHOUT_RIGHTS}" == await refused(as_member(database))


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("ALLOW_CONNECTIONS false", "the database lets nobody in: it has ALLOW_CONNECTIONS false"),
        ("SET search_path = nowhere", "the search_path of the user names no schema that there is"),
    ],
)
async def test_database_that_lets_nobody_in(postgres: str, setting: str, problem: str) -> None:
    """What an administrator may set of a database is told in one line."""
    database = new_database(postgres)
    on_server(postgres, f"ALTER DATABASE {database.rpartition('/')[2]} {setting}")

    assert f"DATABASE_URL: {problem}" == await refused(database)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_database_of_another_encoding(postgres: str, encoding: str) -> None:
    """A database that cannot hold every name is refused, and left empty."""
    name = f"precall_{encoding.lower()}_{os.getpid()}"
    made = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    on_server(postgres, f"CREATE DATABASE {name} {made}")
    url = f"{postgres}/{name}"
    try:
        problem = await refused(url)
        tables = await values(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    finally:
        drop_database(url)

    assert "DATABASE_URL: the database must have the encoding UTF8, as names have it" == problem
    assert [(0,)] == tables


async def test_disk_that_fills_while_tables_are_made(tmp_path: Path) -> None:
    """It is told in one line, as it is at any other time."""
    file = tmp_path / "registry.sqlite3"
    with closing(connected(file)) as connection:
        connection.execute("PRAGMA max_page_count=9")
        with pytest.raises(RegistryNotOpened) as caught, telling_problems(f"sqlite:///{file}"):
            bring_up_to_date(connection)

    assert f"DATABASE_URL: {file} cannot be written: the disk is full" == str(caught.value)


async def test_server_that_is_not_there() -> None:
    """A host that is not known, one where nothing listens and one that is silent are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "DATABASE_URL: the host of the database does not answer" == await refused(
            f"postgresql://127.0.0.1:{port}/x?connect_timeout=2"
        )
    assert "DATABASE_URL: nothing listens at the host and port of the database" == await refused(
        f"postgresql://127.0.0.1:{port}/x"
    )
    assert "DATABASE_URL: the host of the database is not found" == await refused(
        "postgresql://database.invalid/x"
    )


async def refused(url: str) -> str:
    """What is told of a database that cannot be opened."""
    with pytest.raises(RegistryNotOpened) as caught:
        async with opened(url, name=None, now=NOW):
            pass
    return str(caught.value)


async def test_one_taker_of_an_intent(store: Store) -> None:
    """Of all who find a process dead at the same time, one takes its intent; of one that lives, nobody."""
    await store.write(voices.intend, intent("Ivan", owner="dead"), call_id=None, now=NOW)

    async def take(number: int, at: float) -> bool:
        return await store.write(
            voices.take_over, "Ivan", dead="dead", owner=f"taker_{number}", stale=at - 8, now=at
        )

    assert [False] * 5 == await asyncio.gather(*(take(number, NOW + 7) for number in range(5)))
    # Signs of life count by their times: the clock was set back after the first, and the last had to wait.
    for at in (NOW + 3_600, NOW + 5, NOW - 5):
        await store.write(processes.note_alive, "dead", now=at)
    assert [False] * 5 == await asyncio.gather(*(take(number, NOW + 12) for number in range(5)))
    assert [] == await store.read(voices.abandoned, stale=NOW + 4)
    assert ["Ivan"] == [row.marker for row in await store.read(voices.abandoned, stale=NOW + 6)]
    assert [False] * 9 + [True] == sorted(
        await asyncio.gather(*(take(number, NOW + 14) for number in range(10)))
    )


async def test_one_intent_of_many(store: Store) -> None:
    """Of all who want a voice for one caller at the same time, one gets to make it, and all learn which."""
    intents = await asyncio.gather(
        *(
            store.write(voices.intend, intent(f"marker_{number}", caller="Ivan"), call_id=None, now=NOW)
            for number in range(20)
        )
    )

    assert 1 == len({each.row.marker for each in intents})
    assert {"intended"} == {each.row.state for each in intents}


async def test_what_is_due(store: Store) -> None:
    """Nothing is due in a quiet registry; each kind of work is, once there is something to do."""
    await store.write(deployment.claim_reconciliation, now=NOW, until=NOW + 600)

    async def due_at(now: float) -> list[str]:
        return sorted(await store.read(
            due.what_is_due,
            now=now, busy_since=now - 7200, unused_since=now - 86_400, dropped_before=now - 2_592_000, stale=now - 8,
        ))  # fmt: skip

    assert [] == await due_at(NOW)
    await store.write(voices.intend, intent("Ivan"), call_id=None, now=NOW)
    assert ([], ["resume"]) == (await due_at(NOW + 8), await due_at(NOW + 9))
    assert await store.write(voices.record, "Ivan", "voice_1", now=NOW)
    assert ([], ["reconcile"]) == (await due_at(NOW + 9), await due_at(NOW + 600))
    await store.write(deployment.claim_reconciliation, now=NOW + 600, until=NOW + 1e9)
    assert ([], ["close"]) == (await due_at(NOW + 86_399), await due_at(NOW + 86_400))
    await store.write(departures.delete, "Ivan", now=NOW + 5)
    assert ([], ["delete"]) == (await due_at(NOW + 4), await due_at(NOW + 5))
    await store.write(departures.note_gone, "Ivan", now=NOW + 10)
    assert ([], ["close"]) == (await due_at(NOW + 2_592_010), await due_at(NOW + 2_592_011))
    await store.write(departures.erase, "Ivan")
    await store.write(calls.begin, new("call"))
    assert ([], ["close"]) == (await due_at(NOW + 7_199), await due_at(NOW + 7_200))


def _statements(found: object) -> list[Statement]:
    """The statements that a name of a module stands for: one, several, or none."""
    several = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    return [each for each in several if isinstance(each, Statement)]


async def test_nothing_is_looked_through(tmp_path: Path) -> None:
    """What is asked every second and for every call finds its rows by an index, however many there are."""
    path = tmp_path / "registry.sqlite3"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW):
        pass
    asked = {
        f"{module.__name__.rpartition('.')[2]}.{name}{number or ''}": statement.sqlite
        for module in (agents, calls, census, departures, due, holding, late_updates, requests, views, voices)
        for name, found in vars(module).items()
        for number, statement in enumerate(_statements(found))
    }
    # What finds every ready voice, and what knows listed ones.
    seldom = {"voices.READY", "voices.KNOWN"}
    assert seldom <= asked.keys()
    asked = {name: text for name, text in asked.items() if name not in seldom}
    with closing(sqlite3.connect(path)) as connection:
        looked_through = {
            f"{name}: {row[3]}"
            for name, text in asked.items()
            for row in connection.execute(
                f"EXPLAIN QUERY PLAN {text}", dict.fromkeys(PARAMETER.findall(text))
            )
            if re.match(
                r"SCAN (voices|calls|agents)\b(?! USING (COVERING )?INDEX ix_(voices_(intended|used|newest|due)"
                r"|calls_open|agents_restoring))",
                row[3],
            )
        }

    assert 40 < len(asked)
    assert set() == looked_through


async def test_calls_of_the_release_before(store: Store) -> None:
    """Calls that were noted without their person are those of whom a delivery had stated."""
    await store.write(calls.begin, msgspec.structs.replace(new("call"), caller="somebody", stated="p"))
    await store.write(lambda tx: tx.run(Statement("UPDATE calls SET person = ''")))
    listed = await store.read(views.calls, before=None, size=9, person="p", busy_since=NOW)
    await store.write(calls.erase_caller, "p")

    assert ["call"] == [each.id for each in listed]
    assert None is await store.read(calls.latest, call_id="call")


async def test_lists_of_one(tmp_path: Path) -> None:
    """The calls of one caller, number or voice, and those in progress at an agent, are found without a walk."""
    path = tmp_path / "registry.sqlite3"
    async with opened(f"sqlite:///{path}", name="tested", now=NOW):
        pass
    with closing(sqlite3.connect(path)) as connection:
        walked = {
            key
            for key, statement in views.CALLS.items()
            for row in connection.execute(
                f"EXPLAIN QUERY PLAN {statement.sqlite}", dict.fromkeys(PARAMETER.findall(statement.sqlite))
            )
            if "ix_calls_begun" in row[3]
        }

    assert {("", False, False, False), ("", False, False, True), ("", False, True, False)} == walked


@pytest.fixture
async def ready(store: Store) -> Store:
    """A registry with a ready voice of the person "c"."""
    await store.write(voices.intend, intent("Ivan"), call_id=None, now=NOW)
    assert await store.write(voices.record, "Ivan", "voice_1", now=NOW)
    return store


async def test_withdrawn_before_a_request_is_answered(ready: Store) -> None:
    """A request that found a voice is not answered with it once its consent is withdrawn."""
    await ready.write(voice_consents.withdraw, "c", "", number=None, now=NOW)

    assert None is await ready.write(voices.keep_for, "Ivan", REQUEST, until=NOW + 9, reused=True, now=NOW)
    assert None is await ready.read(requests.answer, REQUEST, now=NOW)


async def test_withdrawn_after_a_request_was_answered(ready: Store) -> None:
    """A request is not answered again with a voice whose consent was withdrawn, even if it had gone before."""
    told = await ready.write(voices.keep_for, "Ivan", REQUEST, until=NOW + 9, reused=False, now=NOW)
    assert told == await ready.read(requests.answer, REQUEST, now=NOW)
    assert await ready.write(departures.evict, "Ivan", busy_since=NOW, now=NOW)
    await ready.write(voice_consents.withdraw, "c", "", number=None, now=NOW)

    with pytest.raises(RequestForgotten):
        await ready.read(requests.answer, REQUEST, now=NOW)
