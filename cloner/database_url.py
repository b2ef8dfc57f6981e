"""Reads DATABASE_URL, which says where the registry is, without opening anything."""

import re
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT_URL", "address_problem", "is_sqlite", "postgres_url", "sqlite_file"]

DEFAULT_URL = "sqlite:///precall.sqlite3"

# Other tools want a driver in the scheme; here it means nothing.
SCHEME = re.compile(r"(?P<kind>sqlite|postgres(?:ql)?)(?:\+[a-z0-9_]+)?://")
# Hosting services of Postgres put these into their URLs for the pools and prepared statements of other
# clients. We have neither, and libpq would refuse the parameters.
FOR_OTHERS = frozenset({"pgbouncer", "supa", "connection_limit", "pool_timeout", "statement_cache_size",
                        "prepared_statement_cache_size"})  # fmt: skip
USERINFO = (
    'characters such as "@", "/", "?" and "%" in user and password are written as %40, %2F, %3F and %25'
)


def address_problem(url: str) -> str | None:
    """What is wrong with a DATABASE_URL, in words that hold no part of it; None if it can be opened."""
    if SCHEME.match(url) is None:
        return "expected sqlite:///file or postgresql://user:password@host/database"
    return _sqlite_problem(url) if is_sqlite(url) else _postgres_problem(url)


def is_sqlite(url: str) -> bool:
    """Whether the URL names a SQLite file."""
    return url.startswith("sqlite")


def sqlite_file(url: str) -> Path:
    """The file of a SQLite URL: three slashes before a relative path, four before an absolute one."""
    return Path(url.partition("://")[2][1:]).absolute()


def postgres_url(url: str) -> str:
    """The URL as libpq takes it, without the parameters that mean nothing here."""
    address, mark, query = SCHEME.sub("postgresql://", url, count=1).partition("?")
    parameters = query.split("&")
    kept = [each for each in parameters if each.partition("=")[0] not in FOR_OTHERS]
    return address + mark + "&".join(kept) if kept else address


def _sqlite_problem(url: str) -> str | None:
    rest = url.partition("://")[2]
    if not rest.startswith("/"):
        return "expected three slashes before the path of a SQLite file, four before an absolute one"
    if not rest[1:].strip() or rest.endswith("/"):
        return "expected the path of a SQLite file behind sqlite:///"
    if ":memory:" in rest or rest.startswith("/file:"):
        return "expected the path of a SQLite file: what is kept in memory is lost with the process"
    if "?" in rest:
        return "a SQLite file takes no parameters"
    return None


def _postgres_problem(url: str) -> str | None:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    path, _, query = postgres_url(url).partition("://")[2].partition("?")
    authority, slash, database = path.partition("/")
    # Otherwise libpq takes a part of the password for the host, and looking that name up publishes it.
    cut_short = not slash and "@" in query and "@" not in authority
    if authority.count("@") > 1 or "@" in database or cut_short:
        return USERINFO
    try:
        told: dict[str, Any] = conninfo_to_dict(postgres_url(url))
    except (psycopg.Error, UnicodeError) as failure:
        # libpq's message holds a part of the URL, which may be one of the password.
        if "URI query parameter" in str(failure):
            return "behind the ? stands what is no parameter of libpq; for TLS that is sslmode=require"
        return f"cannot be read by Postgres's client library; {USERINFO}"
    ports = str(told.get("port", "")).split(",")
    if not all(not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536) for port in ports):
        return f"the port is not a number from 1 to 65535; {USERINFO}"
    if not str(told.get("connect_timeout", "0")).removeprefix("-").isdigit():
        return "connect_timeout is not a whole number"
    return None
