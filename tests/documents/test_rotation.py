"""The rotation of secrets that docs/DEPLOYMENT.md prints."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from yarl import URL

from cloner.registry import NewCall, RegistryNotOpened, calls, opened
from cloner.registry.opening import migrated
from environment import Secret
from gateway.settings import Settings
from tests.kit.postgres import drop_database, new_database, on_server
from tests.kit.rows import values

SECTION = (
    (Path(__file__).parents[2] / "docs" / "DEPLOYMENT.md")
    .read_text()
    .partition("### Rotating secrets\n")[2]
    .partition("\n### ")[0]
    # The tests' own server has an administrator of that name.
    .replace("ROLE precall", "ROLE keeper")
    .replace("role = precall", "role = keeper")
)


@pytest.fixture
def owned(postgres: str) -> Iterator[str]:
    """An empty database that belongs to a role of its own, as an administrator reaches it."""
    url = new_database(postgres)
    name = URL(url).path.strip("/")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE keeper LOGIN PASSWORD 'the-old-password'")
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO keeper").format(sql.Identifier(name)))
        connection.execute("ALTER SCHEMA public OWNER TO keeper")
    yield url
    drop_database(url)
    on_server(postgres, "DROP ROLE IF EXISTS keeper_next")
    on_server(postgres, "DROP ROLE keeper")


def as_role(url: str, role: str, password: str) -> str:
    """How a role reaches the database."""
    return str(URL(url).with_user(role).with_password(password))


async def test_postgres(owned: str) -> None:
    """With the statements as printed the next role goes on where the last one was, which then may go."""
    old = as_role(owned, "keeper", "the-old-password")
    new = as_role(owned, "keeper_next", "the-new-password")
    call = NewCall(id="call_1", agent_id="a", conversation_id="c", caller="c", stated="c", begun_at=1.0)
    (statements,) = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)
    (ending,) = re.findall(r"`(ALTER ROLE keeper NOLOGIN)`", SECTION)
    async with opened(old, name="tested", now=1.0) as before:
        with psycopg.connect(owned, autocommit=True) as connection:
            connection.execute(statements)
        async with opened(new, name=None, now=2.0) as after:
            await before.write(calls.begin, call)
            assert "tested" == after.name
    with psycopg.connect(owned, autocommit=True) as connection:
        connection.execute(ending)

    assert [("call_1",)] == await values(new, "SELECT id FROM calls")
    assert {("keeper",)} == set(
        await values(new, "SELECT tableowner FROM pg_tables WHERE schemaname = 'public'")
    )
    with pytest.raises(RegistryNotOpened):
        migrated(old)


def test_lists() -> None:
    """Each secret that is rotated by a list is one that takes a list."""
    lists = set(re.findall(r"^\| `([A-Z_]+)` \| (?:`old,new`|the same)", SECTION, re.MULTILINE))
    settings = Settings(elevenlabs_webhook_secret=(Secret("s3cret-of-the-webhook"),))

    assert {"ELEVENLABS_WEBHOOK_SECRET", "CONVERSATION_INIT_TOKEN", "CLONER_TOKEN"} == lists
    assert {tuple} == {type(getattr(settings, name.lower())) for name in lists}
