"""How the benchmark makes a large registry out of a small one."""

import pytest

from benchmarks.growth import in_database, multiply, postgres_databases
from demo.processes import ProcessFailed


def test_copied(empty_database: str) -> None:
    """What differs in every row differs in the copies, and fits together; all else is as it was."""
    sqlite = empty_database.startswith("sqlite")
    with in_database(empty_database) as run:
        run(
            "CREATE TABLE voices (marker TEXT PRIMARY KEY, state TEXT, made DOUBLE PRECISION UNIQUE, tries BIGINT)"
        )
        run("CREATE TABLE calls (id TEXT PRIMARY KEY, marker TEXT)")
        run("CREATE TABLE deployment (id BIGINT PRIMARY KEY)")
        run("INSERT INTO deployment VALUES (1)")
        for number in range(100):
            run(f"INSERT INTO voices VALUES ('m{number}', 'ready', {1000 + number}, 0)")
            run(f"INSERT INTO calls VALUES ('c{number}', 'm{number}')")

        multiply(run, 1_000, sqlite=sqlite)

        assert [(1_000, 1, 1_000, 1)] == run(
            "SELECT count(DISTINCT marker), count(DISTINCT state), count(DISTINCT made), count(DISTINCT tries)"
            " FROM voices"
        )
        assert [(1_000,)] == run("SELECT count(*) FROM calls JOIN voices ON calls.marker = voices.marker")
        assert [(1,)] == run("SELECT count(*) FROM deployment")


def test_nothing_copied(empty_database: str) -> None:
    """A registry without a row for each voice is not taken for a large one."""
    with in_database(empty_database) as run:
        run("CREATE TABLE voices (marker TEXT PRIMARY KEY)")

        with pytest.raises(ProcessFailed):
            multiply(run, 1_000, sqlite=empty_database.startswith("sqlite"))


def test_databases_of_its_own() -> None:
    """The benchmark starts a Postgres of its own, and has as many databases there as it compares registries."""
    with postgres_databases(2) as urls:
        for url in urls:
            with in_database(url) as run:
                run("CREATE TABLE voices (marker TEXT PRIMARY KEY)")
